// SPDX-License-Identifier: Apache-2.0

package ansible

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Decoded is what the arguments of a task turn into.
type Decoded struct {
	// Params has every option, with default or nil where it was not given, and every alias that was used. Values are nil,
	// bool, string, int64, *big.Int, float64 (infinity and NaN: a type that is encoded as text), []any, map[string]any.
	Params       map[string]any
	Warnings     []string
	Deprecations []Deprecation
	Secrets      []string // the texts that must not be shown, sorted
}

// Deprecation is shown by Ansible to whoever uses what will go away.
type Deprecation struct {
	Msg            string `json:"msg"`
	Version        string `json:"version,omitempty"`
	Date           string `json:"date,omitempty"`
	CollectionName string `json:"collection_name,omitempty"`
}

// SkipText is what a module without check mode says in check mode, instead of running. It matters only when the
// arguments are right.
func SkipText(moduleName string) string {
	return fmt.Sprintf("remote module (%s) does not support check mode", moduleName)
}

// Decode checks and converts a task's arguments in the order, and with the error texts, of ansible-core 2.19. raw is
// decoded JSON with numbers as json.Number; the lists and dicts in it become those of the result. Every key that starts with `_ansible_` is ignored.
//
// The result is never nil: with an error it holds what was known until then, and always all secrets, so that the error
// text can be masked. Only the first error is told, as in core; what core would have warned of after it is not.
//
// Core crashes on some arguments (a list given to a dict with sub-options, infinity given to an int); here they are
// ordinary errors. What is random in core has a fixed order: the valid booleans, the supported parameters when there are
// unsupported ones at several levels. The keys of a dict that becomes text are sorted. Not taken, though core does:
// digits of other scripts in numbers, [sign, digits, exponent] as an int, sets, bytes and complex numbers in a dict that
// is written as a Python literal. Nesting and numbers are bounded by maxDepth and maxDigits.
func (s *Spec) Decode(moduleName string, raw map[string]any) (*Decoded, error) {
	return s.DecodeEnv(moduleName, raw, os.LookupEnv)
}

// DecodeEnv is Decode with another environment, for what reads it: the env of an option, and `~` and $NAME in paths.
func (s *Spec) DecodeEnv(moduleName string, raw map[string]any, env Lookup) (*Decoded, error) {
	d := &decoder{env: env, out: &Decoded{Params: map[string]any{}}, secrets: secretSet{}}

	given := map[string]any{}

	for name, value := range raw {
		if !strings.HasPrefix(name, "_ansible_") {
			given[name] = value
		}
	}

	d.secrets.collect(s, given, true)

	err := d.decode(s, moduleName, given)

	if err != nil {
		d.secrets.collectUnused(s, env) // the error came before these were looked at
	}

	d.secrets.collect(s, d.out.Params, false)
	d.out.Secrets = slices.Sorted(maps.Keys(d.secrets))

	return d.out, err
}

// decoder is the state of one Decode.
type decoder struct {
	env     Lookup
	out     *Decoded
	unknown []unknown
	secrets secretSet
}

// unknown is an argument that is no option, with what its level has instead.
type unknown struct {
	name      string
	supported string
}

func (d *decoder) decode(s *Spec, moduleName string, given map[string]any) error {
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value, err := plain(given[name], 1)
		if err != nil {
			return fmt.Errorf("argument %q %w", name, err)
		}

		d.out.Params[validText(name)] = value
	}

	err := d.level(s, d.out.Params, nil)
	if err != nil {
		return err
	}

	return d.unsupported(moduleName)
}

// unsupported is the last of all errors: it is told only when nothing else is wrong.
func (d *decoder) unsupported(moduleName string) error {
	if d.unknown == nil {
		return nil
	}

	slices.SortFunc(d.unknown, func(a, b unknown) int { return strings.Compare(a.name, b.name) })

	var names []string
	for _, u := range d.unknown {
		names = append(names, u.name)
	}

	//lint:ignore ST1005 core's text
	return fmt.Errorf("Unsupported parameters for (%s) module: %s. Supported parameters include: %s.",
		moduleName, strings.Join(slices.Compact(names), ", "), d.unknown[0].supported)
}

// place is where in the arguments a level of options is; nil for the module's own. Only errors and warnings need words for it.
type place struct {
	outer  *place
	option *Option // whose sub-options these are
	index  int     // in a list
	key    string  // in a dict with free keys
}

// path are the names of the options around it.
func (p *place) path() []string {
	if p == nil {
		return nil
	}

	path := append(p.outer.path(), p.option.Name)
	if p.option.Values != nil {
		path = append(path, p.key)
	}

	return path
}

// prefix is the same with indexes, and a dot at the end: "subs[0].".
func (p *place) prefix() string {
	if p == nil {
		return ""
	}

	prefix := p.outer.prefix() + p.option.Name

	switch {
	case p.option.Values != nil:
		prefix += "." + p.key
	case p.option.Type == "list":
		prefix += fmt.Sprintf("[%d]", p.index)
	}

	return prefix + "."
}

// foundIn adds the place to an error, with words around it as core's texts have them.
func (p *place) foundIn(err error) error {
	if err == nil || p == nil {
		return err
	}

	return fmt.Errorf("%w found in %s", err, strings.Join(p.path(), " -> "))
}

// foundInQuoted is the form inside texts about types.
func (p *place) foundInQuoted(end string) string {
	if p == nil {
		return ""
	}

	return " found in '" + strings.Join(p.path(), " -> ") + "'" + end
}

// level works on the arguments of one level of options, then on those inside them. The order of the steps is core's; it
// decides which error is told.
func (d *decoder) level(s *Spec, params map[string]any, at *place) error {
	d.readEnv(s, params)
	d.resolveAliases(s, params, at)

	err := checkNested(s, params)
	if err != nil {
		return err
	}

	if at == nil {
		d.noteRemoved(s, params, "")
	}

	d.noteUnknown(s, params, at)

	err = s.Rules.exclusive(params)
	if err != nil {
		return at.foundIn(err)
	}

	s.fill(params, false)

	err = s.checkRequired(params)
	if err != nil {
		return at.foundIn(err)
	}

	err = d.convert(s, params, at)
	if err != nil {
		return err
	}

	err = s.checkChoices(params)
	if err == nil {
		err = s.Rules.dependent(params)
	}

	if err != nil {
		return at.foundIn(err)
	}

	s.fill(params, true)

	return d.nested(s, params, at)
}

// readEnv takes options that were not given from the environment.
func (d *decoder) readEnv(s *Spec, params map[string]any) {
	for _, option := range s.Order {
		for _, variable := range option.Env {
			value, found := d.env(variable)
			if _, ok := params[option.Name]; ok || !found {
				continue
			}

			params[option.Name] = validText(value)
		}
	}
}

// resolveAliases gives options the value of their alias, which wins over a value under the proper name.
func (d *decoder) resolveAliases(s *Spec, params map[string]any, at *place) {
	for _, option := range s.Order {
		for _, alias := range option.DeprecatedAliases {
			if _, used := params[alias.Name]; used {
				d.deprecate("Alias", at.prefix()+alias.Name, alias.Version, alias.Date, alias.CollectionName)
			}
		}

		for _, alias := range option.Aliases {
			value, used := params[alias]
			if !used {
				continue
			}

			if _, both := params[option.Name]; both {
				d.warn(fmt.Sprintf("Both option %[1]s%[2]s and its alias %[1]s%[3]s are set.", at.prefix(), option.Name, alias))
			}

			params[option.Name] = value
		}
	}
}

func (d *decoder) warn(text string) {
	if !slices.Contains(d.out.Warnings, text) {
		d.out.Warnings = append(d.out.Warnings, text)
	}
}

func (d *decoder) deprecate(what, name, version, date, collection string) {
	note := Deprecation{
		Msg:     fmt.Sprintf("%s '%s' is deprecated. See the module docs for more information", what, name),
		Version: version, Date: date, CollectionName: collection,
	}

	if !slices.Contains(d.out.Deprecations, note) {
		d.out.Deprecations = append(d.out.Deprecations, note)
	}
}

// nestedItems gives the values that have the sub-options of an option: the dict, or each item of the list.
func (o *Option) nestedItems(value any) []any {
	if value == nil || o.Options == nil {
		return nil
	}

	if list, ok := value.([]any); ok {
		return list
	}

	return []any{value}
}

// checkNested refuses what cannot hold sub-options, before anything else is looked at. Core does it when it looks for
// secrets inside, and for some of these values crashes later.
func checkNested(s *Spec, params map[string]any) error {
	for _, option := range s.Order {
		if option.Options == nil {
			continue
		}

		for _, item := range option.nestedItems(params[option.Name]) {
			dict, err := nestedDict(item)
			if err != nil {
				return err
			}

			if dict == nil {
				//lint:ignore ST1005 core's text
				return fmt.Errorf("Value '%s' in the sub parameter field '%s' must be a %s, not '%s'",
					pyText(item), option.Name, option.Type, typeName(item))
			}

			err = checkNested(option.Options, dict)
			if err != nil {
				return err
			}
		}
	}

	return nil
}

// nestedDict gives the dict that a value is or, as text, stands for; nil when it is of another type.
func nestedDict(value any) (map[string]any, error) {
	switch value.(type) {
	case string, map[string]any:
		return toDict(value)
	default:
		return nil, nil
	}
}

// noteRemoved finds options that will go, at every level at which the arguments already are dicts.
func (d *decoder) noteRemoved(s *Spec, params map[string]any, prefix string) {
	for _, option := range s.Order {
		if option.RemovedAt == "" && option.RemovedIn == "" && option.Options == nil {
			continue
		}

		value, given := params[option.Name]
		if !given {
			continue
		}

		label := option.Name
		if prefix != "" {
			label = fmt.Sprintf(`%s["%s"]`, prefix, option.Name)
		}

		switch {
		case option.RemovedAt != "":
			d.deprecate("Param", label, "", option.RemovedAt, option.RemovedFrom)
		case option.RemovedIn != "":
			d.deprecate("Param", label, option.RemovedIn, "", option.RemovedFrom)
		}

		for _, item := range option.nestedItems(value) {
			if dict, ok := item.(map[string]any); ok {
				d.noteRemoved(option.Options, dict, label)
			}
		}
	}
}

// noteUnknown finds arguments that are neither an option nor an alias.
func (d *decoder) noteUnknown(s *Spec, params map[string]any, at *place) {
	for name := range params {
		if s.Options[name] != nil {
			continue
		}

		aliases := s.aliases()
		if slices.Contains(aliases, name) {
			continue
		}

		supported := strings.Join(slices.Sorted(maps.Keys(s.Options)), ", ")
		if aliases != nil {
			supported += " (" + strings.Join(aliases, ", ") + ")"
		}

		d.unknown = append(d.unknown, unknown{strings.Join(append(at.path(), name), "."), supported})
	}
}

// aliases are those of all options, sorted.
func (s *Spec) aliases() []string {
	var aliases []string

	for _, option := range s.Order {
		aliases = append(aliases, option.Aliases...)
	}

	slices.Sort(aliases)

	return aliases
}

// fill sets the options that are not there: first only those with a default, which then count as given, and in the end
// all, with nil.
func (s *Spec) fill(params map[string]any, all bool) {
	for _, option := range s.Order {
		if !all && option.Default == nil {
			continue
		}

		if _, there := params[option.Name]; !there {
			params[option.Name] = deepCopy(option.Default)
		}
	}
}

func (s *Spec) checkRequired(params map[string]any) error {
	var missing []string

	for _, option := range s.Order {
		if !option.Required {
			continue
		}

		if _, there := params[option.Name]; !there {
			missing = append(missing, option.Name)
		}
	}

	if missing == nil {
		return nil
	}

	slices.Sort(missing)

	return fmt.Errorf("missing required arguments: %s", strings.Join(missing, ", "))
}

func orStr(typ string) string {
	if typ == "" {
		return "str"
	}

	return typ
}

// convert gives every option its type. Null stays null where the option is neither required nor has a default.
func (d *decoder) convert(s *Spec, params map[string]any, at *place) error {
	for _, option := range s.Order {
		value, there := params[option.Name]
		if !there || option.fits(value) || value == nil && !option.Required && option.Default == nil {
			continue
		}

		converted, err := option.convert(value, d.env)

		var item *itemError

		switch {
		case errors.As(err, &item):
			//lint:ignore ST1005 core's text
			return fmt.Errorf("Elements value for option '%s'%s is of type %s and we were unable to convert to %s: %w",
				option.Name, at.foundInQuoted(""), typeName(item.value), option.Elements, err)
		case err != nil:
			return fmt.Errorf("argument '%s' is of type %s%s and we were unable to convert to %s: %w",
				option.Name, typeName(value), at.foundInQuoted("."), orStr(option.Type), err)
		}

		params[option.Name] = converted
	}

	return nil
}

// fits tells whether a value has the option's type already, as most have.
func (o *Option) fits(value any) bool {
	switch value.(type) {
	case string:
		return orStr(o.Type) == "str"
	case bool:
		return o.Type == "bool"
	case []any:
		return o.Type == "list" && (o.Elements == "" || o.Elements == "raw")
	case map[string]any:
		return o.Type == "dict"
	default:
		return false
	}
}

// itemError is the conversion error of an item of a list.
type itemError struct {
	error
	value any
}

// convert gives a value the type of the option.
func (o *Option) convert(value any, env Lookup) (any, error) {
	converted, err := converters[orStr(o.Type)](value, env)
	if err != nil {
		return nil, err
	}

	list, ok := converted.([]any)
	if !ok || o.Type != "list" || o.Elements == "" {
		return converted, nil
	}

	out := make([]any, len(list))

	for i, item := range list {
		out[i], err = converters[o.Elements](item, env)
		if err != nil {
			return nil, &itemError{err, item}
		}
	}

	return out, nil
}

func (s *Spec) checkChoices(params map[string]any) error {
	for _, option := range s.Order {
		if option.Choices == nil {
			continue
		}

		value, there := params[option.Name]
		if !there {
			continue
		}

		err := option.checkChoices(&value)
		if err != nil {
			return err
		}

		params[option.Name] = value
	}

	return nil
}

// checkChoices compares a value, or each item of a list, with the choices. YAML turns a plain yes or no into a bool,
// which arrives here as 'True' or 'False': it is turned back where only one choice can have been meant.
func (o *Option) checkChoices(value *any) error {
	isChoice := func(item any) bool {
		return slices.ContainsFunc(o.Choices, func(choice any) bool { return pyEqual(choice, item) })
	}

	if list, ok := (*value).([]any); ok && o.Choices != nil {
		others := slices.DeleteFunc(slices.Clone(list), isChoice)
		if len(others) == 0 {
			return nil
		}

		return fmt.Errorf("value of %s must be one or more of: %s. Got no match for: %s", o.Name, joinText(o.Choices), joinText(others))
	}

	if o.Choices == nil || isChoice(*value) {
		return nil
	}

	if meant := o.choiceMeant(*value); meant != nil {
		*value = meant

		return nil
	}

	return fmt.Errorf("value of %s must be one of: %s, got: %s", o.Name, joinText(o.Choices), pyText(*value))
}

func (o *Option) choiceMeant(value any) any {
	var meant []any

	for _, choice := range o.Choices {
		known, isWord := choice.(bool)
		if word, ok := choice.(string); ok {
			known, isWord = booleans[word]
		}

		if isWord && value == pyText(known) {
			meant = append(meant, choice)
		}
	}

	if len(meant) != 1 {
		return nil
	}

	return meant[0]
}

func joinText(values []any) string {
	var texts []string

	for _, value := range values {
		texts = append(texts, pyText(value))
	}

	return strings.Join(texts, ", ")
}

// nested works on the sub-options of every option that has some.
func (d *decoder) nested(s *Spec, params map[string]any, at *place) error {
	for _, option := range s.Order {
		if option.ApplyDefaults && params[option.Name] == nil {
			params[option.Name] = map[string]any{}
		}

		var err error

		switch {
		case option.Values != nil:
			err = d.nestedValues(option, params[option.Name], at)
		case option.Options != nil:
			err = d.nestedOptions(option, params[option.Name], at)
		}

		if err != nil {
			return err
		}
	}

	return nil
}

func (d *decoder) nestedOptions(option *Option, value any, at *place) error {
	inside := &place{outer: at, option: option}

	for i, item := range option.nestedItems(value) {
		inside.index = i

		dict, ok := item.(map[string]any)
		if !ok {
			return fmt.Errorf("value of '%s' must be of type dict or list of dicts", option.Name)
		}

		err := d.level(option.Options, dict, inside)
		if err != nil {
			return err
		}
	}

	return nil
}

// nestedValues does the same for the values of a dict with free keys.
func (d *decoder) nestedValues(option *Option, value any, at *place) error {
	dict, _ := value.(map[string]any)

	for _, key := range slices.Sorted(maps.Keys(dict)) {
		item, err := toDict(dict[key])
		if err != nil {
			return fmt.Errorf("value '%s' of argument '%s' is of type %s%s and we were unable to convert to dict: %w",
				key, option.Name, typeName(dict[key]), at.foundInQuoted("."), err)
		}

		dict[key] = item

		err = d.level(option.Values, item, &place{outer: at, option: option, key: key})
		if err != nil {
			return err
		}
	}

	return nil
}
