// SPDX-License-Identifier: Apache-2.0

package netconfig

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/netstate"
)

// judged is what renderNetworkd writes for a bridge br0 with port eth0.
func judged(t *testing.T) Judged {
	t.Helper()

	const applied = "/etc/systemd/network/10-uplink.network"

	config := Config{Manager: Networkd, Applied: applied, MAC: eth0.MAC, Files: []File{{Path: applied, Content: "[Match]\nName=eth0\n[Network]\nDHCP=yes\n"}}}
	wanted := Wanted{Bridge: "br0", Ports: []string{"eth0"}, MAC: eth0.MAC}

	changes, err := Render(config, wanted)
	require.NoError(t, err)

	expect, err := Expect(config, wanted)
	require.NoError(t, err)

	return Judged{
		Manager: Networkd, Changes: changes, Expect: expect,
		Links: []netstate.Link{{Name: "br0", Kind: "bridge", MAC: eth0.MAC}, {Name: "eth0", MAC: eth0.MAC}},
	}
}

// TestFilesThatComeBeforeOursAreFound has somebody else's files beside ours. What matters is which networkd takes.
func TestFilesThatComeBeforeOursAreFound(t *testing.T) {
	for name, each := range map[string]struct {
		path, content string
		taken         string // for which link
	}{
		"the bridge by its name":           {"/etc/systemd/network/01-a.network", "[Match]\nName=br0\n", "br0"},
		"the bridge by a pattern":          {"/run/systemd/network/01-a.network", "[Match]\nName=en* br?\n", "br0"},
		"all but another":                  {"/usr/lib/systemd/network/01-a.network", "[Match]\nName=!eth* wlan0\n", "br0"},
		"both by the MAC":                  {"/etc/systemd/network/01-a.network", "[Match]\nMACAddress=02:00:00:00:00:11 02:00:00:00:00:10\n", "br0"},
		"the port":                         {"/etc/systemd/network/01-a.network", "[Match]\nName=eth0\nMACAddress=02:00:00:00:00:10\n", "eth0"},
		"another bridge of the name":       {"/etc/systemd/network/01-a.netdev", "[NetDev]\nName=br0\nKind=vlan\n", "br0"},
		"after ours":                       {"/etc/systemd/network/50-a.network", "[Match]\nName=*\n", ""},
		"another link":                     {"/etc/systemd/network/01-a.network", "[Match]\nName=wlan0\n", ""},
		"another device":                   {"/etc/systemd/network/01-a.netdev", "[NetDev]\nName=br1\nKind=bridge\n", ""},
		"another MAC":                      {"/etc/systemd/network/01-a.network", "[Match]\nName=*\nMACAddress=02:00:00:00:00:11\n", ""},
		"a driver, which cannot be judged": {"/etc/systemd/network/01-a.network", "[Match]\nName=*\nDriver=virtio_net\n", ""},
		"nothing":                          {"/etc/systemd/network/01-a.network", "[Network]\nDHCP=yes\n", ""},
		"no pattern":                       {"/etc/systemd/network/01-a.network", "[Match]\nName=\n", ""},
		"no file of networkd's":            {"/etc/systemd/network/01-a.network.bak", "[Match]\nName=*\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := check(t.Context(), tree(t, map[string]string{each.path: each.content}), judged(t))
			if each.taken == "" {
				require.NoError(t, err)

				return
			}

			require.ErrorContains(t, err, `networkd would take file "`+each.path+`" for link "`+each.taken+`"`)
		})
	}
}

func TestFileThatIsMaskedIsNoRival(t *testing.T) {
	root := tree(t, map[string]string{"/usr/lib/systemd/network/01-a.network": "[Match]\nName=*\n", "/etc/systemd/network/x": ""})
	require.Error(t, check(t.Context(), root, judged(t)))
	require.NoError(t, os.Symlink("/dev/null", root+"/etc/systemd/network/01-a.network"))
	require.NoError(t, check(t.Context(), root, judged(t)))
}

// TestWayBackIsJudged has our files removed: the port's own is to be taken then.
func TestWayBackIsJudged(t *testing.T) {
	back := judged(t)
	files := map[string]string{"/etc/systemd/network/10-uplink.network": "[Match]\nName=eth0\n"}

	for i, change := range back.Changes {
		files[change.Path] = change.After.Content
		back.Changes[i] = Change{Path: change.Path, Before: change.After}
	}

	back.Expect = map[string]string{"eth0": "/etc/systemd/network/10-uplink.network"}
	back.Links = []netstate.Link{{Name: "eth0", MAC: eth0.MAC}}
	require.NoError(t, check(t.Context(), tree(t, files), back))

	files["/etc/systemd/network/07-other.network"] = "[Match]\nName=eth*\n"
	require.ErrorContains(t, check(t.Context(), tree(t, files), back), "07-other.network")
}

func TestFileThatWouldBeReadAsSomethingElseIsFound(t *testing.T) {
	for name, value := range map[string]string{"a line's end": "example.org\n[Match]\nName=*", "a line that goes on": `example.org \`, "spaces": " x"} {
		t.Run(name, func(t *testing.T) {
			spoiled := judged(t)
			for _, change := range spoiled.Changes {
				change.After.Content += "\n[Network]\nDomains=" + value + "\nSecret=hidden\n"
			}

			err := check(t.Context(), t.TempDir(), spoiled)
			require.ErrorContains(t, err, "would not be read as it is meant")
			assert.NotContains(t, err.Error(), "hidden")
		})
	}

	require.NoError(t, readBack([]Change{{Path: "/etc/x", After: &File{Content: "[A]\n b = c \\\n d\n"}}, {Path: "/etc/y"}}), "as somebody else wrote it")
}

func TestCopiedFilesReadInCopies(t *testing.T) {
	assert.Equal(t, "source /tmp/c/etc/network/interfaces.d/*\nsource-directory /tmp/c/etc/network/more\nsource /srv/x\nsource interfaces.d/y\niface source inet manual",
		sourceBelow("/tmp/c", "source /etc/network/interfaces.d/*\nsource-directory   /etc/network/more\nsource /srv/x\nsource interfaces.d/y\niface source inet manual"))
}

func TestValuesThatAreDroppedAreFound(t *testing.T) {
	wrote := parseINI("[ipv4]\naddress1=10.0.0.1/8,10.0.0.2\naddress2=10.0.0.1/8,10.0.0.2\nroute3=10.9.0.0/16\nroute3_options=table=7\n[ipv6]\naddress1=fd00::1/64\n")
	require.NoError(t, survived(wrote, parseINI("[ipv4]\naddress1=10.0.0.1/8,10.0.0.2\nroute1=10.9.0.0/16,0.0.0.0\n[ipv6]\naddress1=fd00::1/64\n")))
	require.ErrorContains(t, survived(wrote, parseINI("[ipv4]\naddress1=10.0.0.1/8\n[ipv6]\naddress1=fd00::1/64\n")), `0 of ["10.9.0.0/16"]`)
	require.ErrorContains(t, survived(wrote, parseINI("[ipv4]\naddress1=10.0.0.1/8\nroute1=x\n")), `0 of ["fd00::1/64"]`)
}
