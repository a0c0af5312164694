// SPDX-License-Identifier: Apache-2.0

package pci

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

var (
	addressForm = regexp.MustCompile(`^(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])$`)
	numberForm  = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)
)

// ParseAddress reads a PCI address, "0000:01:00.0" or short "01:00.0" in domain 0000, and gives the long form. All parts
// are hexadecimal. (Domains of more than four digits are those that Linux makes up, for example for Intel's VMD.)
func ParseAddress(text string) (string, error) {
	lower := strings.ToLower(strings.TrimSpace(text))

	parts := addressForm.FindStringSubmatch(lower)
	if parts != nil {
		if parts[1] == "" {
			parts[1] = "0000"
		}

		return fmt.Sprintf("%s:%s:%s.%s", parts[1], parts[2], parts[3], parts[4]), nil
	}

	if numberForm.MatchString(lower) {
		// YAML 1.1 has numbers in base 60, and 01:00.0 is one (https://yaml.org/type/float.html).
		return "", fmt.Errorf("PCI address %q is a number: YAML reads 01:00.0 without quotes as one in base 60; write it in quotes, \"01:00.0\"", text)
	}

	return "", fmt.Errorf("PCI address %q: must be dddd:bb:dd.f or bb:dd.f in hexadecimal digits, for example \"0000:01:00.0\" or \"01:00.0\"", text)
}

// Slot gives the part of an address that all functions of a card share: "0000:01:00".
func Slot(address string) string {
	slot, _, _ := strings.Cut(address, ".")

	return slot
}

// Compare orders addresses by domain, bus, device and function.
func Compare(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// MisreadDecimal gives the address that is meant when somebody took the hexadecimal parts of one for decimal ones, as
// Xorg's BusID has them: 17:00.0 for 11:00.0. Empty when there is no such reading.
func MisreadDecimal(address string) string {
	parts := addressForm.FindStringSubmatch(address)
	if parts == nil {
		return ""
	}

	bus, err := strconv.Atoi(parts[2])
	device, errDevice := strconv.Atoi(parts[3])

	if err != nil || errDevice != nil || device > 31 {
		return ""
	}

	return fmt.Sprintf("%s:%02x:%02x.%s", parts[1], bus, device, parts[4])
}
