// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvidia

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/gpus"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	gpuinfo "github.com/thinkube/infra/modules/gpu_info"
)

// devices are those of one of NVML's mock servers, with what the mock leaves out: addresses, use and modes.
func devices(s *server.Server) []*server.Device {
	var all []*server.Device

	for i, each := range s.Devices {
		device := each.(*server.Device)
		device.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
			var info nvml.PciInfo
			for at, char := range fmt.Appendf(nil, "00000000:%02X:00.0", 0x10+i) {
				info.BusId[at] = int8(char)
			}

			return info, nvml.SUCCESS
		}
		none := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
		device.GetComputeRunningProcessesFunc = none
		device.GetGraphicsRunningProcessesFunc = none
		device.GetMPSComputeRunningProcessesFunc = none
		device.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
			return nvml.Utilization{Gpu: 12, Memory: 3}, nvml.SUCCESS
		}
		device.GetPersistenceModeFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
		device.GetEccModeFunc = func() (nvml.EnableState, nvml.EnableState, nvml.Return) {
			return nvml.FEATURE_ENABLED, nvml.FEATURE_DISABLED, nvml.SUCCESS
		}
		device.GetTotalEccErrorsFunc = func(kind nvml.MemoryErrorType, counter nvml.EccCounterType) (uint64, nvml.Return) {
			return map[nvml.MemoryErrorType]uint64{nvml.MEMORY_ERROR_TYPE_CORRECTED: 7}[kind], nvml.SUCCESS
		}
		all = append(all, device)
	}

	return all
}

func ask(api nvml.Interface, request gpuinfo.Request) gpuinfo.Reply {
	return read(api, request, func(string) {})
}

func ptr[V any](value V) *V { return &value }

func TestServers(t *testing.T) {
	for name, s := range map[string]*server.Server{
		"dgxa100": dgxa100.New(), "dgxh100": dgxh100.New(), "dgxh200": dgxh200.New(), "dgxb200": dgxb200.New(),
	} {
		devices := devices(s)
		reply := ask(s, gpuinfo.Request{Addresses: []string{"0000:10:00.0", "0000:17:00.0"}})

		assert.Nil(t, reply.Problem, name)
		assert.Equal(t, s.DriverVersion, *reply.Driver.Version, name)
		assert.Equal(t, s.NvmlVersion, *reply.Driver.NVMLVersion, name)
		assert.Equal(t, fmt.Sprintf("%d.%d", s.CudaDriverVersion/1000, s.CudaDriverVersion%1000/10), *reply.Driver.CUDAVersion, name)
		require.Len(t, reply.Cards, 8, name)

		for i, card := range reply.Cards {
			total := devices[i].Config.MemoryMB << 20
			assert.Equal(t, gpuinfo.Card{
				Address: fmt.Sprintf("0000:%02x:00.0", 0x10+i), UUID: &devices[i].UUID, Name: &devices[i].Config.Name, Index: ptr(i), Minor: ptr(i),
				Memory: &gpuinfo.Memory{Total: total}, Utilization: &gpuinfo.Utilization{GPU: 12, Memory: 3}, Processes: []gpuinfo.Process{},
				PersistenceMode: ptr(true), ECC: &gpuinfo.ECC{Enabled: true, Corrected: ptr(uint64(7)), Uncorrected: ptr(uint64(0))},
				MIG: &gpuinfo.MIG{Devices: []gpuinfo.MIGDevice{}},
			}, card, name)
		}
	}
}

func TestCUDAVersion(t *testing.T) {
	s, err := server.New(server.WithCUDADriverVersion(11080), server.WithDriverVersion("520.61.05"))
	require.NoError(t, err)

	reply := ask(s, gpuinfo.Request{})
	assert.Equal(t, "11.8", *reply.Driver.CUDAVersion)
	assert.Empty(t, reply.Cards)
	assert.Nil(t, reply.Problem)
}

func TestProcesses(t *testing.T) {
	s := dgxa100.New()
	device := devices(s)[0]
	device.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 20, UsedGpuMemory: 5 << 30}, {Pid: 3, UsedGpuMemory: notAvailable}}, nvml.SUCCESS
	}
	device.GetMPSComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 10, UsedGpuMemory: 1}}, nvml.SUCCESS
	}
	device.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }

	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "proc/20"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "proc/20/comm"), []byte("python3\n"), 0o644))

	card := ask(s, gpuinfo.Request{Root: root}).Cards[0]
	assert.Equal(t, []gpuinfo.Process{
		{PID: 3, Type: "compute"}, {PID: 10, Type: "mps", Memory: ptr(uint64(1))}, {PID: 20, Name: ptr("python3"), Type: "compute", Memory: ptr(uint64(5 << 30))},
	}, card.Processes)
	assert.Empty(t, card.Errors)

	device.GetMPSComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NO_PERMISSION }
	card = ask(s, gpuinfo.Request{Root: root}).Cards[0]
	assert.Nil(t, card.Processes, "half a list is none")
	assert.Equal(t, []string{"processes: ERROR_NO_PERMISSION"}, card.Errors)
}

func TestMIG(t *testing.T) {
	s := dgxa100.New()
	device := devices(s)[0]
	device.SetMigMode(nvml.DEVICE_MIG_ENABLE)
	device.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	device.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	device.GetMigDeviceHandleByIndexFunc = func(index int) (nvml.Device, nvml.Return) {
		if index%3 != 0 {
			return nil, nvml.ERROR_NOT_FOUND
		}

		return &mock.Device{
			GetUUIDFunc: func() (string, nvml.Return) { return fmt.Sprint("MIG-", index), nvml.SUCCESS },
			GetNameFunc: func() (string, nvml.Return) { return "", nvml.ERROR_UNKNOWN },
			GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
				return nvml.Memory{Total: 5, Used: 1, Free: 4}, nvml.SUCCESS
			},
		}, nvml.SUCCESS
	}

	memory := &gpuinfo.Memory{Total: 5, Used: 1, Free: 4}
	cards := ask(s, gpuinfo.Request{}).Cards
	assert.Equal(t, &gpuinfo.MIG{Enabled: true, Pending: true, Devices: []gpuinfo.MIGDevice{
		{UUID: "MIG-0", Memory: memory}, {UUID: "MIG-3", Memory: memory}, {UUID: "MIG-6", Memory: memory},
	}}, cards[0].MIG)
	assert.Equal(t, []string{"utilization"}, cards[0].NotSupported)
	assert.False(t, cards[1].MIG.Enabled)

	device.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_UNKNOWN }
	card := ask(s, gpuinfo.Request{}).Cards[0]
	assert.Nil(t, card.MIG, "unknown is not none")
	assert.Equal(t, []string{"mig.devices: ERROR_UNKNOWN"}, card.Errors)
}

// TestCardIsLost has cards that go away before, and while, they are read.
func TestCardIsLost(t *testing.T) {
	s := dgxa100.New()
	all := devices(s)
	byIndex := s.DeviceGetHandleByIndexFunc
	s.DeviceGetHandleByIndexFunc = func(index int) (nvml.Device, nvml.Return) {
		if index == 1 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}

		return byIndex(index)
	}
	s.DeviceGetHandleByPciBusIdFunc = func(string) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_UNKNOWN }
	all[2].GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	all[3].GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) { return nvml.PciInfo{}, nvml.ERROR_GPU_IS_LOST }

	reply := ask(s, gpuinfo.Request{Addresses: []string{"0000:10:00.0", "0000:11:00.0", "0000:13:00.0"}})
	require.Len(t, reply.Cards, 8)

	cards := map[string]gpuinfo.Card{}
	for _, card := range reply.Cards {
		cards[card.Address] = card
	}

	assert.Empty(t, cards["0000:10:00.0"].Errors)
	assert.Equal(t, []string{"memory: ERROR_GPU_IS_LOST " + gpuinfo.LostSuffix}, cards["0000:12:00.0"].Errors)

	nameless := []string{"opening it: ERROR_UNKNOWN", "card number 1: ERROR_GPU_IS_LOST " + gpuinfo.LostSuffix, "address of card number 3: ERROR_GPU_IS_LOST " + gpuinfo.LostSuffix}
	assert.Equal(t, nameless, cards["0000:11:00.0"].Errors)
	assert.Equal(t, nameless, cards["0000:13:00.0"].Errors)
	assert.Nil(t, cards["0000:13:00.0"].UUID)
}

// TestCardThatNVMLDoesNotCount is one that the kernel's driver has.
func TestCardThatNVMLDoesNotCount(t *testing.T) {
	s := dgxa100.New()
	all := devices(s)
	s.DeviceGetCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	s.DeviceGetHandleByPciBusIdFunc = func(address string) (nvml.Device, nvml.Return) {
		assert.Equal(t, "0000:17:00.0", address)

		return all[7], nvml.SUCCESS
	}

	reply := ask(s, gpuinfo.Request{Addresses: []string{"0000:17:00.0"}})
	require.Len(t, reply.Cards, 8)
	assert.Equal(t, all[7].UUID, *reply.Cards[7].UUID)
}

func TestProblems(t *testing.T) {
	for ret, code := range map[nvml.Return]string{
		nvml.ERROR_LIBRARY_NOT_FOUND: gpuinfo.ProblemLibraryMissing, nvml.ERROR_LIB_RM_VERSION_MISMATCH: gpuinfo.ProblemMismatch,
		nvml.ERROR_DRIVER_NOT_LOADED: gpuinfo.ProblemNotLoaded, nvml.ERROR_NO_PERMISSION: gpuinfo.ProblemNoPermission, nvml.ERROR_UNKNOWN: gpuinfo.ProblemDriverFailed,
	} {
		s := dgxa100.New()
		s.InitFunc = func() nvml.Return { return ret }
		reply := ask(s, gpuinfo.Request{Addresses: []string{"0000:10:00.0"}})
		require.NotNil(t, reply.Problem, ret)
		assert.Equal(t, code, reply.Problem.Code)
		assert.NotEmpty(t, reply.Problem.Text)
		assert.NotEmpty(t, reply.Problem.Hint)
		assert.Empty(t, reply.Cards)
	}

	s := dgxa100.New()
	s.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_UNKNOWN }
	assert.Equal(t, gpuinfo.ProblemDriverFailed, ask(s, gpuinfo.Request{}).Problem.Code, "unknown is not none")
}

// TestOldLibrary lacks functions: calling one would end the process.
func TestOldLibrary(t *testing.T) {
	s, err := server.New(server.WithGPUs(gpus.A100_PCIE_40GB))
	require.NoError(t, err)

	device := devices(s)[0]
	device.GetMigModeFunc = nil
	device.GetMPSComputeRunningProcessesFunc = nil
	s.LookupSymbolFunc = func(symbol string) error {
		switch symbol {
		case "nvmlDeviceGetMigMode", "nvmlDeviceGetMPSComputeRunningProcesses":
			return errors.New("not found")
		}

		return nil
	}

	card := ask(s, gpuinfo.Request{}).Cards[0]
	assert.Equal(t, []string{"mig"}, card.NotSupported)
	assert.Equal(t, []gpuinfo.Process{}, card.Processes)
	assert.Nil(t, card.MIG)
}

// TestNothingIsSupported is a card that answers for nothing but its address.
func TestNothingIsSupported(t *testing.T) {
	no := nvml.ERROR_NOT_SUPPORTED
	address := devices(dgxa100.New())[0].GetPciInfoFunc
	processes := func() ([]nvml.ProcessInfo, nvml.Return) { return nil, no }
	bare := &mock.Device{
		GetPciInfoFunc: address, GetUUIDFunc: func() (string, nvml.Return) { return "", no }, GetNameFunc: func() (string, nvml.Return) { return "", no },
		GetIndexFunc: func() (int, nvml.Return) { return 0, no }, GetMinorNumberFunc: func() (int, nvml.Return) { return 0, no },
		GetMemoryInfoFunc:              func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, no },
		GetUtilizationRatesFunc:        func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, no },
		GetComputeRunningProcessesFunc: processes, GetGraphicsRunningProcessesFunc: processes, GetMPSComputeRunningProcessesFunc: processes,
		GetPersistenceModeFunc: func() (nvml.EnableState, nvml.Return) { return 0, no },
		GetEccModeFunc:         func() (nvml.EnableState, nvml.EnableState, nvml.Return) { return 0, 0, no },
		GetMigModeFunc:         func() (int, int, nvml.Return) { return 0, 0, no },
	}
	s := dgxa100.New()
	s.Devices = []nvml.Device{bare}

	assert.Equal(t, []gpuinfo.Card{{
		Address:      "0000:10:00.0",
		NotSupported: []string{"uuid", "name", "index", "minor", "memory", "utilization", "processes", "persistence_mode", "ecc", "mig"},
	}}, ask(s, gpuinfo.Request{}).Cards)
}
