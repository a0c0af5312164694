// SPDX-License-Identifier: Apache-2.0

// Package dnstest starts real DNS servers for tests, BIND's named and Knot's knotd, on a loopback port with zones in a folder
// of their own; and servers that do not behave.
package dnstest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// Keys are what every server here knows: the name of each, and its algorithm.
var Keys = map[string]string{
	"update": "hmac-sha256", "transfer": "hmac-sha256", "small": "hmac-sha224", "large": "hmac-sha384", "huge": "hmac-sha512",
	"old": "hmac-md5", "stranger": "hmac-sha256",
}

// Secret gives a key's secret in base64. All but "transfer" and "stranger" may transfer and update; "transfer" may only
// transfer, "stranger" nothing.
func Secret(key string) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(key+"-secret-", 4)))
}

// Server is a running server.
type Server struct {
	Kind    string // named or knotd
	Port    int
	Dir     string
	Control string // rndc's configuration file, knotc's socket
	Log     string

	t testing.TB
}

// Zone is one that a server has.
type Zone struct {
	Name   string // with the dot at its end
	Text   string // its file; "" for MinimalZone
	Signed bool   // the server signs it (named only)
	Static bool   // it takes no updates
	Broken bool   // it cannot be loaded

	Template    bool   // what may be done with it stands in a template (knotd only)
	PrimaryPort int    // it comes from the server at this port; 0: from its file
	PrimaryKey  string // which key it is transferred with, none if it is Static there (named only)
}

// MinimalZone is the least that a zone has.
func MinimalZone(zone string) string {
	return fmt.Sprintf("$ORIGIN %s\n$TTL 3600\n@ SOA ns1 hostmaster 1 7200 900 1209600 300\n@ NS ns1\nns1 A 192.0.2.53\n", zone)
}

// Need skips the test where a tool is missing, and fails it under CI=true.
func Need(t testing.TB, tools ...string) {
	t.Helper()

	for _, tool := range tools {
		if Find(tool) != "" {
			continue
		}

		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; make deps installs it", tool)
		}

		t.Skipf("%s is missing; make deps installs it", tool)
	}
}

// Find gives the path of a tool, also where only root's PATH leads to; "" when it is missing.
func Find(tool string) string {
	for _, candidate := range []string{tool, "/usr/sbin/" + tool, "/sbin/" + tool} {
		path, err := exec.LookPath(candidate)
		if err == nil {
			return path
		}
	}

	return ""
}

// Start starts a server of a kind, named or knotd, and ends it with the test.
func Start(t testing.TB, kind string, zones ...Zone) *Server {
	t.Helper()

	if kind == "named" {
		Need(t, "named", "rndc", "named-checkzone", "dig", "nsupdate")
	} else {
		Need(t, "knotd", "knotc", "kzonecheck", "dig", "nsupdate")
	}

	s := &Server{Kind: kind, Port: freePort(t), Dir: t.TempDir(), t: t}
	s.Log = filepath.Join(s.Dir, "log")

	for _, zone := range zones {
		if zone.Text == "" {
			zone.Text = MinimalZone(zone.Name)
		}

		if zone.PrimaryPort == 0 {
			require.NoError(t, os.WriteFile(s.ZoneFile(zone.Name), []byte(zone.Text), 0o644))
		}
	}

	if kind == "named" {
		s.launch(s.namedConfig(zones), "-f")
	} else {
		s.Control = filepath.Join(s.Dir, "knot.sock")
		s.launch(s.knotConfig(zones))
	}

	s.waitReady(zones)

	return s
}

// StartResolver starts a named that gets a zone's records from one server, and believes them only when they are signed with the
// keys that another one has for it.
func StartResolver(t testing.TB, from, keys *Server, zone string) *Server {
	t.Helper()
	Need(t, "named", "rndc")

	var anchors strings.Builder

	require.Eventually(t, func() bool {
		answer, err := keys.Ask(zone, dns.TypeDNSKEY)
		if err != nil {
			return false
		}

		for _, rr := range answer.Answer {
			if key, ok := rr.(*dns.DNSKEY); ok {
				fmt.Fprintf(&anchors, "%s static-key %d %d %d \"%s\"; ", zone, key.Flags, key.Protocol, key.Algorithm, key.PublicKey)
			}
		}

		return anchors.Len() > 0
	}, 20*time.Second, 100*time.Millisecond, "the zone is signed")

	s := &Server{Kind: "named", Port: freePort(t), Dir: t.TempDir(), t: t}
	s.Log = filepath.Join(s.Dir, "log")
	options := fmt.Sprintf("recursion yes; dnssec-validation yes; forward only; forwarders port %d { 127.0.0.1; };", from.Port)
	s.launch(s.namedOptions(options)+fmt.Sprintf("trust-anchors { %s };\n", &anchors), "-f")
	s.waitReady(nil)

	return s
}

// launch starts the server with a configuration, and ends it with the test.
func (s *Server) launch(text string, more ...string) {
	t := s.t
	config := filepath.Join(s.Dir, s.Kind+".conf")
	require.NoError(t, os.WriteFile(config, []byte(text), 0o600))

	log, err := os.Create(s.Log)
	require.NoError(t, err)

	daemon := exec.Command(Find(s.Kind), append(more, "-c", config)...)
	daemon.Stdout, daemon.Stderr = log, log
	require.NoError(t, daemon.Start())
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		_ = log.Close()
	})
}

func freePort(t testing.TB) int {
	t.Helper()

	for range 20 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)

		port := listener.Addr().(*net.TCPAddr).Port
		packets, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		_ = listener.Close()

		if err == nil {
			_ = packets.Close()

			return port
		}
	}

	t.Fatal("no port is free for both TCP and UDP")

	return 0
}

// ZoneFile is where a zone is kept.
func (s *Server) ZoneFile(zone string) string { return filepath.Join(s.Dir, zone+"zone") }

// Include is a file that named includes.
func (s *Server) Include() string { return filepath.Join(s.Dir, "zones.conf") }

// namedOptions is what every named here has: folders of its own, and a control channel.
func (s *Server) namedOptions(more string) string {
	control := freePort(s.t)
	s.Control = filepath.Join(s.Dir, "rndc.conf")
	key := fmt.Sprintf("key \"control\" { algorithm hmac-sha256; secret \"%s\"; };\n", Secret("control"))
	require.NoError(s.t, os.WriteFile(s.Control, []byte(key+fmt.Sprintf(
		"options { default-key \"control\"; default-server 127.0.0.1; default-port %d; };\n", control)), 0o600))

	return fmt.Sprintf("options { directory \"%[1]s\"; listen-on port %[2]d { 127.0.0.1; }; listen-on-v6 { none; }; pid-file none;\n"+
		"session-keyfile \"%[1]s/session.key\"; managed-keys-directory \"%[1]s\"; key-directory \"%[1]s\"; %[3]s };\n%[4]s"+
		"controls { inet 127.0.0.1 port %[5]d allow { 127.0.0.1; } keys { \"control\"; }; };\n", s.Dir, s.Port, more, key, control)
}

func (s *Server) namedConfig(zones []Zone) string {
	var out strings.Builder

	out.WriteString(s.namedOptions("recursion no; dnssec-validation no; allow-new-zones yes;"))

	for name, algorithm := range Keys {
		fmt.Fprintf(&out, "key \"%s\" { algorithm %s; secret \"%s\"; };\n", name, algorithm, Secret(name))
	}

	require.NoError(s.t, os.WriteFile(s.Include(), []byte("// by hand\n"), 0o644))
	fmt.Fprintf(&out, "include \"%s\";\n", s.Include())

	for _, zone := range zones {
		if zone.PrimaryPort != 0 {
			key := ""
			if zone.PrimaryKey != "" {
				key = " key " + zone.PrimaryKey
			}

			fmt.Fprintf(&out, "zone \"%s\" { type secondary; file \"%s\"; primaries port %d { 127.0.0.1%s; }; };\n", zone.Name, s.ZoneFile(zone.Name), zone.PrimaryPort, key)

			continue
		}

		fmt.Fprintf(&out, "zone \"%s\" { type primary; file \"%s\"; ", zone.Name, s.ZoneFile(zone.Name))

		if zone.Static {
			out.WriteString("allow-transfer { any; }; ")
		} else {
			out.WriteString("allow-transfer { key transfer; key update; key small; key large; key huge; key old; }; " +
				"allow-update { key update; key small; key large; key huge; key old; }; ")
		}

		if zone.Signed {
			out.WriteString("dnssec-policy default; inline-signing yes; ")
		}

		out.WriteString("};\n")
	}

	return out.String()
}

func (s *Server) knotConfig(zones []Zone) string {
	var out strings.Builder

	fmt.Fprintf(&out, "server:\n  rundir: %s\n  listen: 127.0.0.1@%d\n  tcp-io-timeout: 20000\ncontrol:\n  listen: %s/knot.sock\ndatabase:\n  storage: %s\n"+
		"log:\n  - target: stderr\n    any: info\nkey:\n", s.Dir, s.Port, s.Dir, s.Dir)

	for name, algorithm := range Keys {
		fmt.Fprintf(&out, "  - id: %s\n    algorithm: %s\n    secret: %s\n", name, algorithm, Secret(name))
	}

	out.WriteString("acl:\n  - id: all\n    key: [update, small, large, huge, old]\n    action: [transfer, update]\n" +
		"  - id: read\n    key: transfer\n    action: transfer\n  - id: open\n    action: transfer\n" +
		"template:\n  - id: default\n  - id: all\n    acl: all\n")

	for i, zone := range zones {
		if zone.PrimaryPort != 0 {
			fmt.Fprintf(&out, "remote:\n  - id: primary%d\n    address: 127.0.0.1@%d\n", i, zone.PrimaryPort)
		}
	}

	out.WriteString("zone:\n")

	for i, zone := range zones {
		rights := "acl: [all, read]"

		switch {
		case zone.Static:
			rights = "acl: open"
		case zone.Template:
			rights = "template: all"
		case zone.PrimaryPort != 0:
			rights = fmt.Sprintf("master: primary%d", i)
		}

		fmt.Fprintf(&out, "  - domain: %s\n    file: %s\n    %s\n", zone.Name, s.ZoneFile(zone.Name), rights)
	}

	return out.String()
}

// waitReady asks until every zone is served.
func (s *Server) waitReady(zones []Zone) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		ready := true

		for _, zone := range zones {
			answer, err := s.Ask(zone.Name, dns.TypeSOA)
			ready = ready && err == nil && (zone.Broken || len(answer.Answer) > 0)
		}

		// A server without zones listens at least.
		conn, err := net.DialTimeout("tcp", s.Address(), time.Second)
		if err == nil {
			_ = conn.Close()
		}

		if ready && err == nil && s.controlled() {
			return
		}

		if time.Now().After(end) {
			text, _ := os.ReadFile(s.Log)
			s.t.Fatalf("%s did not come up:\n%s", s.Kind, text)
		}
	}
}

// controlled tells whether the server's own tool reaches it.
func (s *Server) controlled() bool {
	control := exec.Command(Find("rndc"), "-c", s.Control, "status")
	if s.Kind == "knotd" {
		control = exec.Command(Find("knotc"), "-s", s.Control, "status")
	}

	return control.Run() == nil
}

// Address is the server's, for TCP and UDP.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// Ask asks one question over UDP.
func (s *Server) Ask(name string, kind uint16) (*dns.Msg, error) {
	msg := new(dns.Msg)
	msg.SetQuestion(name, kind)

	answer, _, err := (&dns.Client{Timeout: 2 * time.Second}).Exchange(msg, s.Address())

	return answer, err
}

// Lookup gives the data of an answer as dig shows it, one record a line, sorted by dig itself.
func (s *Server) Lookup(name, kind string) string {
	s.t.Helper()

	return s.Run("dig", "+short", "+tcp", "-p", fmt.Sprint(s.Port), "@127.0.0.1", name, kind)
}

// Update runs nsupdate with the given lines, as somebody else would.
func (s *Server) Update(zone string, lines ...string) {
	s.t.Helper()

	script := fmt.Sprintf("server 127.0.0.1 %d\nzone %s\n%s\nsend\n", s.Port, zone, strings.Join(lines, "\n"))

	command := exec.Command(Find("nsupdate"), "-y", "hmac-sha256:update:"+Secret("update"))
	command.Stdin = strings.NewReader(script)

	output, err := command.CombinedOutput()
	require.NoError(s.t, err, "nsupdate: %s", output)
}

// AddZone adds a zone in a file to those that the server has, as somebody else would.
func (s *Server) AddZone(zone, file string) {
	s.t.Helper()

	if s.Kind == "named" {
		s.Run("rndc", "-c", s.Control, "addzone", zone, fmt.Sprintf("{ type primary; file %q; };", file))

		return
	}

	for _, words := range [][]string{{"conf-begin"}, {"conf-set", "zone[" + zone + "]"}, {"conf-set", "zone[" + zone + "].file", file}, {"conf-commit"}} {
		s.Run("knotc", append([]string{"-s", s.Control}, words...)...)
	}

	require.Eventually(s.t, func() bool {
		answer, err := s.Ask(zone, dns.TypeSOA)

		return err == nil && len(answer.Answer) > 0
	}, 10*time.Second, 20*time.Millisecond)
}

// Run runs a tool that has to succeed.
func (s *Server) Run(tool string, args ...string) string {
	s.t.Helper()

	var stdout, stderr bytes.Buffer

	command := exec.Command(Find(tool), args...)
	command.Stdout, command.Stderr = &stdout, &stderr
	require.NoError(s.t, command.Run(), "%s %q: %s%s", tool, args, &stdout, &stderr)

	return strings.TrimSpace(stdout.String())
}
