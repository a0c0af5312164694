// SPDX-License-Identifier: Apache-2.0

package gpuinfo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinkube/infra/modules/internal/ansible"
)

// device is a device on a fake PCI bus.
type device struct {
	vendor, class, driver string
	config                string
}

func card(driver string) device { return device{"0x10de", "0x030000", driver, "\xde\x10\x04\x22"} }

// fakeHost has sysfs as a folder, and answers in the place of the driver.
func fakeHost(t *testing.T, driver string, devices map[string]device) *host {
	t.Helper()

	h := &host{root: t.TempDir(), ask: func(context.Context, string, Request) (Reply, error) {
		t.Error("the driver was asked")

		return Reply{}, nil
	}}
	write := func(path, text string) {
		path = filepath.Join(h.root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}

	require.NoError(t, os.MkdirAll(filepath.Join(h.root, "sys/module"), 0o755))

	if driver != "" {
		write("sys/module/nvidia/version", driver+"\n")
	}

	for address, each := range devices {
		folder := "sys/bus/pci/devices/" + address
		write(folder+"/vendor", each.vendor+"\n")
		write(folder+"/class", each.class+"\n")
		write(folder+"/config", each.config)

		if each.driver != "" {
			require.NoError(t, os.Symlink("../../drivers/"+each.driver, filepath.Join(h.root, folder, "driver")))
		}
	}

	return h
}

// says lets the driver answer.
func (h *host) says(reply Reply) *host {
	h.ask = func(context.Context, string, Request) (Reply, error) { return reply, nil }

	return h
}

func read(t *testing.T, h *host) Values {
	t.Helper()

	values, err := h.Read(t.Context())
	require.NoError(t, err)

	return values
}

func ptr[V any](value V) *V { return &value }

func TestNoCard(t *testing.T) {
	for name, devices := range map[string]map[string]device{
		"no PCI bus": nil,
		"others": {
			"0000:00:02.0": {"0x8086", "0x030000", "i915", ""},
			"0000:01:00.1": {"0x10de", "0x040300", "snd_hda_intel", ""},
			"0000:02:00.0": {"0x10de", "0x068000", "", ""}, // an NVSwitch
		},
	} {
		values := read(t, fakeHost(t, "", devices))
		assert.Equal(t, ProblemNoCard, values.Problem.Code, name)
		assert.Equal(t, []Card{}, values.Cards, name)
		assert.False(t, values.Driver.Loaded, name)
	}
}

func TestWhatCannotBeSeenIsAnError(t *testing.T) {
	h := fakeHost(t, "", nil)
	require.NoError(t, os.RemoveAll(filepath.Join(h.root, "sys")))

	_, err := h.Read(t.Context())
	require.ErrorContains(t, err, "sysfs is not mounted")

	h = fakeHost(t, "", map[string]device{"0000:01:00.0": card("")})
	require.NoError(t, os.Remove(filepath.Join(h.root, "sys/bus/pci/devices/0000:01:00.0/class")))
	require.NoError(t, os.Mkdir(filepath.Join(h.root, "sys/bus/pci/devices/0000:01:00.0/class"), 0o755))

	_, err = h.Read(t.Context())
	require.ErrorContains(t, err, "reading PCI device 0000:01:00.0")

	h = fakeHost(t, "550.1", map[string]device{"0000:01:00.0": {"0x10de", "0x030000", "nvidia", ""}})
	_, err = h.Read(t.Context())
	require.ErrorContains(t, err, "configuration space", "an empty one says nothing")
}

func TestDriverThatIsNotLoaded(t *testing.T) {
	h := fakeHost(t, "", map[string]device{
		"0000:3b:00.0": card("nouveau"), "0000:5e:00.0": card("vfio-pci"), "0000:86:00.0": card(""), "0000:af:00.0": card("nvgrace_gpu_vfio_pci"),
		"10000:01:00.0": {"0x10de", "0x030200", "vfio-pci", ""},
	})
	values := read(t, h)
	assert.Equal(t, ProblemNotLoaded, values.Problem.Code)
	assert.Contains(t, values.Problem.Hint, "modprobe")

	var states, reasons []string
	for _, card := range values.Cards {
		states = append(states, card.Address+" "+card.State)
		reasons = append(reasons, *card.Reason)

		assert.Nil(t, card.Processes, "unknown is not none")
		assert.Nil(t, card.MIG)
		assert.NotNil(t, card.Errors)
	}

	assert.Equal(t, []string{"0000:3b:00.0 unknown", "0000:5e:00.0 reserved", "0000:86:00.0 unknown", "0000:af:00.0 reserved", "10000:01:00.0 reserved"}, states)
	assert.Equal(t, []string{"it is bound to nouveau", "it is bound to vfio-pci, for a guest", "it has no driver",
		"it is bound to nvgrace_gpu_vfio_pci, for a guest", "it is bound to vfio-pci, for a guest"}, reasons)

	reserved := read(t, fakeHost(t, "", map[string]device{"0000:5e:00.0": card("vfio-pci")}))
	assert.Contains(t, reserved.Problem.Hint, "reserved for guests")
}

func TestDriverAnswers(t *testing.T) {
	h := fakeHost(t, "550.54.15", map[string]device{"0000:3b:00.0": card("nvidia"), "0000:5e:00.0": card("vfio-pci"), "0000:af:00.0": card("nvidia")})

	var asked Request

	h.ask = func(_ context.Context, service string, request Request) (Reply, error) {
		asked = request

		assert.Equal(t, ServiceRead, service)

		return Reply{
			Driver: Driver{NVMLVersion: ptr("12.550.54.15"), CUDAVersion: ptr("12.4")},
			Cards: []Card{
				{Address: "0000:af:00.0", Errors: []string{"opening it: GPU is lost " + LostSuffix}},
				{Address: "0000:3b:00.0", UUID: ptr("GPU-1"), Processes: []Process{}},
				{Address: "0000:01:00.0", UUID: ptr("GPU-2")}, // which this sysfs does not have, as in a container
			},
		}, nil
	}

	values := read(t, h)
	assert.Equal(t, []string{"0000:3b:00.0", "0000:af:00.0"}, asked.Addresses, "those that the driver has")
	assert.Nil(t, values.Problem)
	assert.Equal(t, Driver{Loaded: true, Version: ptr("550.54.15"), NVMLVersion: ptr("12.550.54.15"), CUDAVersion: ptr("12.4")}, values.Driver)
	require.Len(t, values.Cards, 4)
	assert.Equal(t, "0000:01:00.0", values.Cards[0].Address)
	assert.Nil(t, values.Cards[0].KernelDriver)
	assert.Equal(t, CardOK, values.Cards[1].State)
	assert.Equal(t, "nvidia", *values.Cards[1].KernelDriver)
	assert.Equal(t, []Process{}, values.Cards[1].Processes)
	assert.Equal(t, CardReserved, values.Cards[2].State)
	assert.Equal(t, CardLost, values.Cards[3].State)
	assert.Contains(t, *values.Cards[3].Reason, "Xid 79")
}

// TestCardThatReadsAsOnes is one that NVML still speaks of and the bus does not.
func TestCardThatReadsAsOnes(t *testing.T) {
	gone := card("nvidia")
	gone.config = "\xff\xff\xff\xff"
	h := fakeHost(t, "550.54.15", map[string]device{"0000:3b:00.0": gone}).says(Reply{Cards: []Card{{Address: "0000:3b:00.0", UUID: ptr("GPU-1")}}})
	assert.Equal(t, CardLost, read(t, h).Cards[0].State)
}

func TestProblemOfTheDriver(t *testing.T) {
	devices := map[string]device{"0000:3b:00.0": card("nvidia")}
	mismatch := Problem{Code: ProblemMismatch, Text: "different versions"}
	h := fakeHost(t, "535.183.01", devices).says(Reply{Problem: &mismatch, Driver: Driver{Library: ptr("/usr/lib/libnvidia-ml.so.550.54.15")}})

	values := read(t, h)
	assert.Equal(t, "different versions: the kernel has 535.183.01, the library is /usr/lib/libnvidia-ml.so.550.54.15", values.Problem.Text)
	assert.Equal(t, "535.183.01", *values.Driver.Version)
	assert.Equal(t, CardUnknown, values.Cards[0].State)
	assert.Equal(t, values.Problem.Text, *values.Cards[0].Reason)

	h.args.CUDACheck = true
	_, err := h.Read(t.Context())
	assertFailure(t, err, CodeNotChecked, "nothing was computed: different versions")

	// The driver is loaded and knows none of the cards.
	values = read(t, fakeHost(t, "550.54.15", devices).says(Reply{Cards: []Card{{Address: "0000:3b:00.0", Errors: []string{"opening it: Unknown Error"}}}}))
	assert.Equal(t, CardUnknown, values.Cards[0].State)
	assert.Equal(t, "the driver does not answer for it: opening it: Unknown Error", *values.Cards[0].Reason)

	values = read(t, fakeHost(t, "550.54.15", nil).says(Reply{}))
	assert.Equal(t, ProblemNoCard, values.Problem.Code)
}

func assertFailure(t *testing.T, err error, code ansible.Code, words string) {
	t.Helper()

	var failure *ansible.Failure

	require.ErrorAs(t, err, &failure)
	assert.Equal(t, code, failure.Code)
	assert.Contains(t, err.Error(), words)
}

// computing has two cards, one of them divided, and one that is reserved; the answers are by UUID.
func computing(t *testing.T, answers map[string]Reply) (Values, error) {
	t.Helper()

	h := fakeHost(t, "550.54.15", map[string]device{"0000:3b:00.0": card("nvidia"), "0000:5e:00.0": card("nvidia"), "0000:86:00.0": card("vfio-pci")})
	h.args.CUDACheck = true
	h.ask = func(_ context.Context, service string, request Request) (Reply, error) {
		if service == ServiceRead {
			return Reply{Cards: []Card{
				{Address: "0000:3b:00.0", UUID: ptr("GPU-1")},
				{Address: "0000:5e:00.0", UUID: ptr("GPU-2"), MIG: &MIG{Enabled: true, Devices: []MIGDevice{{UUID: "MIG-1"}, {UUID: "MIG-2"}}}},
			}}, nil
		}

		reply, ok := answers[request.UUID]
		if !ok {
			return reply, errors.New("asked for " + request.UUID)
		}

		if reply.Doing == "hang" {
			return reply, ansible.Fail(ansible.CodeTimeout, "", "no answer in time")
		}

		return reply, nil
	}

	return h.Read(t.Context())
}

func TestEveryCardComputes(t *testing.T) {
	values, err := computing(t, map[string]Reply{"GPU-1": {}, "MIG-1": {}, "MIG-2": {}})
	require.NoError(t, err)
	assert.Equal(t, []*bool{ptr(true), ptr(true), nil}, []*bool{values.Cards[0].ComputeVerified, values.Cards[1].ComputeVerified, values.Cards[2].ComputeVerified})

	_, err = computing(t, map[string]Reply{"GPU-1": {Failed: "cuInit: broken"}, "MIG-1": {}, "MIG-2": {Wrong: "1 of 9 results"}})
	assertFailure(t, err, CodeWrongResult, "card 0000:3b:00.0 did not compute: cuInit: broken; card 0000:5e:00.0 (MIG-2) computed wrong: 1 of 9 results")

	_, err = computing(t, map[string]Reply{"GPU-1": {Problem: &Problem{Text: "it crashed"}}, "MIG-1": {Doing: "hang"}, "MIG-2": {}})
	assertFailure(t, err, ansible.CodeTimeout, "card 0000:3b:00.0 did not compute: it crashed; card 0000:5e:00.0 (MIG-1): no answer in time")

	_, err = computing(t, map[string]Reply{"GPU-1": {}, "MIG-1": {}, "MIG-2": {Failed: "cuLaunchKernel: no"}})
	assertFailure(t, err, CodeCUDAFailed, "card 0000:5e:00.0 (MIG-2) did not compute: cuLaunchKernel: no")
}

func TestNothingToComputeOn(t *testing.T) {
	for words, h := range map[string]*host{
		"this host has no NVIDIA card":       fakeHost(t, "", nil),
		"NVIDIA's driver is not loaded":      fakeHost(t, "", map[string]device{"0000:3b:00.0": card("vfio-pci")}),
		"every card is reserved for a guest": fakeHost(t, "550.1", map[string]device{"0000:3b:00.0": card("vfio-pci")}).says(Reply{}),
	} {
		h.args.CUDACheck = true
		_, err := h.Read(t.Context())
		assertFailure(t, err, CodeNotChecked, words)
	}

	for words, said := range map[string]Card{
		"card 0000:3b:00.0: it has fallen off the bus":            {Errors: []string{LostSuffix}},
		"card 0000:3b:00.0: the driver does not answer":           {},
		"card 0000:3b:00.0: MIG is on, and it is divided into no": {UUID: ptr("GPU-1"), MIG: &MIG{Enabled: true}},
	} {
		said.Address = "0000:3b:00.0"
		h := fakeHost(t, "550.1", map[string]device{"0000:3b:00.0": card("nvidia")}).says(Reply{Cards: []Card{said}})
		h.args.CUDACheck = true
		_, err := h.Read(t.Context())
		assertFailure(t, err, CodeCUDAFailed, words)
	}
}

func TestParseAddress(t *testing.T) {
	for given, want := range map[string]string{
		"00000000:3B:00.0": "0000:3b:00.0", "0000:3b:00.0": "0000:3b:00.0", "00010000:01:00.0": "10000:01:00.0", "00000001:02:03.4": "0001:02:03.4",
	} {
		got, err := ParseAddress(given)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}

	for _, wrong := range []string{"", "3b:00.0", "0000:3b:00", "0000:3b:00.9", "0000:3b:00.0\n"} {
		_, err := ParseAddress(wrong)
		assert.ErrorContains(t, err, "must look like 0000:3b:00.0", wrong)
	}
}

func TestTimeoutMustBeSomething(t *testing.T) {
	spec, err := Module.ArgSpec()
	require.NoError(t, err)
	assert.Equal(t, "60s", spec.Options["timeout"].Default)
	assert.Positive(t, Args{Timeout: 1}.TaskTimeout())
}
