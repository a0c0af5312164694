// SPDX-License-Identifier: Apache-2.0

// Package bootloader knows where boot loaders have the kernel command line from: what the entries say that the host will
// start with, and the file or tool that changes it. Lines are lists of parameters here; nobody's line is rewritten where the
// loader has a place for additions.
package bootloader

import (
	"slices"
	"strings"
)

// Split divides a kernel command line into parameters. Space between double quotes is part of one, as the kernel has it
// (lib/cmdline.c, next_arg).
func Split(line string) []string {
	var (
		words  []string
		word   strings.Builder
		quoted bool
	)

	for _, char := range line {
		switch {
		case char == '"':
			quoted = !quoted

			word.WriteRune(char)
		case !quoted && strings.ContainsRune(" \t\n\r\v\f", char):
			if word.Len() > 0 {
				words = append(words, word.String())
				word.Reset()
			}
		default:
			word.WriteRune(char)
		}
	}

	if word.Len() > 0 {
		words = append(words, word.String())
	}

	return words
}

// Name gives a parameter's name, in the one spelling that is compared: the kernel takes - and _ for the same.
func Name(parameter string) string {
	name, _, _ := strings.Cut(parameter, "=")

	return strings.ReplaceAll(name, "-", "_")
}

// Matches tells whether a parameter is meant: by all of it, or by its name alone, which stands for every value.
func Matches(parameter, pattern string) bool {
	if strings.Contains(pattern, "=") {
		return parameter == pattern
	}

	return Name(parameter) == Name(pattern)
}

// Edit gives a line with the parameters added at its end that it lacks, and without those that match. Everything else
// stays in its order.
func Edit(line, present, absent []string) []string {
	edited := slices.DeleteFunc(slices.Clone(line), func(parameter string) bool { return matchesAny(parameter, absent) })

	for _, parameter := range present {
		if !slices.Contains(edited, parameter) {
			edited = append(edited, parameter)
		}
	}

	return edited
}

func matchesAny(parameter string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return Matches(parameter, pattern) })
}

// Lacks says what of a line is not as wanted, a few words each.
func Lacks(line, present, absent []string) []string {
	var lacks []string

	for _, parameter := range present {
		if !slices.Contains(line, parameter) {
			lacks = append(lacks, parameter+" is missing")
		}
	}

	for _, parameter := range line {
		if matchesAny(parameter, absent) && !slices.Contains(lacks, parameter+" is there") {
			lacks = append(lacks, parameter+" is there")
		}
	}

	return lacks
}
