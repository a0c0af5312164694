// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// tree writes files below a folder that stands for the host's root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()

	root := t.TempDir()

	for path, content := range files {
		path = filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}

	return root
}

func paths(config Config) []string {
	var found []string
	for _, file := range config.Files {
		found = append(found, file.Path)
	}

	return found
}

var eth0 = netstate.Link{Name: "eth0", Index: 2, MAC: "02:00:00:00:00:10"}

const uplinkProfile = "[connection]\nid=uplink\nuuid=1-2-3\n"

func TestFindsWhoManagesALink(t *testing.T) {
	for name, each := range map[string]struct {
		files map[string]string
		asked string
		want  Config
		read  []string
	}{
		"nobody": {files: map[string]string{"/etc/netplan/a.yaml": "network: {}"}, asked: "auto"},
		"networkd, with drop-ins and files of ours": {
			files: map[string]string{
				"/run/systemd/netif/links/2":             "# x\nNETWORK_FILE=/usr/lib/systemd/network/20-up.network\n",
				"/run/systemd/netif/leases/2":            "CLIENTID=ffb6d1e4cb00020000ab11\n",
				"/usr/lib/systemd/network/20-up.network": "[Network]\n", "/etc/systemd/network/20-up.network.d/b.conf": "[Network]\n",
				"/run/systemd/network/20-up.network.d/b.conf": "hidden", "/etc/systemd/network/05-thinkube-br0.netdev": "", "/etc/systemd/network/30-other.network": "",
			},
			asked: "auto", want: Config{Manager: Networkd, Applied: "/usr/lib/systemd/network/20-up.network", IAID: "3067208907"},
			read: []string{"/etc/systemd/network/05-thinkube-br0.netdev", "/etc/systemd/network/20-up.network.d/b.conf", "/usr/lib/systemd/network/20-up.network"},
		},
		"netplan over networkd": {
			files: map[string]string{
				"/run/systemd/netif/links/2": "NETWORK_FILE=/run/systemd/network/10-netplan-eth0.network\n", "/run/systemd/network/10-netplan-eth0.network": "",
				"/etc/netplan/50.yaml": "network: {}", "/lib/netplan/50.yaml": "hidden", "/run/netplan/10.yaml": "network: {}", "/etc/cloud/cloud.cfg.d/x": "",
			},
			asked: "auto", want: Config{Manager: Netplan, Renderer: Networkd, Applied: "/run/systemd/network/10-netplan-eth0.network", CloudInit: true},
			read: []string{"/etc/netplan/50.yaml", "/run/netplan/10.yaml"},
		},
		"NetworkManager": {
			files: map[string]string{
				"/run/NetworkManager/devices/2":                            "[device]\nmanaged=true\nconnection-uuid=1-2-3\nroute-metric-default-effective=100\n",
				"/etc/NetworkManager/system-connections/up.nmconnection":   uplinkProfile,
				"/etc/NetworkManager/system-connections/wlan.nmconnection": "[connection]\nuuid=4-5-6\n[wifi-security]\npsk=secret-word\n",
			},
			asked: "auto", want: Config{Manager: NetworkManager, Applied: "/etc/NetworkManager/system-connections/up.nmconnection", Profile: "1-2-3", Metric: "100"},
			read: []string{"/etc/NetworkManager/system-connections/up.nmconnection"},
		},
		"a profile in memory only": {
			files: map[string]string{"/run/NetworkManager/devices/2": "[device]\nconnection-uuid=7-8-9\n"},
			asked: "auto", want: Config{Manager: NetworkManager, Profile: "7-8-9"},
		},
		"a link that NetworkManager leaves alone": {
			files: map[string]string{"/run/NetworkManager/devices/2": "[device]\nmanaged=false\nconnection-uuid=7-8-9\n"}, asked: "auto",
		},
		"ifupdown": {
			files: map[string]string{"/run/network/ifstate": "lo=lo\neth0=eth0\n", "/etc/network/interfaces": "auto eth0\n", "/etc/network/interfaces.d/x": ""},
			asked: "auto", want: Config{Manager: Ifupdown, Applied: "/etc/network/interfaces"},
			read: []string{"/etc/network/interfaces", "/etc/network/interfaces.d/x"},
		},
		"another link of ifupdown": {files: map[string]string{"/run/network/ifstate": "lo=lo\neth00=eth00\n", "/etc/network/interfaces": ""}, asked: "auto"},
		"two of them": {
			files: map[string]string{
				"/run/network/ifstate": "eth0=eth0\n", "/etc/network/interfaces": "",
				"/run/systemd/netif/links/2": "NETWORK_FILE=/etc/systemd/network/a.network\n", "/etc/systemd/network/a.network": "",
			},
			asked: "auto", want: Config{Manager: Networkd, Applied: "/etc/systemd/network/a.network", Others: []string{Ifupdown}},
			read: []string{"/etc/systemd/network/a.network"},
		},
		"the one of two that was asked for": {
			files: map[string]string{
				"/run/network/ifstate": "eth0=eth0\n", "/etc/network/interfaces": "",
				"/run/systemd/netif/links/2": "NETWORK_FILE=/etc/systemd/network/a.network\n", "/etc/systemd/network/a.network": "",
			},
			asked: Ifupdown, want: Config{Manager: Ifupdown, Applied: "/etc/network/interfaces"}, read: []string{"/etc/network/interfaces"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Read(tree(t, each.files), eth0, "br0", each.asked)
			require.NoError(t, err)
			assert.Equal(t, each.read, paths(got))

			got.Files, each.want.MAC = nil, eth0.MAC
			assert.Equal(t, each.want, got)
		})
	}
}

func TestFilesThatCannotBeRestoredAreRefused(t *testing.T) {
	root := tree(t, map[string]string{"/run/network/ifstate": "eth0=eth0\n", "/elsewhere": ""})
	require.NoError(t, os.MkdirAll(root+"/etc/network", 0o755))
	require.NoError(t, os.Symlink("/elsewhere", root+"/etc/network/interfaces"))

	_, err := Read(root, eth0, "br0", "auto")
	require.ErrorContains(t, err, `"/etc/network/interfaces" is no regular file`)
}

func TestSecretsAreFound(t *testing.T) {
	for name, each := range map[string]struct {
		text string
		want []string
	}{
		"keyfile": {
			"[wifi-security]\npsk=secret-word\nkey-mgmt=wpa-psk\nwep-key0=abcde\npsk-flags=0\n[802-1x]\npassword=hunter22\nprivate-key-password = with space \n[vpn-secrets]\nxauth=of-a-vpn\n[gsm]\npin=1\n",
			[]string{"secret-word", "abcde", "hunter22", "with space", "of-a-vpn"},
		},
		"networkd":           {"[WireGuard]\nPrivateKey=abcdefgh=\n[WireGuardPeer]\nPresharedKey = ijklmnop=\nPublicKey=nosecret\n[MACsecTransmitAssociation]\nKey=00112233\n", []string{"abcdefgh=", "ijklmnop=", "00112233"}},
		"ifupdown":           {"iface wlan0 inet dhcp\n\twpa-ssid home\n\twpa-psk\tpass phrase \n    wireless-key s:abcde\n  wpa-key-mgmt WPA-PSK\n", []string{"pass phrase", "s:abcde"}},
		"ifupdown, commands": {"  up tool --user me --password=hunter22 # and so on\n", []string{"hunter22"}},
		"netplan":            {"network:\n  access-points:\n    x:\n      password: \"pass-phrase\"\n      auth: {key-management: psk, password: 'it''s me'}\n", []string{"pass-phrase", "it''s me", "it's me"}},
		"netplan, flow": {
			`network: {wifis: {wlan0: {access-points: {"home": {password: "flow of words"}, "other": {"password": plain-word}}}}}`, []string{"flow of words", "plain-word"},
		},
		"netplan, WireGuard": {
			"tunnels:\n  wg0:\n    key: 4GgaQCy68nzNsUE5aJ9fuLzHhB65tAlwbmA72MWnOm8=\n    peers:\n    - keys:\n        public: nosecret\n        shared: 7voRZ/ojfXgfPOlswo3Lpma1RJq7qijIEEUEMShQFV8=\n  wg1:\n    keys: {private: abcdefgh=, shared: ijklmnop=}\n",
			[]string{"4GgaQCy68nzNsUE5aJ9fuLzHhB65tAlwbmA72MWnOm8=", "7voRZ/ojfXgfPOlswo3Lpma1RJq7qijIEEUEMShQFV8=", "abcdefgh=", "ijklmnop="},
		},
		"netplan, passthrough": {
			"passthrough:\n  wifi-security.psk: \"dotted words\"\n  vpn-secrets.password: of-a-vpn\n  wifi-security.key-mgmt: wpa-psk\n  connection.secrets:\n    one: below-it\n",
			[]string{"dotted words", "of-a-vpn", "below-it"},
		},
		"YAML, over lines": {"password: \"first part\n  second part\"\n", []string{"first part", "first part second part", "first", "second"}},
		"YAML, alias":      {"a: &it not-hidden-here\npassword: *it\n", []string{"not-hidden-here"}},
		"YAML, block":      {"password: >-\n  block of words\n", []string{"block of words"}},
		"no YAML":          {"network: {wifis: {a: {password: 'torn off'\n", []string{"torn off"}},
		"commented out":    {"# psk=still-a-secret\n", []string{"still-a-secret"}},
		"nothing":          {"network:\n  ethernets:\n    eth0:\n      dhcp4: true\n      dhcp-identifier: mac\n      shared: false\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			assert.ElementsMatch(t, each.want, Secrets(each.text))
		})
	}
}

func TestLinesThatGoOnAreJoined(t *testing.T) {
	assert.Equal(t, []section{{"Network", []setting{{"DNS", "1.1.1.1  2.2.2.2"}, {"DHCP", "yes"}}}, {"Network", []setting{{"Address", "10.0.0.1/8"}}}},
		parseINI("; x\nstray=1\n[Network]\nDNS=1.1.1.1 \\\n# in between\n 2.2.2.2\r\nDHCP = yes\n[Network]\nAddress=10.0.0.1/8"))
}

// FuzzINI reads what it writes.
func FuzzINI(f *testing.F) {
	f.Add("[Match]\nName=eth0\n\n[Network]\nAddress=10.0.0.1/24\n# x\nDNS=1 \\\n 2\n")
	f.Fuzz(func(t *testing.T, text string) {
		once := renderINI(parseINI(text))
		if strings.Contains(once, `\`) {
			t.Skip("a backslash at the end of a line means another thing each time")
		}

		require.Equal(t, once, renderINI(parseINI(once)))
	})
}

// FuzzRender finds no input on which a renderer gives up in another way than by an error.
func FuzzRender(f *testing.F) {
	f.Add("network: {version: 2, ethernets: {eth0: {dhcp4: true, match: {name: eth0}}}}", 0)
	f.Add("[Match]\nName=eth0\n[Network]\nDHCP=yes\n", 1)
	f.Add("[connection]\nuuid=1\n[ipv4]\naddress1=10.0.0.1/8,10.0.0.2\n", 2)
	f.Add("auto eth0\niface eth0 inet static\n address 10.0.0.1/8\n", 3)
	f.Fuzz(func(t *testing.T, text string, which int) {
		manager := Managers[(which%4+4)%4]
		path := map[string]string{
			Netplan: "/etc/netplan/a.yaml", Networkd: "/etc/systemd/network/10-a.network", NetworkManager: keyfileFolders[0] + "/a", Ifupdown: interfacesFile,
		}[manager]
		config := Config{Manager: manager, Renderer: Networkd, Applied: path, Files: []File{{Path: path, Content: text}}, MAC: eth0.MAC}
		gateway := "10.0.0.2"

		routes := []Route{{To: "10.8.0.0/16", Via: "10.0.0.3", Table: 100, Metric: 50, OnLink: true}, {To: "2001:db8::/32", Metric: 7}}

		for _, ip := range []IP{{}, {Routes: routes}, {Addresses: []string{"10.0.0.9/8", "fd00::9/64"}, Gateway4: &gateway, Nameservers: []string{"::1"}, Routes: routes[:1], IPv6: "off"}} {
			changes, err := Render(config, Wanted{Bridge: "br0", Ports: []string{"eth0"}, MAC: eth0.MAC, VLANFiltering: true, IP: ip})
			if err == nil {
				require.NotEmpty(t, changes)
				require.True(t, strings.HasPrefix(changes[0].Path, "/etc/"))
			}
		}
	})
}
