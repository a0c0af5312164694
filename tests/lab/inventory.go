// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"text/template"
)

//go:embed inventory.yaml.tmpl
var inventoryTemplate string

var inventory = template.Must(template.New("inventory.yaml.tmpl").Parse(inventoryTemplate))

// inventoryHost is one host as the template sees it.
type inventoryHost struct{ Name, Address string }

// renderInventory writes the Ansible inventory of the lab as text.
func (l *Lab) renderInventory() ([]byte, error) {
	var hosts []inventoryHost
	for _, h := range l.state.Hosts {
		hosts = append(hosts, inventoryHost{h.Name, l.state.address(h.Index).String()})
	}
	var text bytes.Buffer
	err := inventory.Execute(&text, map[string]any{
		"Hosts":      hosts,
		"Primary":    hosts[0],
		"Secondary":  hosts[1:],
		"Key":        l.KeyFile(),
		"KnownHosts": l.KnownHostsFile(),
		"Subnet":     l.state.Subnet.String(),
		"Gateway":    l.state.gateway().String(),
	})
	return text.Bytes(), err
}

// writeInventory leaves a file alone that says the right thing already.
func (l *Lab) writeInventory() error {
	path := l.state.Inventory
	if path == "" {
		return nil
	}
	want, err := l.renderInventory()
	if err != nil {
		return fmt.Errorf("rendering the inventory: %w", err)
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return writeFile(path, want, 0o644)
}
