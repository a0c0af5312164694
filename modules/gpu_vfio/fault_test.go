// SPDX-License-Identifier: Apache-2.0

package gpuvfio

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/initramfstest"
)

var kernels = []string{"6.1.0-1-amd64", "6.1.0-2-amd64"}

// newFullBench is a host where everything is written that can be: an initramfs for each of two kernels, files whose folder is
// not there, a driver that is part of the kernel.
func newFullBench(t *testing.T, generator string) *bench {
	t.Helper()

	b := newBench(t)
	require.NoError(t, os.Remove(b.kernel.Root+"/sys/module/xhci_pci/initstate"))
	require.NoError(t, os.MkdirAll(b.files+"/etc/systemd/system", 0o755))
	require.NoError(t, os.MkdirAll(b.files+"/boot", 0o755))
	require.NoError(t, os.MkdirAll(b.files+"/etc/initramfs-tools", 0o755))

	tools := map[string][]string{
		"initramfs-tools": {"/usr/share/initramfs-tools/hook-functions", "/usr/sbin/update-initramfs"}, "dracut": {"/usr/bin/dracut"},
	}

	for _, path := range tools[generator] {
		require.NoError(t, os.MkdirAll(filepath.Dir(b.files+path), 0o755))
		require.NoError(t, os.WriteFile(b.files+path, nil, 0o755))
	}

	for _, kernel := range kernels {
		require.NoError(t, os.MkdirAll(b.files+"/lib/modules/"+kernel, 0o755))
		require.NoError(t, b.image("/boot/initrd.img-"+kernel, kernel))
	}

	return b
}

// image writes an initramfs as the generators do from the files that are there.
func (b *bench) image(path, kernel string) error {
	pairs := []string{"init", "#!/bin/sh\n"}

	for _, config := range []string{hookPath, dracutPath} {
		_, err := os.Stat(b.files + config)
		if err != nil {
			continue
		}

		for _, module := range []string{"vfio-pci", "vfio_iommu_type1"} {
			pairs = append(pairs, "usr/lib/modules/"+kernel+"/kernel/"+module+".ko", "elf")
		}
	}

	rule, err := os.ReadFile(b.files + rulePath)
	if err == nil {
		pairs = append(pairs, "usr/lib/udev/rules.d/"+filepath.Base(rulePath), string(rule))
	}

	return os.WriteFile(b.files+path, initramfstest.Archive(pairs...), 0o600)
}

// makeImage is update-initramfs and dracut. One that fails has begun to write.
func (b *bench) makeImage(program string, args ...string) ([]byte, error) {
	kernel := args[len(args)-1]

	fresh := "/boot/initrd.img-" + kernel + ".new"
	if program == "dracut" {
		fresh = args[1]
	}

	err := b.write(fresh)
	if err != nil {
		return []byte("no space left on device"), errors.Join(err, os.WriteFile(b.files+fresh, []byte("half"), 0o600))
	}

	err = b.image(fresh, kernel)
	if err == nil && program == "update-initramfs" {
		err = os.Rename(b.files+fresh, b.files+"/boot/initrd.img-"+kernel)
	}

	return nil, err
}

const recordFolder = "/var/lib/thinkube"

// parts divides everything into drivers, files, and records. What is left of a saved image is no part: see TestWhatAKilledRunHasLeftIsRemoved.
func parts(everything map[string]string) (drivers, files, records map[string]string) {
	drivers, files, records = map[string]string{}, map[string]string{}, map[string]string{}

	for name, content := range everything {
		switch {
		case strings.HasPrefix(name, "/boot/.thinkube-"):
		case strings.HasPrefix(name, recordFolder):
			records[name] = content
		case strings.HasPrefix(name, "/"):
			files[name] = content
		default:
			drivers[name] = content
		}
	}

	return drivers, files, records
}

func without(everything map[string]string, prefix string) map[string]string {
	everything = maps.Clone(everything)
	maps.DeleteFunc(everything, func(name, _ string) bool { return strings.HasPrefix(name, prefix) })

	return everything
}

// codeOf gives the kind of a failure.
func codeOf(result map[string]any) any {
	failure, _ := result["failure"].(map[string]any)

	return failure["code"]
}

// TestAFailureAtEveryWriteIsTakenBack has each write fail that a run makes - records, files, links, images and what saves them,
// their generator, the kernel's files, removals - and looks that nothing is half done and that the next run brings it to an end.
func TestAFailureAtEveryWriteIsTakenBack(t *testing.T) {
	wanted := func(more map[string]any) map[string]any {
		args := map[string]any{"devices": []string{"02:00.0"}}
		maps.Copy(args, more)

		return args
	}

	for _, generator := range []string{"initramfs-tools", "dracut"} {
		t.Run(generator, func(t *testing.T) {
			t.Parallel()

			b := newFullBench(t, generator)
			before := b.everything(t)
			require.NotContains(t, b.run(t, wanted(map[string]any{"apply_now": false})), "failed")

			prepared := b.everything(t)
			require.NotContains(t, b.run(t, wanted(nil)), "failed")

			reserved := b.everything(t)
			writes := 0

			for write := 1; write > writes; write++ {
				b := newFullBench(t, generator)
				b.failAt = write

				result := b.run(t, wanted(nil))
				if b.failAt > 0 {
					writes = write // there are not as many

					require.NotContains(t, result, "failed", "%v", result)

					break
				}

				name := fmt.Sprintf("%s, write %d: %v", generator, write, result["msg"])
				require.Equal(t, true, result["failed"], name)

				after := without(b.everything(t), "/boot/.thinkube-")

				switch codeOf(result) {
				case "bind_failed":
					assert.Equal(t, prepared, after, "drivers as they were, and what the hint says: %s", name)
					assert.Contains(t, result["hint"], "stays prepared for the next start", name)
				case "not_converged":
					assert.Equal(t, reserved, after, "all is done but to tidy up: %s", name)
					assert.Contains(t, result["msg"], "left-overs", name)
				default:
					assert.Equal(t, before, after, name)
					assert.Equal(t, false, result["changed"], name)
				}

				require.NotContains(t, b.run(t, wanted(nil)), "failed", name)
				assert.Equal(t, reserved, b.everything(t), name)
			}

			// 3 records and those of 2 folders, 4 files, 2 images with 3 writes each (dracut: 4), 9 of the kernel's.
			t.Logf("%d writes", writes-1)
			assert.Greater(t, writes, 20)
		})
	}
}

func TestAFailureAtEveryWriteOfTheWayBack(t *testing.T) {
	absent := map[string]any{"state": "absent"}

	for _, generator := range []string{"initramfs-tools", "dracut"} {
		t.Run(generator, func(t *testing.T) {
			t.Parallel()

			for write := 1; ; write++ {
				b := newFullBench(t, generator)
				before := b.everything(t)
				b.run(t, map[string]any{"devices": []string{"02:00.0"}})

				oldDrivers, oldFiles, _ := parts(before)
				ourDrivers, ourFiles, ourRecords := parts(b.everything(t))
				b.failAt = write

				result := b.run(t, absent)
				if b.failAt > 0 {
					require.NotContains(t, result, "failed", "%v", result)
					t.Logf("%d writes", write-1)
					assert.Greater(t, write, 20)

					break
				}

				name := fmt.Sprintf("%s, write %d: %v", generator, write, result["msg"])
				require.Equal(t, true, result["failed"], name)

				drivers, files, records := parts(b.everything(t))

				switch {
				case codeOf(result) == "bind_failed":
					assert.Equal(t, ourDrivers, drivers, "the card is whole: %s", name)
					assert.Equal(t, oldFiles, files, name)
					assert.Contains(t, result["hint"], "nothing reserves it at the next start", name)
					assert.Subset(t, records, without(ourRecords, recordFolder+"/gpu_vfio/"+"folder"), "it is known what it was: %s", name)
				case result["changed"] == false:
					assert.Equal(t, ourDrivers, drivers, name)
					assert.Equal(t, ourFiles, files, name)
					assert.Equal(t, ourRecords, records, name)
				default: // a record is left
					assert.Equal(t, oldDrivers, drivers, name)
					assert.Equal(t, oldFiles, files, name)
					assert.Subset(t, ourRecords, records, name)
				}

				result = b.run(t, absent)
				require.NotContains(t, result, "failed", "%s: %v", name, result)
				assert.Equal(t, before, b.everything(t), name)
			}
		})
	}
}

// TestAFailureToRemoveLeftovers comes before anything else is done.
func TestAFailureToRemoveLeftovers(t *testing.T) {
	b := newFullBench(t, "initramfs-tools")
	require.NoError(t, os.WriteFile(b.files+"/boot/.thinkube-"+"initrd.img-"+kernels[0], []byte("image"), 0o600))

	before := b.everything(t)
	b.failAt = 1

	result := b.run(t, map[string]any{"devices": []string{"02:00.0"}})
	assert.Equal(t, true, result["failed"])
	assert.Equal(t, before, b.everything(t))
	assert.NotContains(t, b.run(t, map[string]any{"devices": []string{"02:00.0"}}), "failed")
}

// TestAGeneratorThatIsNotThereChangesNothing: its functions are, and the program is not.
func TestAGeneratorThatIsNotThereChangesNothing(t *testing.T) {
	b := newFullBench(t, "initramfs-tools")
	require.NoError(t, os.Remove(b.files+"/usr/sbin/update-initramfs"))

	before := b.everything(t)

	result := b.run(t, map[string]any{"devices": []string{"02:00.0"}})
	assert.Equal(t, "initramfs_failed", codeOf(result), "%v", result)
	assert.Contains(t, result["msg"], "there is no program update-initramfs")
	assert.Equal(t, before, b.everything(t))
}
