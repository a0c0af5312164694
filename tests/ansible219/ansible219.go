// SPDX-License-Identifier: Apache-2.0

// Package ansible219 gives tests a second, newer ansible-core (2.19, from Debian trixie) beside the installed one.
//
// It is the distribution's package, fetched and verified by apt with lists of its own and unpacked into a cache
// folder. ansible-core is pure Python and 2.19 runs on Debian 12's Python and its libraries, so neither a chroot nor
// root is needed, and it can be put into any environment, also ansible-runner's.
package ansible219

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	release = "trixie"
	keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	python  = "usr/lib/python3/dist-packages"
)

// Environment returns environ (as os.Environ gives it) changed so that ansible-playbook, ansible-galaxy and the others
// are those of ansible-core 2.19. The first call on a machine needs apt and the network; later ones use the cache.
func Environment(ctx context.Context, environ []string) ([]string, error) {
	root, err := install(ctx)
	if err != nil {
		return nil, fmt.Errorf("getting ansible-core from Debian %s: %w", release, err)
	}

	path := os.Getenv("PATH")
	kept := []string{}

	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "PATH":
			path = value
		case "PYTHONPATH":
		default:
			kept = append(kept, entry)
		}
	}

	bin := filepath.Join(root, "usr/bin")

	return append(kept, "PATH="+bin+":"+path, "PYTHONPATH="+filepath.Join(root, python)), nil
}

// install returns the folder of the unpacked package.
func install(ctx context.Context) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}

	unlock, err := lock(cache + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()

	root := filepath.Join(cache, "root")

	_, err = os.Stat(filepath.Join(root, python, "ansible"))
	if err == nil {
		return root, nil
	}

	work, err := os.MkdirTemp(filepath.Dir(cache), "trixie-ansible-*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)

	err = unpack(ctx, work)
	if err != nil {
		return "", err
	}

	// Renamed when complete: a killed run leaves nothing that looks finished.
	return root, errors.Join(os.RemoveAll(cache), os.Rename(work, cache))
}

// cacheFolder is the lab's cache for root and the user's own otherwise.
func cacheFolder() (string, error) {
	base := "/var/cache/thinkube-lab"

	if os.Geteuid() != 0 {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}

		base = filepath.Join(user, "thinkube-lab")
	}

	return filepath.Join(base, "trixie-ansible"), os.MkdirAll(base, 0o755)
}

func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}

	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}

	return func() { _ = file.Close() }, nil
}

// unpack fetches the package with an apt whose lists, sources and state are all below work.
func unpack(ctx context.Context, work string) error {
	mirror, err := mirror(ctx)
	if err != nil {
		return err
	}

	for _, folder := range []string{"apt/lists/partial", "apt/archives/partial", "root"} {
		err = os.MkdirAll(filepath.Join(work, folder), 0o755)
		if err != nil {
			return err
		}
	}

	apt := filepath.Join(work, "apt")
	files := map[string]string{
		"status":       "",
		"sources.list": fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, release),
		"apt.conf": fmt.Sprintf(`Dir::Etc::sourcelist "%[1]s/sources.list"; Dir::Etc::sourceparts "-";
Dir::State "%[1]s"; Dir::State::status "%[1]s/status"; Dir::Cache "%[1]s"; APT::Sandbox::User "";
`, apt),
	}

	for name, text := range files {
		err = os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644)
		if err != nil {
			return err
		}
	}

	script := `apt-get update -q && apt-get download -q ansible-core && dpkg-deb --extract ansible-core_*.deb ../root && cd .. && rm -r apt`
	command := exec.CommandContext(ctx, "sh", "-ec", script)
	command.Dir = apt
	command.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(apt, "apt.conf"))

	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}

	return nil
}

// mirror is the one from which this machine itself has its distribution.
func mirror(ctx context.Context) (string, error) {
	format := "$(REPO_URI) $(RELEASE) $(COMPONENT)"

	output, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", format, "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("asking apt for its sources: %w", err)
	}

	codename, err := exec.CommandContext(ctx, "sh", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`).Output()
	if err != nil {
		return "", fmt.Errorf("reading os-release: %w", err)
	}

	for _, line := range strings.Split(string(output), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[1] == strings.TrimSpace(string(codename)) && fields[2] == "main" {
			return fields[0], nil
		}
	}

	return "", fmt.Errorf("apt has no source for %q main", strings.TrimSpace(string(codename)))
}
