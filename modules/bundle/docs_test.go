// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	gpuinfo "github.com/thinkube/infra/modules/gpu_info"
	"github.com/thinkube/infra/modules/internal/ansible"
)

const root = "../.."

// secretNote is how users read that an option is no_log: the format of DOCUMENTATION has no key for it.
const secretNote = "It is secret and never shown."

// optionDoc is an option in DOCUMENTATION.
type optionDoc struct {
	Description texts                `yaml:"description"`
	Type        string               `yaml:"type"`
	Elements    string               `yaml:"elements"`
	Required    bool                 `yaml:"required"`
	Default     any                  `yaml:"default"`
	Choices     []any                `yaml:"choices"`
	Aliases     []string             `yaml:"aliases"`
	Suboptions  map[string]optionDoc `yaml:"suboptions"`
	Added       string               `yaml:"version_added"`
}

// moduleDoc is DOCUMENTATION.
type moduleDoc struct {
	Module       string                  `yaml:"module"`
	Short        string                  `yaml:"short_description"`
	Added        string                  `yaml:"version_added"`
	Author       []string                `yaml:"author"`
	Description  texts                   `yaml:"description"`
	Attributes   map[string]attributeDoc `yaml:"attributes"`
	Fragments    []string                `yaml:"extends_documentation_fragment"`
	Options      map[string]optionDoc    `yaml:"options"`
	Requirements texts                   `yaml:"requirements"`
	Notes        texts                   `yaml:"notes"`
	SeeAlso      []map[string]string     `yaml:"seealso"`
}

type attributeDoc struct {
	Description texts  `yaml:"description"`
	Support     string `yaml:"support"`
}

// valueDoc is a value in RETURN.
type valueDoc struct {
	Description texts               `yaml:"description"`
	Returned    string              `yaml:"returned"`
	Type        string              `yaml:"type"`
	Elements    string              `yaml:"elements"`
	Sample      any                 `yaml:"sample"`
	Contains    map[string]valueDoc `yaml:"contains"`
}

// texts is one text or a list of them.
type texts []string

// UnmarshalYAML reads either form.
func (t *texts) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*t = texts{node.Value}

		return nil
	}

	return node.Decode((*[]string)(t))
}

// docs is plugins/modules/<name>.py.
type docs struct {
	moduleDoc
	examples string
	returned map[string]valueDoc
}

var docBlock = regexp.MustCompile(`(?ms)^ *([A-Z]+) = r"""\n(.*?)^"""$`)

// readBlocks gives the YAML texts of a Python file by the names of their variables.
func readBlocks(t *testing.T, path string) map[string]string {
	t.Helper()

	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(text), "SPDX-License-Identifier: GPL-3.0-or-later", path)

	blocks := map[string]string{}
	for _, match := range docBlock.FindAllStringSubmatch(string(text), -1) {
		blocks[match[1]] = match[2]
	}

	return blocks
}

// strictly decodes YAML and refuses keys that ansible-doc would not show.
func strictly(t *testing.T, text, what string, into any) {
	t.Helper()

	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(into), what)
}

func readDocs(t *testing.T, module string) docs {
	t.Helper()

	path := filepath.Join(root, "plugins/modules", module+".py")
	blocks := readBlocks(t, path)
	read := docs{examples: blocks["EXAMPLES"]}

	strictly(t, blocks["DOCUMENTATION"], path+": DOCUMENTATION", &read.moduleDoc)
	strictly(t, blocks["RETURN"], path+": RETURN", &read.returned)

	for _, fragment := range read.Fragments {
		name, ok := strings.CutPrefix(fragment, "thinkube.infra.")
		require.True(t, ok, "%s: fragment %q of another collection", path, fragment)

		shared := filepath.Join(root, "plugins/doc_fragments", name+".py")

		var part moduleDoc

		strictly(t, readBlocks(t, shared)["DOCUMENTATION"], shared, &part)
		require.Empty(t, commonKeys(read.Options, part.Options), "%s documents options of its fragment", path)
		maps.Copy(read.Options, part.Options)
	}

	return read
}

func commonKeys[V any](a, b map[string]V) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(a)), func(key string) bool { _, ok := b[key]; return !ok })
}

// collected lists every module of the collection: those of the bundle, and those with a program of their own.
func collected() []ansible.Runner { return append(runners(), gpuinfo.Module) }

// forEachModule runs a test for every module of the collection.
func forEachModule(t *testing.T, test func(t *testing.T, module ansible.Runner)) {
	t.Helper()

	for _, module := range collected() {
		t.Run(module.ModuleName(), func(t *testing.T) { test(t, module) })
	}
}

func TestDocumentationIsComplete(t *testing.T) {
	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		doc := readDocs(t, module.ModuleName())

		assert.Equal(t, module.ModuleName(), doc.Module)
		assert.NotEmpty(t, doc.Short)
		assert.False(t, strings.HasSuffix(doc.Short, "."), "short_description has no full stop")
		assert.NotEmpty(t, doc.Added)
		assert.NotEmpty(t, doc.Author)
		assert.NotEmpty(t, doc.Description)

		wantDiff := "full"
		if readsOnly(module) {
			wantDiff = "none"
		}

		assert.Equal(t, "full", doc.Attributes["check_mode"].Support)
		assert.Equal(t, wantDiff, doc.Attributes["diff_mode"].Support)
	})
}

// readsOnly tells modules that have no plan.
func readsOnly(module ansible.Runner) bool {
	return strings.HasSuffix(module.ModuleName(), "_info") || strings.HasSuffix(module.ModuleName(), "_query")
}

func TestOptionsAreWhatDocumentationSays(t *testing.T) {
	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		spec, err := module.ArgSpec()
		require.NoError(t, err)
		assertOptions(t, "", spec, readDocs(t, module.ModuleName()).Options)
	})
}

func assertOptions(t *testing.T, path string, spec *ansible.Spec, documented map[string]optionDoc) {
	t.Helper()

	assert.ElementsMatch(t, slices.Collect(maps.Keys(spec.Options)), slices.Collect(maps.Keys(documented)),
		"options of the module (first) and of DOCUMENTATION in %q", path)

	for name, option := range spec.Options {
		if doc, ok := documented[name]; ok {
			assertOption(t, path+name, option, doc)
		}
	}
}

func assertOption(t *testing.T, path string, option *ansible.Option, doc optionDoc) {
	t.Helper()

	assert.NotEmpty(t, doc.Description, "%s: description", path)
	assert.Equal(t, orStr(option.Type), doc.Type, "%s: type", path)
	assert.Equal(t, option.Elements, doc.Elements, "%s: elements", path)
	assert.Equal(t, option.Required, doc.Required, "%s: required", path)
	assert.Equal(t, plainOf(t, option.Default), plainOf(t, doc.Default), "%s: default", path)
	assert.Equal(t, plainOf(t, option.Choices), plainOf(t, doc.Choices), "%s: choices", path)
	assert.Equal(t, option.Aliases, doc.Aliases, "%s: aliases", path)
	assert.Equal(t, option.Secret, slices.Contains(doc.Description, secretNote), "%s: %q stands in the description of secret options", path, secretNote)

	for _, variable := range option.Env {
		assert.Contains(t, strings.Join(doc.Description, " "), "C("+variable+")", "%s: the environment variable is named", path)
	}

	switch {
	case option.Options != nil:
		assertOptions(t, path+".", option.Options, doc.Suboptions)
	case option.Values != nil:
		// Keys are free, so the options of the values cannot be suboptions; they are named in the text.
		for name := range option.Values.Options {
			assert.Contains(t, strings.Join(doc.Description, " "), "C("+name+")", "%s: key of each value", path)
		}
	default:
		assert.Empty(t, doc.Suboptions, "%s: suboptions", path)
	}
}

func orStr(typ string) string {
	if typ == "" {
		return "str"
	}

	return typ
}

// plainOf makes values comparable that come from tags and from YAML.
func plainOf(t *testing.T, value any) any {
	t.Helper()

	text, err := json.Marshal(value)
	require.NoError(t, err)

	var plain any

	require.NoError(t, json.Unmarshal(text, &plain))

	return plain
}

func TestReturnedValuesAreWhatDocumentationSays(t *testing.T) {
	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		returned := readDocs(t, module.ModuleName()).returned

		want := sdkValues(module)
		for name, doc := range returned {
			assert.NotEmpty(t, doc.Returned, "%s: returned", name)

			if typ, ok := want[name]; ok {
				assert.Equal(t, typ, doc.Type, "%s: type", name)
				delete(want, name)
				delete(returned, name)
			}
		}

		assert.Empty(t, want, "values of the SDK that RETURN lacks")
		assertFields(t, "", module.ReturnType(), returned)
	})
}

// sdkValues are the values that every module returns, with their types.
func sdkValues(module ansible.Runner) map[string]string {
	values := map[string]string{"hint": "str", "failure": "dict"}
	if !readsOnly(module) {
		values["plan"] = "list"
	}

	return values
}

// assertFields compares a struct with the `contains` of its documentation.
func assertFields(t *testing.T, path string, typ reflect.Type, documented map[string]valueDoc) {
	t.Helper()

	fields := jsonFields(t, typ)
	assert.ElementsMatch(t, slices.Collect(maps.Keys(fields)), slices.Collect(maps.Keys(documented)),
		"values that the module returns (first) and that RETURN has in %q", path)

	for name, field := range fields {
		if doc, ok := documented[name]; ok {
			assertValue(t, path+name, field, doc)
		}
	}
}

// jsonFields gives the fields of a struct under the names that encoding/json gives them.
func jsonFields(t *testing.T, typ reflect.Type) map[string]reflect.Type {
	t.Helper()

	fields := map[string]reflect.Type{}

	for _, field := range reflect.VisibleFields(typ) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")

		switch {
		case name == "-" || !field.IsExported() || field.Anonymous && name == "":
		case len(field.Index) > 1 && !embeddedOnly(typ, field.Index):
		default:
			require.NotEmpty(t, name, "%s.%s is returned and has no json tag", typ, field.Name)
			fields[name] = field.Type
		}
	}

	return fields
}

// embeddedOnly tells whether a promoted field is reached through structs that encoding/json flattens.
func embeddedOnly(typ reflect.Type, index []int) bool {
	for _, i := range index[:len(index)-1] {
		outer := typ.Field(i)
		if outer.Tag.Get("json") != "" {
			return false
		}

		typ = outer.Type
	}

	return true
}

func assertValue(t *testing.T, path string, typ reflect.Type, doc valueDoc) {
	t.Helper()

	assert.NotEmpty(t, doc.Description, "%s: description", path)

	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}

	name, elements := returnTypes(typ)
	if name == "" {
		return // a value of any type
	}

	assert.Equal(t, name, doc.Type, "%s: type", path)
	assert.Equal(t, elements, doc.Elements, "%s: elements", path)

	if doc.Contains != nil {
		assertContains(t, path, typ, doc.Contains)
	}
}

// assertContains goes down into dicts and lists of dicts. The one key of a dict with free keys is written as "<member>".
func assertContains(t *testing.T, path string, typ reflect.Type, contains map[string]valueDoc) {
	t.Helper()

	if typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}

	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}

	if typ.Kind() != reflect.Map {
		require.Equal(t, reflect.Struct, typ.Kind(), "%s: contains of what is no dict", path)
		assertFields(t, path+".", typ, contains)

		return
	}

	require.Len(t, contains, 1, "%s: a dict with free keys contains one placeholder such as <member>", path)

	for key, doc := range contains {
		assert.Regexp(t, `^<\w+>$`, key, "%s: placeholder", path)
		assertValue(t, path+"."+key, typ.Elem(), doc)
	}
}

// returnTypes gives RETURN's type and elements of a Go type; "" for any.
func returnTypes(typ reflect.Type) (name, elements string) {
	if typ == reflect.TypeFor[json.RawMessage]() {
		return "", ""
	}

	switch typ.Kind() {
	case reflect.Bool:
		return "bool", ""
	case reflect.String:
		return "str", ""
	case reflect.Float32, reflect.Float64:
		return "float", ""
	case reflect.Struct, reflect.Map:
		return "dict", ""
	case reflect.Pointer:
		return returnTypes(typ.Elem())
	case reflect.Slice:
		elements, _ = returnTypes(typ.Elem())

		return "list", elements
	case reflect.Interface:
		return "", ""
	default:
		return "int", ""
	}
}

// TestFailuresAreDocumented compares RETURN.failure with the module's closed list of codes, word by word.
func TestFailuresAreDocumented(t *testing.T) {
	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		failure := readDocs(t, module.ModuleName()).returned["failure"]

		want := []string{"The kind of failure."}
		codes := allCodes(module)

		for _, code := range slices.Sorted(maps.Keys(codes)) {
			want = append(want, fmt.Sprintf("C(%s) - %s.", code, codes[code]))
		}

		assert.Equal(t, want, []string(failure.Contains["code"].Description), "RETURN: failure.contains.code.description must be:\n- %s",
			strings.Join(want, "\n- "))

		fields := []string{"code", "done", "step"}
		if readsOnly(module) {
			fields = fields[:1]
		}

		fields = append(fields, module.FailureDetails()...)
		slices.Sort(fields)
		assert.Equal(t, fields, slices.Sorted(maps.Keys(failure.Contains)))
	})
}

// allCodes are the codes that a module can give, with what they mean.
func allCodes(module ansible.Runner) map[ansible.Code]string {
	codes := maps.Clone(ansible.CommonCodes)

	for code, meaning := range module.FailureCodes() {
		codes[code] = meaning
	}

	if readsOnly(module) { // it takes no step
		delete(codes, ansible.CodeNotConverged)
		delete(codes, ansible.CodeConflict)
	}

	return codes
}

// TestExamplesWork decodes the arguments of every task in EXAMPLES as the module would.
func TestExamplesWork(t *testing.T) {
	byName := map[string]ansible.Runner{}
	for _, module := range collected() {
		byName[module.ModuleName()] = module
	}

	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		var tasks []map[string]any

		require.NoError(t, yaml.Unmarshal([]byte(readDocs(t, module.ModuleName()).examples), &tasks))

		own := 0

		for _, task := range tasks {
			assert.NotEmpty(t, task["name"], "a task without name")

			action := actionOf(t, task)

			name, ours := strings.CutPrefix(action, "thinkube.infra.")
			if !ours {
				continue
			}

			require.Contains(t, byName, name, "%v", task["name"])
			assertArguments(t, byName[name], task, action)

			if name == module.ModuleName() {
				own++
			}
		}

		assert.Positive(t, own, "no task uses the module")
	})
}

// actionOf finds the one key of a task that names an action, which is written in full.
func actionOf(t *testing.T, task map[string]any) string {
	t.Helper()

	var actions []string

	for key := range task {
		if strings.Count(key, ".") >= 2 {
			actions = append(actions, key)
		} else {
			assert.Contains(t, keywords, key, "%v: neither an action written in full nor a keyword of tasks", task["name"])
		}
	}

	require.Len(t, actions, 1, "%v: actions", task["name"])

	return actions[0]
}

// keywords of tasks that examples use.
var keywords = []string{
	"name", "become", "delegate_to", "loop", "loop_control", "register", "run_once", "throttle", "until", "vars", "when",
	"check_mode", "failed_when", "changed_when", "no_log", "retries", "delay", "tags",
}

func assertArguments(t *testing.T, module ansible.Runner, task map[string]any, action string) {
	t.Helper()

	spec, err := module.ArgSpec()
	require.NoError(t, err)

	arguments := map[string]any{}

	if given, ok := task[action].(map[string]any); ok {
		arguments = given
	} else {
		require.Nil(t, task[action], "%v: arguments are a dict", task["name"])
	}

	filled, ok := fillTemplates(spec, arguments).(map[string]any)
	require.True(t, ok)

	text, err := json.Marshal(filled)
	require.NoError(t, err)

	// As a task's arguments arrive: numbers keep their digits.
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()

	var raw map[string]any

	require.NoError(t, decoder.Decode(&raw))

	_, err = spec.Decode(action, raw)
	assert.NoError(t, err, "%v", task["name"])
}

// fillTemplates puts a value that fits in the place of each `{{ }}`.
func fillTemplates(spec *ansible.Spec, arguments map[string]any) any {
	filled := map[string]any{}

	for name, value := range arguments {
		filled[name] = value

		option := optionNamed(spec, name)
		if option == nil {
			continue // the decoder says so
		}

		switch given := value.(type) {
		case string:
			if strings.Contains(given, "{{") {
				filled[name] = fitting(option)
			}
		case map[string]any:
			if option.Options != nil {
				filled[name] = fillTemplates(option.Options, given)
			}
		}
	}

	return filled
}

func optionNamed(spec *ansible.Spec, name string) *ansible.Option {
	for _, option := range spec.Options {
		if option.Name == name || slices.Contains(option.Aliases, name) {
			return option
		}
	}

	return nil
}

func fitting(option *ansible.Option) any {
	if len(option.Choices) > 0 {
		return option.Choices[0]
	}

	switch option.Type {
	case "bool":
		return true
	case "int", "float", "bytes", "bits":
		return 1
	case "dict":
		return map[string]any{}
	case "list":
		return []any{}
	default:
		return "text"
	}
}

// TestEveryModuleIsRouted compares the bundle with what ansible-core is told about the collection.
func TestEveryModuleIsRouted(t *testing.T) {
	var runtime struct {
		RequiresAnsible string              `yaml:"requires_ansible"`
		Groups          map[string][]string `yaml:"action_groups"`
		Routing         struct {
			Modules map[string]map[string]string `yaml:"modules"`
		} `yaml:"plugin_routing"`
	}

	text, err := os.ReadFile(filepath.Join(root, "meta/runtime.yml"))
	require.NoError(t, err)
	strictly(t, string(text), "meta/runtime.yml", &runtime)

	names := moduleNames()
	assert.Equal(t, ">=2.14", runtime.RequiresAnsible)
	assert.Equal(t, names, slices.Sorted(slices.Values(runtime.Groups["all"])), "action_groups.all")

	const plugin = "thinkube.infra.module"

	carried := map[string]map[string]string{}

	for _, name := range names {
		carried[name] = map[string]string{"action_plugin": plugin}

		door, err := os.ReadFile(filepath.Join(root, "plugins/action", name+".py"))
		require.NoError(t, err, "the action plugin under the module's name")
		assert.Contains(t, string(door), "\nfrom ansible_collections."+strings.Replace(plugin, "infra.", "infra.plugins.action.", 1)+" import ActionModule")
	}

	assert.Equal(t, carried, runtime.Routing.Modules)
}

func moduleNames() []string {
	var names []string
	for _, module := range collected() {
		names = append(names, module.ModuleName())
	}

	return slices.Sorted(slices.Values(names))
}

// TestModulesAndFoldersAgree finds a module that is in no program, and documentation of one that does not exist.
func TestModulesAndFoldersAgree(t *testing.T) {
	assert.Equal(t, moduleNames(), baseNames(t, "modules/*/module.go", filepath.Dir), "folders in modules/ with a module.go")
	assert.Equal(t, moduleNames(), baseNames(t, "modules/*/cmd/main.go", func(path string) string { return filepath.Dir(filepath.Dir(path)) }),
		"folders in modules/ with a stand-alone program")
	assert.Equal(t, moduleNames(), baseNames(t, "plugins/modules/*.py", func(path string) string { return strings.TrimSuffix(path, ".py") }),
		"documentation in plugins/modules/")
}

// TestEveryModuleIsInOneProgram finds a module that the action plugin would look for in vain: it takes a module's own
// program, or else the bundle.
func TestEveryModuleIsInOneProgram(t *testing.T) {
	var bundled []string
	for _, module := range runners() {
		bundled = append(bundled, module.ModuleName())
	}

	own := baseNames(t, "modules/*/carried/main.go", func(path string) string { return filepath.Dir(filepath.Dir(path)) })
	assert.NotEmpty(t, own)
	assert.ElementsMatch(t, moduleNames(), append(bundled, own...))
}

func baseNames(t *testing.T, pattern string, cut func(path string) string) []string {
	t.Helper()

	paths, err := filepath.Glob(filepath.Join(root, pattern))
	require.NoError(t, err)

	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(cut(path)))
	}

	return names
}

// TestCollectionFilesAgree compares galaxy.yml with the rest of the collection.
func TestCollectionFilesAgree(t *testing.T) {
	var galaxy struct {
		Namespace    string            `yaml:"namespace"`
		Name         string            `yaml:"name"`
		Version      string            `yaml:"version"`
		Readme       string            `yaml:"readme"`
		License      []string          `yaml:"license"`
		Dependencies map[string]string `yaml:"dependencies"`
	}

	text, err := os.ReadFile(filepath.Join(root, "galaxy.yml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &galaxy))

	assert.Equal(t, "thinkube.infra", galaxy.Namespace+"."+galaxy.Name)
	assert.Regexp(t, `^\d+\.\d+\.\d+$`, galaxy.Version)
	assert.FileExists(t, filepath.Join(root, galaxy.Readme))
	assert.Equal(t, []string{"Apache-2.0", "GPL-3.0-or-later"}, galaxy.License)
	assert.FileExists(t, filepath.Join(root, "LICENSE")) // Apache-2.0
	assert.FileExists(t, filepath.Join(root, "LICENSES/GPL-3.0-or-later.txt"))
	assert.FileExists(t, filepath.Join(root, "LICENSES/go-nvml.txt"), "the notice that NVIDIA's header asks for")

	assert.Empty(t, galaxy.Dependencies, "the modules need no other collection")

	changes, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	require.NoError(t, err)
	assert.Contains(t, string(changes), "## "+galaxy.Version, "CHANGELOG.md has the version of galaxy.yml")

	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		doc := readDocs(t, module.ModuleName())
		assert.LessOrEqual(t, doc.Added, galaxy.Version, "version_added")
	})
}
