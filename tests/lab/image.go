// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// suite is the Debian release that the hosts run.
const suite = "bookworm"

//go:embed image/build.sh
var recipe []byte

// image is a finished base image: base/ is a root file system, lxd/ the layer with LXD and BIND on top.
type image struct{ dir string }

// lowers are the read-only layers of a host, topmost first.
func (i image) lowers(withoutLXD bool) []string {
	base, lxd := filepath.Join(i.dir, "base"), filepath.Join(i.dir, "lxd")
	if withoutLXD {
		return []string{base}
	}
	return []string{lxd, base}
}

func imageKey() string {
	sum := sha256.Sum256(slices.Concat(recipe, []byte(suite+runtime.GOARCH)))
	return suite + "-" + hex.EncodeToString(sum[:6])
}

// BaseImage gives the folder of the lab's Debian without LXD, and builds it first when it is not cached. Others may lay
// something over it; it must not be changed. What takes time is told to log.
func BaseImage(ctx context.Context, log io.Writer) (string, error) {
	cfg, err := Config{Log: log}.withDefaults()
	if err != nil {
		return "", err
	}
	img, err := ensureImage(ctx, cfg.CacheDir, cfg.Log)
	return filepath.Join(img.dir, "base"), err
}

// openImage finds a built image by its key.
func openImage(cache, key string) (image, error) {
	dir := filepath.Join(cache, "images", key)
	if _, err := os.Stat(dir); err != nil {
		return image{}, err
	}
	return image{dir}, nil
}

// ensureImage returns the image of the current recipe, and builds it first when it is not cached. An
// image has its name only when it is complete: a build that was cut leaves nothing that is ever used.
func ensureImage(ctx context.Context, cache string, log io.Writer) (image, error) {
	key := imageKey()
	if img, err := openImage(cache, key); err == nil {
		return img, nil
	}
	unlock, err := lock(cache)
	if err != nil {
		return image{}, err
	}
	defer unlock()
	if img, err := openImage(cache, key); err == nil {
		return img, nil // somebody else has built it while we waited
	}
	fmt.Fprintf(log, "building the base image %s (once; a minute or two)\n", key)
	tmp := filepath.Join(cache, "images", ".building")
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return image{}, err
	}
	if err := buildImage(ctx, tmp, cache, log); err != nil {
		return image{}, fmt.Errorf("building the base image: %w", errors.Join(err, os.RemoveAll(tmp)))
	}
	return image{filepath.Join(cache, "images", key)}, os.Rename(tmp, filepath.Join(cache, "images", key))
}

func buildImage(ctx context.Context, out, cache string, log io.Writer) error {
	mirror, err := writeAptSetup(ctx, cache)
	if err != nil {
		return err
	}
	script := filepath.Join(cache, "build.sh")
	if err := writeFile(script, recipe, 0o700); err != nil {
		return err
	}
	logPath := filepath.Join(cache, "build.log")
	logFile, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.CommandContext(ctx, "/bin/sh", script, out, cache, suite, mirror)
	cmd.Stdout = io.MultiWriter(logFile, &stepWriter{to: log})
	cmd.Stderr = logFile
	// Namespaces of its own, and death with its parent: nothing stays mounted or running after a kill.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // the parent that Pdeathsig means is the thread, not the process
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w; the last lines of %s are:\n%s", err, logPath, lastLines(logPath, 15))
	}
	return nil
}

// writeAptSetup tells the build where packages come from: from where this machine's own do. It returns
// the mirror for debootstrap.
func writeAptSetup(ctx context.Context, cache string) (mirror string, err error) {
	sources := ""
	if mirror = os.Getenv("THINKUBE_LAB_MIRROR"); mirror != "" {
		sources = fmt.Sprintf("deb %s %s main\n", mirror, suite)
	} else {
		targets, err := output(ctx, "apt-get", "indextargets", "--format",
			"$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
		if err != nil {
			return "", err
		}
		mirror, sources = parseSources(targets)
	}
	if mirror == "" {
		return "", fmt.Errorf("none of this machine's apt sources has Debian %s: name a mirror in THINKUBE_LAB_MIRROR", suite)
	}
	config, err := output(ctx, "apt-config", "dump")
	if err != nil {
		return "", err
	}
	// The proxy may come with a password.
	err = errors.Join(os.MkdirAll(cache, 0o755),
		writeFile(filepath.Join(cache, "sources.list"), []byte(sources), 0o600),
		writeFile(filepath.Join(cache, "apt.conf"), []byte(renderAptConf(config)), 0o600))
	return mirror, err
}

// parseSources picks the suite's sources out of `apt-get indextargets`.
func parseSources(targets string) (mirror, sources string) {
	var lines []string
	for _, line := range strings.SplitAfter(targets, "\n") {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" {
			continue
		}
		uri, release := f[0], f[1]
		switch release {
		case suite:
			mirror = uri
		case suite + "-updates", suite + "-security":
		default:
			continue
		}
		lines = append(lines, fmt.Sprintf("deb %s %s main\n", uri, release))
	}
	slices.Sort(lines)
	return mirror, strings.Join(slices.Compact(lines), "")
}

// renderAptConf keeps of the machine's own settings how to reach a mirror and what dates to believe.
func renderAptConf(dump string) string {
	conf := "Acquire::Languages \"none\";\n"
	for _, line := range strings.SplitAfter(dump, "\n") {
		for _, prefix := range []string{"Acquire::http", "Acquire::https", "Acquire::Check-"} {
			if strings.HasPrefix(line, prefix) {
				conf += line
				break
			}
		}
	}
	return conf
}

// stepWriter passes on the lines that tell what the recipe is at.
type stepWriter struct {
	to   io.Writer
	rest string
}

func (w *stepWriter) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, ok := strings.Cut(w.rest, "\n")
		if !ok {
			return len(p), nil
		}
		w.rest = rest
		if text, ok := strings.CutPrefix(line, "== "); ok {
			fmt.Fprintln(w.to, " ", text)
		}
	}
}

func lastLines(path string, n int) string {
	data, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// output runs a program of this machine and returns what it printed.
func output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
