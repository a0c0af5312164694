// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/tests/transport/farm"
)

// one is a play of one task on hosts that are reached as the given users.
func one(task map[string]any, ways map[string]map[string]any) inventory {
	if task == nil {
		task = map[string]any{"do": "nothing"}
	}

	for _, vars := range ways {
		vars["task"] = task
	}

	return inventory{hosts: ways}
}

// TestWhereTheProgramIsKept has users whose homes are of no use.
func TestWhereTheProgramIsKept(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		folders := map[string]string{
			farm.Plain:  "/home/" + farm.Plain + "/.cache/thinkube",
			farm.Noexec: fmt.Sprintf("/var/tmp/thinkube-%d", farm.UID(farm.Noexec)),
			farm.Nohome: fmt.Sprintf("/var/tmp/thinkube-%d", farm.UID(farm.Nohome)),
			farm.Robbed: fmt.Sprintf("/tmp/thinkube-%d", farm.UID(farm.Robbed)),
		}
		ways := map[string]map[string]any{}

		for user := range folders {
			ways[user] = ssh(user, 1, nil)
		}

		trap := fmt.Sprintf("/var/tmp/thinkube-%d/%s", farm.UID(farm.Robbed), f.program.Name())
		f.inside(t, fmt.Sprintf(`printf '#!/bin/sh\necho "{\"trapped\": true}"\n' >%[1]s; chmod 755 %[1]s`, trap))

		for _, pass := range []string{"uploaded", "cached"} {
			play := f.play(t, os.Environ(), "one", one(map[string]any{"do": "env"}, ways), setup{args: []string{"-vvv"}})

			for user, folder := range folders {
				assert.Equal(t, folder+"/"+f.program.Name(), play.of(t, user, "one").text("program"), "%s, %s", user, pass)
				assert.Equal(t, "700 "+user, f.inside(t, "stat -c '%a %U' "+folder), "the folder of %s", user)
				assert.Equal(t, "700 "+user, f.inside(t, "stat -c '%a %U' "+folder+"/"+f.program.Name()), "the program of %s", user)
				assert.Equal(t, f.program.Name(), f.inside(t, "ls -A "+folder), "nothing else is left in the folder of %s", user)
			}

			uploads := strings.Count(play.output, "uploading thinkube_linux_")
			assert.Equal(t, map[string]int{"uploaded": 4, "cached": 0}[pass], uploads, pass)
			assert.Equal(t, 4+2*uploads, strings.Count(play.output, "SSH: EXEC"), "round trips, %s", pass)
		}

		assert.Equal(t, "755 root", f.inside(t, "stat -c '%a %U' "+trap), "a folder of somebody else is left alone")
		f.inside(t, "rm "+trap)
	})
}

// TestForeignHome runs as root with the HOME of another user, as sudo without -H does: nothing there may be trusted.
func TestForeignHome(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		home := "/home/" + farm.Keeps
		trap := home + "/.cache/thinkube/" + f.program.Name()
		f.inside(t, fmt.Sprintf(`mkdir -p %[1]s/.cache/thinkube; printf '#!/bin/sh\necho "{\"trapped\": true}"\n' >%[2]s
	chmod 755 %[2]s; chown -R %[3]s %[1]s/.cache`, home, trap, farm.Keeps))

		ways := map[string]map[string]any{"host": ssh(farm.Keeps, 1, map[string]any{"ansible_become": true, "ansible_become_flags": "-n"})}
		play := f.play(t, os.Environ(), "one", one(map[string]any{"do": "env"}, ways), setup{})
		got := play.of(t, "host", "one")
		assert.Equal(t, home, got.text("env", "HOME"), "the test's own condition")
		assert.Equal(t, "0", got.text("user"))
		assert.Equal(t, "/var/tmp/thinkube-0/"+f.program.Name(), got.text("program"))
	})
}

func TestFullDisk(t *testing.T) {
	eachWay(t, func(t *testing.T, f *testHosts, environ []string) {
		f.forget(t)

		ways := map[string]map[string]any{"host": ssh(farm.Full, 1, nil)}
		got := f.play(t, environ, "one", one(nil, ways), setup{}).of(t, "host", "one")

		assert.Equal(t, "failed", got.Event)
		assert.Regexp(t, `^copying the program to the host: unpacking the program into /home/tk-full/.cache/thinkube: `+
			`.*No space left on device \(\d+ KiB free, \d{4} KiB needed\)$`, got.text("msg"))
		assert.NotEmpty(t, got.text("hint"))
		assert.Empty(t, f.inside(t, "ls -A /home/tk-full/.cache/thinkube"), "nothing half is left")
	})
}

// TestNoPlaceAtAll takes every folder away.
func TestNoPlaceAtAll(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		uid := farm.UID(farm.Noexec)
		f.inside(t, fmt.Sprintf("touch /var/tmp/thinkube-%d; ln -s /home/%s /tmp/thinkube-%d; chown -h %[1]d /tmp/thinkube-%[1]d", uid, farm.Noexec, uid))

		ways := map[string]map[string]any{"host": ssh(farm.Noexec, 1, nil)}
		got := f.play(t, os.Environ(), "one", one(nil, ways), setup{}).of(t, "host", "one")

		assert.Equal(t, "failed", got.Event)

		for _, words := range []string{"no folder to keep the program in", "/home/tk-noexec/.cache/thinkube: mounted noexec",
			fmt.Sprintf("/var/tmp/thinkube-%d", uid), fmt.Sprintf("/tmp/thinkube-%d: belongs to somebody else", uid)} {
			assert.Contains(t, got.text("msg"), words)
		}
	})
}

// TestDamagedProgram damages the cached program in ways that show differently when it is started.
func TestDamagedProgram(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		path := "/home/" + farm.Plain + "/.cache/thinkube/" + f.program.Name()
		ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}

		damages := []string{
			"true", // uploads it
			"truncate -s 0 " + path,
			"truncate -s 20 " + path,
			"truncate -s 500000 " + path,
			"printf 'no program' >" + path,
			"dd if=/dev/zero of=" + path + " bs=4096 seek=1 count=300 conv=notrunc 2>&1",
			"printf '#!/bin/sh\\nexit 0\\n' >" + path,
		}
		for _, damage := range damages {
			f.nothingLeft(t) // a program that runs cannot be written to
			f.inside(t, damage)

			play := f.play(t, os.Environ(), "one", one(nil, ways), setup{args: []string{"-vvv"}})
			assert.Equal(t, "ok", play.of(t, "host", "one").Event, damage)
			assert.Equal(t, 1, strings.Count(play.output, "uploading thinkube_linux_"), damage)
		}

		sound := f.play(t, os.Environ(), "one", one(nil, ways), setup{args: []string{"-vvv"}})
		assert.Equal(t, "ok", sound.of(t, "host", "one").Event)
		assert.Equal(t, 0, strings.Count(sound.output, "uploading thinkube_linux_"))
	})
}

// TestUploadDamagedOnTheWay has a program that is not what its checksum says.
func TestUploadDamagedOnTheWay(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		damaged := f.program
		damaged.SHA256 = hex.EncodeToString(make([]byte, 32))
		require.NoError(t, farm.WriteCollection(f.Path("damaged"), "../..", damaged))

		ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}
		got := f.play(t, os.Environ(), "one", one(nil, ways), setup{collections: "damaged"}).of(t, "host", "one")

		assert.Equal(t, "failed", got.Event)
		assert.Contains(t, got.text("msg"), "is not what was sent: sha256 "+f.program.SHA256)
		assert.Empty(t, f.inside(t, "ls -A /home/"+farm.Plain+"/.cache/thinkube"))
	})
}

func TestOldProgramsAreRemoved(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		f.forget(t)

		folder := "/home/" + farm.Plain + "/.cache/thinkube"
		prefix := f.program.Name()[:strings.LastIndex(f.program.Name(), "-")+1]
		f.inside(t, fmt.Sprintf(`mkdir -p %[1]s; cd %[1]s; touch -d '2 hours ago' %[2]sold %[2]sold.part-1 thinkube_linux_other-old users_own; touch %[2]snew
	chown -R %[3]s /home/%[3]s/.cache`, folder, prefix, farm.Plain))

		ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}
		assert.Equal(t, "ok", f.play(t, os.Environ(), "one", one(nil, ways), setup{}).of(t, "host", "one").Event)

		want := strings.Fields(f.inside(t, fmt.Sprintf("printf '%%s\\n' %s %snew thinkube_linux_other-old users_own | LC_ALL=C sort", f.program.Name(), prefix)))
		assert.Equal(t, want, strings.Fields(f.inside(t, "LC_ALL=C ls -A "+folder)))
	})
}

// TestRacingUploads has ten hosts with one home.
func TestRacingUploads(t *testing.T) {
	eachTransport(t, func(t *testing.T, f *testHosts) {
		ways := map[string]map[string]any{}
		for i := 1; i <= 10; i++ {
			ways[fmt.Sprint("host", i)] = ssh(farm.Plain, i, nil)
		}

		// Connections first, so that the uploads come at once.
		f.play(t, os.Environ(), "racing", inventory{hosts: ways}, setup{})
		f.forget(t)

		play := f.play(t, os.Environ(), "racing", inventory{hosts: ways}, setup{args: []string{"-vvv"}})
		assert.Equal(t, 0, play.code, play.output)
		assert.Greater(t, strings.Count(play.output, "uploading thinkube_linux_"), 1, "the test's own condition")
		assert.Equal(t, f.program.Name(), f.inside(t, "ls -A /home/"+farm.Plain+"/.cache/thinkube"))
	})
}

func TestUnknownMachine(t *testing.T) {
	f := hosts(t)

	folder, err := os.MkdirTemp(f.Folder, "bin")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "uname"), []byte("#!/bin/sh\necho Linux riscv64\n"), 0o755))

	ways := map[string]map[string]any{"host": {"ansible_connection": "local"}}
	got := f.play(t, os.Environ(), "one", one(nil, ways), setup{env: []string{"PATH=" + folder + ":" + os.Getenv("PATH")}}).of(t, "host", "one")

	assert.Equal(t, "failed", got.Event)
	assert.Equal(t, "no program for this host (Linux/riscv64): the collection has linux/"+runtime.GOARCH, got.text("msg"))
}

func TestCheckoutWithoutPrograms(t *testing.T) {
	f := hosts(t)
	require.NoError(t, farm.WriteCollection(f.Path("empty"), "../.."))

	ways := map[string]map[string]any{"host": ssh(farm.Plain, 1, nil)}
	got := f.play(t, os.Environ(), "one", one(nil, ways), setup{collections: "empty"}).of(t, "host", "one")

	assert.Equal(t, "failed", got.Event)
	assert.Contains(t, got.text("msg"), "the collection has no programs in "+f.Path("empty"))
	assert.Contains(t, got.text("hint"), `run "make build"`)
}
