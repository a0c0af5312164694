// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Spec is the option table of a module, or of an option with sub-options: Ansible's argument_spec.
type Spec struct {
	Options           map[string]*Option
	Order             []*Option // all of them in the order of the struct; core reports the first error in this order
	Rules             Rules
	SupportsCheckMode bool
}

// Option is one option of a module.
type Option struct {
	Name          string
	Type          string // str, int, float, bool, list, dict, path, raw, json, bytes or bits; "" is str
	Elements      string // type of a list's items; "" leaves them as they are
	Required      bool
	Default       any // a plain value; nil when HasDefault is false
	HasDefault    bool
	Choices       []any
	Aliases       []string
	Secret        bool     // no_log
	Env           []string // environment variables that are read, in this order, when the option is not given
	Options       *Spec    // sub-options of a dict, or of each dict in a list
	ApplyDefaults bool     // an option with sub-options that is not given gets their defaults

	// Values are the sub-options of each value of a dict whose keys are free. Ansible's argument_spec has no such thing.
	Values *Spec

	RemovedIn         string // version in which the option goes
	RemovedAt         string // or the date
	RemovedFrom       string // name of the collection
	DeprecatedAliases []DeprecatedAlias
}

// DeprecatedAlias is an alias that will go in a version or at a date. It is one of the Aliases too.
type DeprecatedAlias struct {
	Name           string
	Version        string
	Date           string
	CollectionName string
}

// Rules say which options need or exclude each other.
type Rules struct {
	MutuallyExclusive [][]string
	RequiredTogether  [][]string
	RequiredOneOf     [][]string
	RequiredIf        []RequiredIf
	RequiredBy        map[string][]string // option -> what it needs
}

// RequiredIf demands options when another has a value.
type RequiredIf struct {
	Option string
	Value  any
	Needs  []string
	Any    bool // one of Needs is enough
}

// Ruled is a struct of sub-options that has rules of its own.
type Ruled interface{ ArgumentRules() Rules }

// SpecOf makes the option table out of the tags of a struct, given by value or by pointer. A tagged field is an option:
//
//	Name   string        `ansible:"name,required"`
//	State  string        `ansible:"state" choices:"present,absent" default:"present"`
//	Pool   *string       `ansible:"pool" aliases:"storage_pool" env:"LXD_POOL"`
//	Token  ansible.Secret `ansible:"token"`
//	Wait   ansible.Duration `ansible:"timeout" default:"5m"`
//	Disks  []Disk        `ansible:"disks"`            // Disk is a struct with tags: sub-options
//	Config map[string]string `ansible:"config,secret"` // secret hides every value
//
// After the name may follow: required, secret, apply_defaults. More keys: type and elements (where the Go type does not
// say it: `type:"path"`), removed_in or removed_at with removed_from, and
// deprecated_aliases:"old=3.0.0,older=2030-01-01", whose collection is removed_from. The text of default is read as the
// option would read it. An embedded struct without a tag lends its options; `ansible:"-"` and unexported fields are no
// options; any other exported field without a tag is an error, and so is an unknown key.
//
// Fields of type map[string]T, where T is a struct with tags, are dicts with free keys: each value is checked and
// converted as sub-options are.
func SpecOf(args any, rules Rules) (*Spec, error) {
	t := reflect.TypeOf(args)
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}

	if t == nil || t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("arguments are a struct, not %T", args)
	}

	return specOf(t, rules, nil)
}

// tables keeps the options of each struct: an agent needs them for every task, and reading tags is half of a small
// task's work. The rules are not part of it. Nobody may change an Option once its table is made.
var tables sync.Map // reflect.Type -> *Spec

// specOf makes the table for a struct; outer are the structs it is part of.
func specOf(t reflect.Type, rules Rules, outer []reflect.Type) (*Spec, error) {
	table, known := tables.Load(t)
	if !known {
		made, err := tableOf(t, outer)
		if err != nil {
			return nil, err
		}

		table, _ = tables.LoadOrStore(t, made)
	}

	spec := *table.(*Spec)
	spec.Rules = rules

	err := spec.check()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}

	return &spec, nil
}

// tableOf makes the options of a struct, without rules.
func tableOf(t reflect.Type, outer []reflect.Type) (*Spec, error) {
	if slices.Contains(outer, t) {
		return nil, fmt.Errorf("%s contains itself", t)
	}

	fields, err := fieldsOf(t)
	if err != nil {
		return nil, err
	}

	spec := &Spec{Options: map[string]*Option{}, SupportsCheckMode: true}

	for _, f := range fields {
		option, err := f.option(append(outer, t))
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, f.goName, err)
		}

		if spec.Options[option.Name] != nil {
			return nil, fmt.Errorf("%s: option %q occurs twice", t, option.Name)
		}

		spec.add(option)
	}

	return spec, nil
}

// add puts an option at the end of the table.
func (s *Spec) add(option *Option) {
	s.Options[option.Name] = option
	s.Order = append(s.Order, option)
}

// subSpec makes the table for a struct of sub-options.
func subSpec(t reflect.Type, outer []reflect.Type) (*Spec, error) {
	var rules Rules

	if ruled, ok := reflect.New(t).Interface().(Ruled); ok {
		rules = ruled.ArgumentRules()
	}

	return specOf(t, rules, outer)
}

// check finds names that clash and rules about options that do not exist.
func (s *Spec) check() error {
	taken := map[string]bool{}

	for name, option := range s.Options {
		for _, known := range append([]string{name}, option.Aliases...) {
			if taken[known] {
				return fmt.Errorf("the name %q is taken twice", known)
			}

			taken[known] = true
		}
	}

	for _, name := range s.Rules.names() {
		if s.Options[name] == nil {
			return fmt.Errorf("a rule names %q, which is not an option", name)
		}
	}

	for _, rule := range s.Rules.RequiredIf {
		value, err := plain(deepCopy(rule.Value), 0)
		if err == nil {
			err = s.Options[rule.Option].checkChoices(&value)
		}

		if err != nil {
			return fmt.Errorf("a rule about %q: %w", rule.Option, err)
		}
	}

	return nil
}

func (r Rules) names() []string {
	names := slices.Concat(slices.Concat(r.MutuallyExclusive...), slices.Concat(r.RequiredTogether...),
		slices.Concat(r.RequiredOneOf...))

	for _, rule := range r.RequiredIf {
		names = append(append(names, rule.Option), rule.Needs...)
	}

	for option, needs := range r.RequiredBy {
		names = append(append(names, option), needs...)
	}

	return names
}

// field is a struct field that is an option.
type field struct {
	goName string
	name   string
	flags  []string
	index  []int
	typ    reflect.Type
	tag    map[string]string
}

// fieldLists keeps what fieldsOf finds: a list of many dicts needs it for each of them.
var fieldLists sync.Map // reflect.Type -> []field

// fieldsOf lists the options of a struct, those of embedded structs included. Nobody may change what it gives.
func fieldsOf(t reflect.Type) ([]field, error) {
	if known, ok := fieldLists.Load(t); ok {
		return known.([]field), nil
	}

	fields, err := readFields(t)
	if err == nil {
		fieldLists.Store(t, fields)
	}

	return fields, err
}

// readFields reads the tags.
func readFields(t reflect.Type) ([]field, error) {
	var fields []field

	for i := range t.NumField() {
		f := t.Field(i)

		tag, err := parseTag(string(f.Tag))
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, f.Name, err)
		}

		text, tagged := tag["ansible"]

		switch {
		case text == "-" || !f.IsExported() && !tagged && !f.Anonymous:
			continue
		case f.Anonymous && !tagged:
			fields, err = appendEmbedded(fields, f, i)
		case !tagged || !f.IsExported():
			err = errors.New(`options are exported fields with an "ansible" tag ("-" for a field that is none)`)
		default:
			words := strings.Split(text, ",")
			fields = append(fields, field{
				goName: f.Name, name: words[0], flags: words[1:], index: []int{i}, typ: f.Type, tag: tag,
			})
		}

		if err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t, f.Name, err)
		}
	}

	return fields, nil
}

func appendEmbedded(fields []field, f reflect.StructField, position int) ([]field, error) {
	if f.Type.Kind() != reflect.Struct {
		return nil, errors.New("an embedded field is a struct, not a pointer to one")
	}

	inner, err := fieldsOf(f.Type)

	for _, option := range inner {
		option.index = append([]int{position}, option.index...)
		fields = append(fields, option)
	}

	return fields, err
}

var (
	tagPattern = regexp.MustCompile(`^\s*([^\s":]+):"((?:[^"\\]|\\.)*)"`)
	tagKeys    = []string{
		"ansible", "type", "elements", "default", "choices", "aliases", "env",
		"removed_in", "removed_at", "removed_from", "deprecated_aliases", "json", "yaml",
	}
)

// parseTag splits a struct tag. A misspelt key would silently change an option, so an unknown one is an error.
func parseTag(text string) (map[string]string, error) {
	tag := map[string]string{}

	for rest := text; strings.TrimSpace(rest) != ""; {
		match := tagPattern.FindStringSubmatch(rest)
		if match == nil {
			return nil, fmt.Errorf("tag %q is malformed", text)
		}

		if !slices.Contains(tagKeys, match[1]) {
			return nil, fmt.Errorf("tag key %q is unknown", match[1])
		}

		tag[match[1]] = reflect.StructTag(match[0]).Get(match[1])
		rest = rest[len(match[0]):]
	}

	return tag, nil
}

var optionName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)

// option makes the table entry of a field.
func (f field) option(outer []reflect.Type) (*Option, error) {
	form, err := shapeOf(f.typ)
	if err != nil {
		return nil, err
	}

	o := &Option{
		Name: f.name, Type: form.typ, Elements: form.elements, Secret: form.secret,
		Aliases: words(f.tag["aliases"]), Env: words(f.tag["env"]),
		RemovedIn: f.tag["removed_in"], RemovedAt: f.tag["removed_at"], RemovedFrom: f.tag["removed_from"],
	}

	if !optionName.MatchString(o.Name) {
		return nil, fmt.Errorf("%q is not a name for an option", o.Name)
	}

	err = errors.Join(o.setFlags(f.flags), o.setTypes(f.tag), o.setDeprecated(f.tag["deprecated_aliases"]))
	if err != nil {
		return nil, err
	}

	err = o.setSubOptions(form, outer)
	if err != nil {
		return nil, err
	}

	return o, errors.Join(o.setChoices(f.tag), o.setDefault(f))
}

// words splits a list in a tag.
func words(text string) []string {
	if text == "" {
		return nil
	}

	return strings.Split(text, ",")
}

func (o *Option) setFlags(flags []string) error {
	for _, flag := range flags {
		switch flag {
		case "required":
			o.Required = true
		case "secret":
			o.Secret = true
		case "apply_defaults":
			o.ApplyDefaults = true
		default:
			return fmt.Errorf("the word %q is unknown", flag)
		}
	}

	return nil
}

// kinds are the types that a value of the same Go kind can have.
var kinds = map[string]string{
	"str": "text", "path": "text", "json": "text", "int": "number", "bytes": "number", "bits": "number",
}

// setTypes takes over a type that the tag gives.
func (o *Option) setTypes(tag map[string]string) error {
	set := func(key string, into *string) error {
		name, given := tag[key]
		if !given {
			return nil
		}

		fits := kinds[name] != "" && kinds[name] == kinds[*into] || *into == "raw" || *into == "" && o.Type == "list"
		if converters[name] == nil || !fits {
			return fmt.Errorf("%s %q does not fit the Go type", key, name)
		}

		*into = name

		return nil
	}

	return errors.Join(set("elements", &o.Elements), set("type", &o.Type))
}

var datePattern = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}$`)

func (o *Option) setDeprecated(text string) error {
	for _, word := range words(text) {
		name, when, found := strings.Cut(word, "=")
		alias := DeprecatedAlias{Name: name, CollectionName: o.RemovedFrom}

		switch {
		case !found || name == "" || when == "":
			return fmt.Errorf(`deprecated_aliases %q is not of the form "name=version" or "name=date"`, word)
		case datePattern.MatchString(when):
			alias.Date = when
		default:
			alias.Version = when
		}

		o.Aliases = append(o.Aliases, name)
		o.DeprecatedAliases = append(o.DeprecatedAliases, alias)
	}

	return nil
}

func (o *Option) setSubOptions(form shape, outer []reflect.Type) error {
	var err error

	if form.options != nil {
		o.Options, err = subSpec(form.options, outer)
	}

	if form.values != nil {
		o.Values, err = subSpec(form.values, outer)
	}

	if o.ApplyDefaults && (o.Options == nil || o.Type != "dict") {
		return errors.New("apply_defaults needs sub-options")
	}

	return err
}

// setChoices reads each choice as the option would read it.
func (o *Option) setChoices(tag map[string]string) error {
	typ := o.Type
	if typ == "list" {
		typ = o.Elements
	}

	for _, word := range words(tag["choices"]) {
		value, err := converters[orStr(typ)](word, noLookup)
		if err != nil {
			return fmt.Errorf("choice %q: %w", word, err)
		}

		o.Choices = append(o.Choices, value)
	}

	return nil
}

// setDefault reads the default as the option would read it, and keeps the text where that depends on the host (path) or
// where users expect to see it (sizes, durations).
func (o *Option) setDefault(f field) error {
	text, given := f.tag["default"]
	if !given {
		return nil
	}

	if o.Required {
		return errors.New("a required option has no default")
	}

	value, err := o.convert(text, noLookup)
	if err == nil {
		err = o.checkChoices(&value)
	}

	if err == nil && f.typ == durationType {
		_, err = parseDuration(text)
	}

	if err != nil {
		return fmt.Errorf("default: %w", err)
	}

	o.HasDefault, o.Default = true, value

	switch late := []string{"path", "bytes", "bits"}; {
	case slices.Contains(late, o.Type):
		o.Default = text
	case slices.Contains(late, o.Elements):
		o.Default, err = toList(text)
	}

	return err
}

func noLookup(string) (string, bool) { return "", false }
