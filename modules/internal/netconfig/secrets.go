// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// secretNames are what keys of secrets are called, or end in: NetworkManager's (nm-settings(5), also as netplan's
// passthrough has them), netplan's, networkd's (systemd.netdev(5)) and those of ifupdown's helpers for Wi-Fi.
const secretNames = `(?:[a-z0-9_.-]*(?:password|passwd|passphrase|psk|secrets?|preshared-?key|private-?key|wep[-_]?key[0-9]?|wireless-key[0-9]?|mka-cak|pin)(?:-raw)?|[a-z0-9_.-]*\.key|key[0-9]?|shared|private)`

var (
	secretKey = regexp.MustCompile(`(?i)^` + secretNames + `$`)
	// A line of its own, with what separates key and value in one of the managers' files.
	secretLine = regexp.MustCompile(`(?im)^[ \t]*["']?` + secretNames + `["']?(?:[ \t]*[:=][ \t]*|[ \t]+)(\S.*?)[ \t\r]*$`)
	// Somewhere in a line, as in YAML's flow style and in commands.
	secretInLine = regexp.MustCompile(`(?im)[\s{,"']` + secretNames + `["']?[ \t]*[:=][ \t]*("[^"\n]*"|'[^'\n]*'|[^\s,}"']+)`)
)

// shortest is how long a secret is at least, in characters: a WEP key has five (IEEE 802.11). A word that is shorter is no
// secret worth the name, and masking it would garble all else.
const shortest = 5

// Secrets finds passwords and keys in configuration files, which nobody is to see. It finds them as they are written and,
// in YAML, as they are meant.
func Secrets(text string) []string {
	var found []string

	add := func(secret string) {
		secret = strings.TrimSpace(secret)
		if len(secret) >= shortest && secret != "false" && !slices.Contains(found, secret) {
			found = append(found, secret)
		}
	}

	for _, pattern := range []*regexp.Regexp{secretLine, secretInLine} {
		for _, match := range pattern.FindAllStringSubmatch(text, -1) {
			if strings.HasPrefix(match[1], "{") || strings.HasPrefix(match[1], "[") {
				continue // more keys, which are looked at one by one
			}

			add(strings.Trim(match[1], `"'`))
		}
	}

	// All of a VPN's secrets are in one section, whatever they are called (nm-settings(5), vpn.secrets).
	for _, section := range parseINI(text) {
		for _, line := range section.lines {
			if section.name == "vpn-secrets" {
				add(line.value)
			}
		}
	}

	var document yaml.Node

	// What is no YAML may still be a file of another kind, which was gone through above.
	if yaml.Unmarshal([]byte(text), &document) == nil {
		walkSecrets(&document, false, func(node *yaml.Node) {
			add(node.Value)
			add(strings.ReplaceAll(node.Value, "'", "''")) // between single quotes

			// Over several lines, it is written with other spaces than it is meant with.
			if strings.ContainsAny(node.Value, " \n") && !strings.Contains(text, node.Value) {
				for _, word := range strings.Fields(node.Value) {
					add(word)
				}
			}
		})
	}

	return found
}

// walkSecrets gives all scalars under keys of secrets.
func walkSecrets(node *yaml.Node, secret bool, give func(*yaml.Node)) {
	switch node.Kind {
	case yaml.ScalarNode:
		if secret {
			give(node)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			walkSecrets(node.Content[i+1], secret || secretKey.MatchString(node.Content[i].Value), give)
		}
	default:
		// An alias stands for a node that is in the document as well, but perhaps under another key.
		if node.Alias != nil {
			node = &yaml.Node{Content: []*yaml.Node{node.Alias}}
		}

		for _, child := range node.Content {
			walkSecrets(child, secret, give)
		}
	}
}
