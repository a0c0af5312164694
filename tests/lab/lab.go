// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Config says which lab is meant. The zero value is the default lab, without an inventory.
type Config struct {
	// Name tells this lab's bridge and links from others'; default "thinkube".
	Name string
	// Hosts is how many hosts a new lab gets, n1 to nN; default 3. A lab that is up keeps its hosts.
	Hosts int
	// Subnet is a free IPv4 /24; default 10.77.0.0/24.
	Subnet netip.Prefix
	// Dir holds the lab; default $THINKUBE_LAB_DIR or /var/lib/thinkube-lab.
	Dir string
	// CacheDir holds base images and packages; default $THINKUBE_LAB_CACHE or /var/cache/thinkube-lab.
	CacheDir string
	// Inventory is where to write the Ansible inventory; empty for none. A lab that is up keeps its path.
	Inventory string
	// Log gets a line for each thing that takes a while; nil for none.
	Log io.Writer
}

var validName = regexp.MustCompile(`^[a-z][a-z0-9]{0,9}$`)

func (c Config) withDefaults() (Config, error) {
	c.Name = first(c.Name, "thinkube")
	c.Dir = first(c.Dir, os.Getenv("THINKUBE_LAB_DIR"), "/var/lib/thinkube-lab")
	c.CacheDir = first(c.CacheDir, os.Getenv("THINKUBE_LAB_CACHE"), "/var/cache/thinkube-lab")
	if c.Hosts == 0 {
		c.Hosts = 3
	}
	if !c.Subnet.IsValid() {
		c.Subnet = netip.MustParsePrefix("10.77.0.0/24")
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	var errs []error
	if !validName.MatchString(c.Name) {
		errs = append(errs, fmt.Errorf("lab name %q: must be 1 to 10 lower-case letters and digits, a letter first", c.Name))
	}
	if !c.Subnet.Addr().Is4() || c.Subnet.Bits() != 24 {
		errs = append(errs, fmt.Errorf("subnet %q: must be an IPv4 /24", c.Subnet))
	}
	if c.Hosts < 1 || c.Hosts > maxHosts {
		errs = append(errs, fmt.Errorf("%d hosts: must be 1 to %d", c.Hosts, maxHosts))
	}
	for _, dir := range []*string{&c.Dir, &c.CacheDir, &c.Inventory} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		errs = append(errs, err)
		// Overlay options and ssh options are lists; there is no need to quote what nobody wants.
		if strings.ContainsAny(abs, ",:\\ \t\n'\"") {
			errs = append(errs, fmt.Errorf("path %q: must have no spaces, commas, colons, quotes or backslashes", abs))
		}
		*dir = abs
	}
	c.Subnet = c.Subnet.Masked()
	return c, errors.Join(errs...)
}

// maxHosts is a bound on mistakes, not on the design.
const maxHosts = 20

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// Lab is a running (or half-running) lab. Its methods may be called by several processes at once:
// those that change something wait for each other.
type Lab struct {
	cfg   Config
	state *state
	image image
}

// KeyFile is the private key that root, admin and ops of every host accept.
func (l *Lab) KeyFile() string { return filepath.Join(l.cfg.Dir, "id_ed25519") }

// KnownHostsFile pins the hosts' keys.
func (l *Lab) KnownHostsFile() string { return filepath.Join(l.cfg.Dir, "known_hosts") }

// InventoryFile is the Ansible inventory the lab writes; empty when it writes none.
func (l *Lab) InventoryFile() string { return l.state.Inventory }

// OpsPassword is what sudo asks the user ops for; admin needs none.
func (l *Lab) OpsPassword() string { return l.state.OpsPassword }

// Host finds a host by name.
func (l *Lab) Host(name string) (*Host, error) {
	h := l.state.host(name)
	if h == nil {
		return nil, fmt.Errorf("no host %q in the lab", name)
	}
	return &Host{lab: l, state: *h}, nil
}

// Hosts are all hosts, in the order they joined.
func (l *Lab) Hosts() []*Host {
	var all []*Host
	for _, h := range l.state.Hosts {
		all = append(all, &Host{lab: l, state: h})
	}
	return all
}

// Open finds a lab that is there already; ErrNotUp when there is none.
func Open(cfg Config) (*Lab, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := readState(cfg.Dir)
	if err != nil {
		return nil, err
	}
	img, err := openImage(cfg.CacheDir, s.Image)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("base image %q of the lab is gone from %s: take the lab down", s.Image, cfg.CacheDir)
	}
	return &Lab{cfg: cfg, state: s, image: img}, err
}

// Up makes sure that the lab is there and every host answers on ssh; hosts that were stopped on purpose
// are started. It continues what a killed Up left half-done, and changes nothing on a lab that is up.
func Up(ctx context.Context, cfg Config) (*Lab, error) {
	if err := requirements(); err != nil {
		return nil, err
	}
	full, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(full.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l, err := Open(full)
	if errors.Is(err, ErrNotUp) {
		l, err = create(ctx, full)
	}
	if err != nil {
		return nil, err
	}
	if err := l.accepts(cfg); err != nil {
		return nil, err
	}
	if err := l.bringUp(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// accepts refuses a wish that the existing lab doesn't fulfil; what was not asked for is as it is.
func (l *Lab) accepts(asked Config) error {
	switch {
	case asked.Name != "" && asked.Name != l.state.Name:
		return fmt.Errorf("the lab in %s is called %q, not %q: take it down first, or set THINKUBE_LAB_DIR", l.cfg.Dir, l.state.Name, asked.Name)
	case asked.Subnet.IsValid() && asked.Subnet.Masked() != l.state.Subnet:
		return fmt.Errorf("the lab in %s has subnet %s, not %s: take it down first", l.cfg.Dir, l.state.Subnet, asked.Subnet)
	case asked.Hosts > len(l.state.Hosts):
		return fmt.Errorf("the lab has %d hosts, not %d: add hosts with `lab add`", len(l.state.Hosts), asked.Hosts)
	case asked.Inventory != "" && l.cfg.Inventory != l.state.Inventory:
		l.state.Inventory = l.cfg.Inventory
		return l.saveState()
	}
	return nil
}

// requirements says everything that is missing at once.
func requirements() error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("the lab needs root"))
	}
	for tool, pkg := range map[string]string{
		"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2",
		"ssh": "openssh-client", "ssh-keygen": "openssh-client", "nsenter": "util-linux",
		"mount": "mount", "perl": "perl-base", "apt-get": "apt", "dpkg-deb": "dpkg",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			errs = append(errs, fmt.Errorf("%q not found: install package %q", tool, pkg))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// create notes a new lab in its folder; nothing exists outside of it before.
func create(ctx context.Context, cfg Config) (*Lab, error) {
	img, err := ensureImage(ctx, cfg.CacheDir, cfg.Log)
	if err != nil {
		return nil, err
	}
	groups, err := labCgroups(cfg.Name)
	if err != nil {
		return nil, err
	}
	l := &Lab{cfg: cfg, image: img, state: &state{
		Name: cfg.Name, Subnet: cfg.Subnet, Image: filepath.Base(img.dir), Bridge: cfg.Name + "0",
		Cgroups: groups, Inventory: cfg.Inventory, OpsPassword: randomHex(8),
	}}
	for i := range cfg.Hosts {
		l.state.Hosts = append(l.state.Hosts, hostState{Name: fmt.Sprintf("n%d", i+1), Index: i + 1})
	}
	if err := l.checkFree(ctx); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(l.KeyFile()); err != nil {
		return nil, err
	}
	if err := makeKey(ctx, l.KeyFile(), "thinkube lab"); err != nil {
		return nil, err
	}
	return l, l.saveState()
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, says crypto/rand
	return hex.EncodeToString(b)
}

func makeKey(ctx context.Context, path, comment string) error {
	_, err := output(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
	return err
}

// bringUp takes whatever state the lab is in to all hosts ready.
func (l *Lab) bringUp(ctx context.Context) error {
	if err := l.raiseSysctls(ctx); err != nil {
		return fmt.Errorf("raising inotify limits: %w", err)
	}
	if err := l.ensureBridge(ctx); err != nil {
		return fmt.Errorf("creating bridge %q: %w", l.state.Bridge, err)
	}
	if err := l.eachHost(ctx, l.Hosts(), (*Host).ensureUp); err != nil {
		return err
	}
	if err := l.writeKnownHosts(); err != nil {
		return err
	}
	return l.writeInventory()
}

// eachHost does something on all hosts at once and returns all errors.
func (l *Lab) eachHost(ctx context.Context, hosts []*Host, do func(*Host, context.Context) error) error {
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := do(h, ctx); err != nil {
				errs[i] = fmt.Errorf("host %q: %w", h.Name(), err)
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *Lab) writeKnownHosts() error {
	var text strings.Builder
	for _, h := range l.Hosts() {
		key, err := os.ReadFile(filepath.Join(h.dir(), "host_key.pub"))
		if err != nil {
			return err
		}
		fields := strings.Fields(string(key))
		fmt.Fprintf(&text, "%s,%s %s %s\n", h.Address(), h.Name(), fields[0], fields[1])
	}
	have, err := os.ReadFile(l.KnownHostsFile())
	if err == nil && string(have) == text.String() {
		return nil
	}
	return writeFile(l.KnownHostsFile(), []byte(text.String()), 0o644)
}

// locked runs something that changes the lab, on the state as it is once the lock is had.
func (l *Lab) locked(do func() error) error {
	unlock, err := lock(l.cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	fresh, err := readState(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.state = fresh
	return do()
}

// HostOptions are what a host that joins later may differ in.
type HostOptions struct {
	// WithoutLXD boots a host on which LXD and BIND were never installed; its package source has them.
	WithoutLXD bool
}

// AddHost boots one more host. A host of that name that is there already must be of the same kind, and
// is made sure to be up.
func (l *Lab) AddHost(ctx context.Context, name string, opts HostOptions) (*Host, error) {
	err := l.locked(func() error {
		if have := l.state.host(name); have != nil {
			if have.WithoutLXD != opts.WithoutLXD {
				return fmt.Errorf("host %q exists, with LXD %t instead of %t", name, !have.WithoutLXD, !opts.WithoutLXD)
			}
		} else if err := l.noteHost(name, opts); err != nil {
			return err
		}
		return l.bringUp(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("adding host %q: %w", name, err)
	}
	return l.Host(name)
}

func (l *Lab) noteHost(name string, opts HostOptions) error {
	if name == "all" {
		return errors.New(`host name "all" means every host`)
	}
	if !validName.MatchString(name) || len(l.state.linkName(name)) > maxLinkName {
		return fmt.Errorf("host name %q: must be lower-case letters and digits, a letter first, and with %q at most %d long",
			name, l.state.Name+"-", maxLinkName)
	}
	if len(l.state.Hosts) >= maxHosts {
		return fmt.Errorf("a lab has at most %d hosts", maxHosts)
	}
	index := 0
	for _, h := range l.state.Hosts {
		index = max(index, h.Index)
	}
	l.state.Hosts = append(l.state.Hosts, hostState{Name: name, Index: index + 1, WithoutLXD: opts.WithoutLXD})
	return l.saveState()
}

// Down removes everything that Up made, also of a lab that is half there or damaged; that there is none
// is no error. With purge, the cache with the base image goes too.
func Down(ctx context.Context, cfg Config, purge bool) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	if err := down(ctx, cfg); err != nil {
		return fmt.Errorf("taking the lab down: %w", err)
	}
	if !purge {
		return nil
	}
	unlock, err := lock(cfg.CacheDir)
	if err != nil {
		return err
	}
	defer unlock()
	return os.RemoveAll(cfg.CacheDir)
}

func down(ctx context.Context, cfg Config) error {
	if _, err := os.Stat(cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := lock(cfg.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readState(cfg.Dir)
	if errors.Is(err, ErrNotUp) {
		return removeDir(cfg.Dir)
	}
	if err != nil {
		return err
	}
	l := &Lab{cfg: cfg, state: s}
	if err := l.eachHost(ctx, l.Hosts(), (*Host).kill); err != nil {
		return err
	}
	if err := killCgroups(ctx, s.Cgroups); err != nil {
		return err
	}
	if err := errors.Join(l.removeNetwork(ctx), l.restoreSysctls(ctx), l.detachLoops(ctx)); err != nil {
		return err
	}
	if l.state.Inventory != "" {
		// It names hosts that are gone.
		if err := os.Remove(l.state.Inventory); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return removeDir(cfg.Dir)
}

// removeDir removes the lab's folder, what says that there is a lab last: a removal that is cut is
// finished by the next one. A folder that holds anything else is not ours to remove.
func removeDir(dir string) error {
	for _, name := range []string{"hosts", "snapshots", "id_ed25519", "id_ed25519.pub", "known_hosts",
		"known_hosts.tmp", "lab.json.tmp", "lab.json", "lock"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the lab's folder: %w", err)
	}
	return nil
}

// detachLoops detaches loop devices on files of the lab, which LXD makes for storage pools. The kernel
// does it when the last mount goes, unless somebody attached the device by hand.
func (l *Lab) detachLoops(ctx context.Context) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(backing), l.cfg.Dir+"/") {
			continue
		}
		device := "/dev/" + strings.Split(file, "/")[3]
		if _, err := output(ctx, "losetup", "--detach", device); err != nil {
			return err
		}
	}
	return nil
}
