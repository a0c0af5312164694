// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

const (
	ownPrefix  = "github.com/thinkube/infra/"
	sdkPackage = ownPrefix + "modules/internal/ansible"
)

// source is what the failure codes in one package's source are.
type source struct {
	declared map[string]ansible.Code // by the constant's name
	used     []usedCode
	imports  []string // packages of this repository
}

// usedCode is a constant that the package gives to a failure: its package ("" for its own), its name and where.
type usedCode struct{ from, name, where string }

// TestModulesGiveTheCodesTheyList reads the source of every module and of what it imports: each failure code in there
// is on the module's list, and each on the list is given somewhere.
func TestModulesGiveTheCodesTheyList(t *testing.T) {
	sources := map[string]*source{}

	forEachModule(t, func(t *testing.T, module ansible.Runner) {
		listed := map[ansible.Code]string{}
		maps.Copy(listed, ansible.CommonCodes)
		maps.Copy(listed, module.FailureCodes())

		given := map[ansible.Code]bool{}

		for _, name := range reachable(t, sources, ownPrefix+"modules/"+module.ModuleName()) {
			for _, use := range sources[name].used {
				code, ok := codeOf(t, sources, name, use)
				if !ok {
					continue
				}

				given[code] = true

				assert.Contains(t, listed, code, "%s gives %q, which is not on the module's list", use.where, code)
			}
		}

		for code := range module.FailureCodes() {
			assert.True(t, given[code], "%q is on the module's list and never given", code)
		}
	})
}

// reachable gives a package and all it imports from this repository, without the SDK and what is only for tests.
func reachable(t *testing.T, sources map[string]*source, start string) []string {
	t.Helper()

	found := []string{start}

	for i := 0; i < len(found); i++ {
		for _, name := range readSource(t, sources, found[i]).imports {
			if name != sdkPackage && !slices.Contains(found, name) {
				found = append(found, name)
			}
		}
	}

	return found
}

func codeOf(t *testing.T, sources map[string]*source, user string, use usedCode) (ansible.Code, bool) {
	t.Helper()

	from := use.from
	if from == "" {
		from = user
	}

	code, ok := readSource(t, sources, from).declared[use.name]

	return code, ok
}

func readSource(t *testing.T, sources map[string]*source, name string) *source {
	t.Helper()

	if sources[name] != nil {
		return sources[name]
	}

	read := &source{declared: map[string]ansible.Code{}}
	sources[name] = read

	folder := filepath.Join(root, strings.TrimPrefix(name, ownPrefix))

	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	require.NoError(t, err)
	require.NotEmpty(t, paths, folder)

	for _, each := range paths {
		if strings.HasSuffix(each, "_test.go") {
			continue
		}

		files := token.NewFileSet()

		file, err := parser.ParseFile(files, each, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		read.add(t, files, file)
	}

	return read
}

func (s *source) add(t *testing.T, files *token.FileSet, file *ast.File) {
	t.Helper()

	imports := map[string]string{}

	for _, each := range file.Imports {
		name, err := strconv.Unquote(each.Path.Value)
		require.NoError(t, err)

		if !strings.HasPrefix(name, ownPrefix) {
			continue
		}

		local := path.Base(name)
		if each.Name != nil {
			local = each.Name.Name
		}

		imports[local] = name
		s.imports = append(s.imports, name)
	}

	listed := map[ast.Node]bool{} // keys of the list itself, and names that are declared

	ast.Inspect(file, func(node ast.Node) bool {
		if listed[node] {
			return false
		}

		switch node := node.(type) {
		case *ast.ValueSpec:
			s.declare(t, node)

			for _, name := range node.Names {
				listed[name] = true
			}
		case *ast.CompositeLit:
			markKeys(node, listed)
		case *ast.CallExpr:
			assertConstant(t, files, node)
		case *ast.SelectorExpr:
			if name, ok := node.X.(*ast.Ident); ok && imports[name.Name] != "" {
				s.use(imports[name.Name], node.Sel, files)

				return false
			}
		case *ast.Ident:
			s.use("", node, files)
		}

		return true
	})
}

// declare notes constants of type Code.
func (s *source) declare(t *testing.T, spec *ast.ValueSpec) {
	t.Helper()

	typ, ok := spec.Type.(*ast.SelectorExpr)
	if ident, isIdent := spec.Type.(*ast.Ident); !(ok && typ.Sel.Name == "Code") && !(isIdent && ident.Name == "Code") {
		return
	}

	for i, name := range spec.Names {
		literal, ok := spec.Values[i].(*ast.BasicLit)
		require.True(t, ok, "%s is not a literal", name.Name)

		value, err := strconv.Unquote(literal.Value)
		require.NoError(t, err)

		s.declared[name.Name] = ansible.Code(value)
	}
}

// markKeys marks the keys of a map of codes to their meaning.
func markKeys(literal *ast.CompositeLit, listed map[ast.Node]bool) {
	typ, ok := literal.Type.(*ast.MapType)
	if !ok {
		return
	}

	if key, ok := typ.Key.(*ast.SelectorExpr); !ok || key.Sel.Name != "Code" {
		return
	}

	for _, element := range literal.Elts {
		if pair, ok := element.(*ast.KeyValueExpr); ok {
			listed[pair.Key] = true
		}
	}
}

// assertConstant refuses a code that is written out where it is given, since no list could have it.
func assertConstant(t *testing.T, files *token.FileSet, call *ast.CallExpr) {
	t.Helper()

	function, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 || function.Sel.Name != "Fail" && function.Sel.Name != "Code" {
		return
	}

	if of, ok := function.X.(*ast.Ident); !ok || of.Name != "ansible" {
		return
	}

	_, literal := call.Args[0].(*ast.BasicLit)
	assert.False(t, literal, "%s: a failure code that is no constant", files.Position(call.Pos()))
}

func (s *source) use(from string, name *ast.Ident, files *token.FileSet) {
	if strings.HasPrefix(name.Name, "Code") {
		s.used = append(s.used, usedCode{from, name.Name, files.Position(name.Pos()).String()})
	}
}
