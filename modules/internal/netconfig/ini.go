// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"strings"
)

// section is one [Section] of a file in the form that systemd and NetworkManager use.
type section struct {
	name  string
	lines []setting
}

type setting struct{ key, value string }

// parseINI keeps sections and settings in their order, also those that come twice: both mean something to systemd.
// Comments are dropped, lines that go on with a backslash are joined (systemd.syntax(7)).
func parseINI(text string) []section {
	var sections []section

	text = strings.ReplaceAll(text, "\r\n", "\n")
	pending := ""

	for _, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)

		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue
		}

		if strings.HasSuffix(trimmed, `\`) {
			pending += strings.TrimSuffix(trimmed, `\`) + " "

			continue
		}

		trimmed = pending + trimmed
		pending = ""

		if strings.HasPrefix(trimmed, "[") && strings.HasSuffix(trimmed, "]") {
			sections = append(sections, section{name: trimmed[1 : len(trimmed)-1]})

			continue
		}

		key, value, ok := strings.Cut(trimmed, "=")
		if ok && len(sections) > 0 {
			last := &sections[len(sections)-1]
			last.lines = append(last.lines, setting{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}

	return sections
}

// renderINI writes the sections that have something to say.
func renderINI(sections []section) string {
	var text strings.Builder

	for _, one := range sections {
		if len(one.lines) == 0 {
			continue
		}

		if text.Len() > 0 {
			text.WriteString("\n")
		}

		text.WriteString("[" + one.name + "]\n")

		for _, line := range one.lines {
			text.WriteString(line.key + "=" + line.value + "\n")
		}
	}

	return text.String()
}

// get gives a setting's last value.
func (s section) get(key string) string {
	value := ""

	for _, line := range s.lines {
		if line.key == key {
			value = line.value
		}
	}

	return value
}

func (s *section) add(key, value string) { s.lines = append(s.lines, setting{key, value}) }

// set replaces all settings of the key by one.
func (s *section) set(key, value string) {
	s.remove(func(line setting) bool { return line.key == key })
	s.add(key, value)
}

func (s *section) remove(drop func(setting) bool) {
	var kept []setting

	for _, line := range s.lines {
		if !drop(line) {
			kept = append(kept, line)
		}
	}

	s.lines = kept
}

// find gives the first section of that name, and makes one when there is none.
func find(sections *[]section, name string) *section {
	for i := range *sections {
		if (*sections)[i].name == name {
			return &(*sections)[i]
		}
	}

	*sections = append(*sections, section{name: name})

	return &(*sections)[len(*sections)-1]
}
