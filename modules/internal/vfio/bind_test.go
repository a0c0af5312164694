// SPDX-License-Identifier: Apache-2.0

package vfio_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/pci"
	"github.com/thinkube/infra/modules/internal/pcitest"
	"github.com/thinkube/infra/modules/internal/vfio"
)

func reserve(slot string) []vfio.Move {
	var moves []vfio.Move
	for _, function := range []string{".0", ".1", ".2"} {
		moves = append(moves, vfio.Move{Address: slot + function, Driver: "vfio-pci", Override: "vfio-pci"})
	}

	return moves
}

func busOf(kernel *pcitest.Kernel) vfio.Bus {
	return vfio.Bus{Root: kernel.Root, Write: kernel.Write, BindLimit: 100 * time.Millisecond}
}

func TestOneOfTwoIdenticalCardsMoves(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	before := kernel.Drivers()

	require.NoError(t, busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil))

	after := kernel.Drivers()
	for address, had := range before {
		if want := "vfio-pci vfio-pci"; address[:10] == "0000:02:00" {
			assert.Equal(t, want, after[address], address)
		} else {
			assert.Equal(t, had, after[address], address)
		}
	}

	assert.Equal(t, []string{
		"devices/0000:02:00.0/driver_override=vfio-pci", "devices/0000:02:00.0/driver/unbind=0000:02:00.0", "drivers_probe=0000:02:00.0",
		"devices/0000:02:00.1/driver_override=vfio-pci", "devices/0000:02:00.1/driver/unbind=0000:02:00.1", "drivers_probe=0000:02:00.1",
		"devices/0000:02:00.2/driver_override=vfio-pci", "devices/0000:02:00.2/driver/unbind=0000:02:00.2", "drivers_probe=0000:02:00.2",
	}, kernel.Writes)

	kernel.Writes = nil
	require.NoError(t, busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil))
	assert.Empty(t, kernel.Writes, "what is there already is not written")
}

// restored are the writes that take back what was done before write number failed of the nine of a card: those of the
// function that failed and of the functions before it, the last first.
func restored(failed int) []string {
	var writes []string

	for function := (failed - 1) / 3; function >= 0; function-- {
		address := fmt.Sprintf("0000:02:00.%d", function)
		done := min(failed-1-3*function, 3) // of this function's three writes

		if done >= 1 {
			writes = append(writes, "devices/"+address+"/driver_override=")
		}

		if done >= 3 {
			writes = append(writes, "devices/"+address+"/driver/unbind="+address)
		}

		if done >= 2 {
			writes = append(writes, "drivers_probe="+address)
		}
	}

	return writes
}

func TestAFailureAtEveryWriteRestoresInReverseOrder(t *testing.T) {
	for failed := 1; failed <= 9; failed++ {
		t.Run(fmt.Sprintf("write %d", failed), func(t *testing.T) {
			kernel := pcitest.TwoCards(t)
			before := kernel.Drivers()
			kernel.FailAt = failed

			err := busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil)
			require.ErrorIs(t, err, pcitest.ErrInjected)
			assert.Contains(t, err.Error(), fmt.Sprintf("0000:02:00.%d", (failed-1)/3))
			assert.Equal(t, before, kernel.Drivers(), "everything is as it was")
			assert.Equal(t, restored(failed), append([]string(nil), kernel.Writes[failed:]...))
		})
	}
}

func TestAFailureAtEveryWriteOfAReleaseKeepsTheCard(t *testing.T) {
	for failed := 1; failed <= 9; failed++ {
		kernel := pcitest.TwoCards(t)
		require.NoError(t, busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil))

		kernel.Writes, kernel.FailAt = nil, failed
		reserved := kernel.Drivers()

		err := busOf(kernel).Apply(context.Background(), []vfio.Move{
			{Address: "0000:02:00.2", Driver: "xhci_hcd", Lenient: true}, {Address: "0000:02:00.1", Driver: "snd_hda_intel", Lenient: true},
			{Address: "0000:02:00.0", Driver: "nouveau", Lenient: true},
		}, nil)
		require.ErrorIs(t, err, pcitest.ErrInjected, "write %d", failed)
		assert.Equal(t, reserved, kernel.Drivers(), "write %d", failed)
	}
}

func TestADriverThatTakesNothingIsNoticed(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	before := kernel.Drivers()
	kernel.Deaf = []string{"vfio-pci"}

	err := busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil)
	require.ErrorContains(t, err, `driver "vfio-pci" did not take it`)
	assert.Equal(t, before, kernel.Drivers())
}

func TestALenientMoveAcceptsThatNobodyTakesIt(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	require.NoError(t, busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), nil))

	kernel.Deaf = []string{"nouveau"}
	require.NoError(t, busOf(kernel).Apply(context.Background(), []vfio.Move{{Address: "0000:02:00.0", Driver: "nouveau", Lenient: true}}, nil))
	assert.Empty(t, kernel.Driver("0000:02:00.0"))
	assert.Empty(t, kernel.Override("0000:02:00.0"))

	require.NoError(t, busOf(kernel).Apply(context.Background(), []vfio.Move{{Address: "0000:02:00.1", Driver: vfio.AnyDriver, Lenient: true}}, nil))
	assert.Equal(t, "snd_hda_intel", kernel.Driver("0000:02:00.1"))
}

func TestACheckThatIsNotContentRestoresAll(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	before := kernel.Drivers()
	refused := errors.New("refused")

	err := busOf(kernel).Apply(context.Background(), reserve("0000:02:00"), func() error { return refused })
	require.ErrorIs(t, err, refused)
	assert.Equal(t, before, kernel.Drivers())
}

func TestADriverThatDoesNotLetGoIsNotWaitedForForEver(t *testing.T) {
	kernel := pcitest.TwoCards(t)
	before := kernel.Drivers()
	held := make(chan struct{})

	bus := busOf(kernel)
	bus.Write = func(path, text string) error {
		if path == kernel.Root+"/sys/bus/pci/devices/0000:02:00.1/driver/unbind" {
			<-held // the kernel sleeps

			return nil
		}

		return kernel.Write(path, text)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()

	err := bus.Apply(ctx, reserve("0000:02:00"), nil)
	close(held)

	require.ErrorContains(t, err, "does not let go")
	assert.Equal(t, before["0000:02:00.0"], kernel.Drivers()["0000:02:00.0"], "the function before it is back")
	assert.Equal(t, "snd_hda_intel vfio-pci", kernel.Drivers()["0000:02:00.1"], "the one that is held is not touched again: that would wait as well")
}

func TestAToolThatDoesNotAnswerMakesPersistenceUnknown(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	for script, want := range map[string]pci.Device{
		"echo Enabled":  {Persistence: vfio.PersistenceOn},
		"echo Disabled": {Persistence: vfio.PersistenceOff},
		"echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18": {
			Persistence: vfio.PersistenceUnknown, PersistenceWhy: "nvidia-smi failed (exit status 18: Failed to initialize NVML: Driver/library version mismatch)",
		},
		"echo '[N/A]'": {Persistence: vfio.PersistenceUnknown, PersistenceWhy: `nvidia-smi says "[N/A]"`},
	} {
		require.NoError(t, os.WriteFile(bin+"/nvidia-smi", []byte("#!/bin/sh\n"+script+"\n"), 0o755))

		system := pci.System{Devices: []pci.Device{{Address: "0000:01:00.0", Driver: "amdgpu"}, {Address: "0000:02:00.0", Driver: "nvidia"}}}
		vfio.ReadPersistence(t.Context(), &system)

		assert.Empty(t, system.Devices[0].Persistence)
		assert.Equal(t, want.Persistence, system.Devices[1].Persistence, script)
		assert.Equal(t, want.PersistenceWhy, system.Devices[1].PersistenceWhy, script)
	}
}
