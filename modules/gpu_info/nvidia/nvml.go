// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvidia

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"

	gpuinfo "github.com/thinkube/infra/modules/gpu_info"
)

// library is the name by which the dynamic linker finds NVML.
const library = "libnvidia-ml.so.1"

// reader asks NVML for one answer.
type reader struct {
	nvml  nvml.Interface
	doing func(string)
	root  string
}

// read asks NVML for driver and cards.
func read(api nvml.Interface, request gpuinfo.Request, doing func(string)) gpuinfo.Reply {
	r := &reader{nvml: api, doing: doing, root: request.Root}

	var reply gpuinfo.Reply

	doing("loading " + library + " and starting NVML")

	ret := api.Init()
	reply.Driver.Library = loadedFile("libnvidia-ml.so")

	if ret != nvml.SUCCESS {
		reply.Problem = initProblem(ret)

		return reply
	}

	defer func() { _ = api.Shutdown() }()

	doing("asking for its version")
	r.readDriver(&reply.Driver)

	doing("counting the cards")

	count, ret := api.DeviceGetCount()
	if ret != nvml.SUCCESS {
		reply.Problem = &gpuinfo.Problem{Code: gpuinfo.ProblemDriverFailed, Text: "the driver cannot count its cards: " + ret.Error()}

		return reply
	}

	reply.Cards = r.readCards(count, request.Addresses)

	return reply
}

// initProblem says why NVML does not start.
func initProblem(ret nvml.Return) *gpuinfo.Problem {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return &gpuinfo.Problem{
			Code: gpuinfo.ProblemLibraryMissing, Text: "NVIDIA's driver is loaded, and its library cannot be: " + whyNotLoaded(),
			Hint: "install the driver's libraries of the same version (on Debian and Ubuntu libnvidia-ml1, or libnvidia-compute-VERSION); " +
				"where they are in another folder, name it in the task's environment as LD_LIBRARY_PATH",
		}
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return &gpuinfo.Problem{
			Code: gpuinfo.ProblemMismatch, Text: "the driver in the kernel and its library are of different versions",
			Hint: "the driver was updated while the old one is in use: reboot, or unload the kernel modules of nvidia and load them again",
		}
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return &gpuinfo.Problem{
			Code: gpuinfo.ProblemNotLoaded, Text: "NVIDIA's driver does not answer: " + ret.Error(),
			Hint: "its kernel module is there and may have found no card that it can use: look into the kernel's log; in a container, pass on /dev/nvidia*",
		}
	case nvml.ERROR_NO_PERMISSION:
		return &gpuinfo.Problem{
			Code: gpuinfo.ProblemNoPermission, Text: "this user may not use NVIDIA's driver: " + ret.Error(), Hint: "use become, or look at the rights of /dev/nvidia*",
		}
	}

	return &gpuinfo.Problem{Code: gpuinfo.ProblemDriverFailed, Text: "NVIDIA's driver does not start: " + ret.Error(), Hint: "look for Xid and NVRM in the kernel's log"}
}

// whyNotLoaded gives the dynamic linker's words, which NVML's return value has not.
func whyNotLoaded() string {
	lib := dl.New(library, dl.RTLD_LAZY)

	err := lib.Open()
	if err == nil {
		err = errors.Join(errors.New("it is there now"), lib.Close())
	}

	return err.Error()
}

// loadedFile gives the file that the dynamic linker took for a library, with links resolved: its name has the version.
func loadedFile(name string) *string {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}

	defer func() { _ = maps.Close() }()

	for lines := bufio.NewScanner(maps); lines.Scan(); {
		_, path, found := strings.Cut(lines.Text(), "/")
		if found && strings.HasPrefix(filepath.Base(path), name) {
			path = "/" + path

			return &path
		}
	}

	return nil
}

func (r *reader) readDriver(driver *gpuinfo.Driver) {
	version, ret := r.nvml.SystemGetDriverVersion()
	driver.Version = known(version, ret)

	version, ret = r.nvml.SystemGetNVMLVersion()
	driver.NVMLVersion = known(version, ret)

	cuda, ret := r.nvml.SystemGetCudaDriverVersion()
	driver.CUDAVersion = known(fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10), ret)
}

func known[V any](value V, ret nvml.Return) *V {
	if ret != nvml.SUCCESS {
		return nil
	}

	return &value
}

// readCards reads the cards by NVML's index, then asks for those that it did not count.
func (r *reader) readCards(count int, addresses []string) []gpuinfo.Card {
	var (
		cards    []gpuinfo.Card
		nameless []string // what is wrong with cards that give no address
	)

	for i := range count {
		r.doing(fmt.Sprintf("opening card number %d", i))

		device, ret := r.nvml.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			nameless = append(nameless, fmt.Sprintf("card number %d: %s", i, text(ret)))

			continue
		}

		info, ret := device.GetPciInfo()

		address, err := gpuinfo.ParseAddress(busID(info.BusId))
		if ret != nvml.SUCCESS || err != nil {
			nameless = append(nameless, fmt.Sprintf("address of card number %d: %s", i, text(ret)))

			continue
		}

		cards = append(cards, r.readCard(device, address))
	}

	for _, address := range addresses {
		if !slices.ContainsFunc(cards, func(c gpuinfo.Card) bool { return c.Address == address }) {
			cards = append(cards, r.missing(address, nameless))
		}
	}

	return cards
}

// missing says why a card that the kernel's driver has is not among NVML's.
func (r *reader) missing(address string, nameless []string) gpuinfo.Card {
	r.doing("opening card " + address)

	device, ret := r.nvml.DeviceGetHandleByPciBusId(address)
	if ret == nvml.SUCCESS {
		return r.readCard(device, address)
	}

	return gpuinfo.Card{Address: address, Errors: append([]string{"opening it: " + text(ret)}, nameless...)}
}

func busID(raw [32]int8) string {
	var id []byte

	for _, char := range raw {
		if char == 0 {
			break
		}

		id = append(id, byte(char))
	}

	return string(id)
}

// text is NVML's words, marked where the card is gone.
func text(ret nvml.Return) string {
	if ret == nvml.ERROR_GPU_IS_LOST {
		return ret.Error() + " " + gpuinfo.LostSuffix
	}

	return ret.Error()
}

// card is a card that is being read.
type card struct {
	gpuinfo.Card
	reader *reader
	device nvml.Device
}

func (r *reader) readCard(device nvml.Device, address string) gpuinfo.Card {
	r.doing("reading card " + address)

	c := &card{Card: gpuinfo.Card{Address: address}, reader: r, device: device}
	c.readIdentity()
	c.readUse()
	c.readModes()

	return c.Card
}

// ok tells whether a value was read, and else notes why not.
func (c *card) ok(what string, ret nvml.Return) bool {
	switch ret {
	case nvml.SUCCESS:
		return true
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND:
		c.NotSupported = append(c.NotSupported, what)
	default:
		c.Errors = append(c.Errors, what+": "+text(ret))
	}

	return false
}

// has tells whether NVML has a function that older ones lack: calling it there would end the process.
func (c *card) has(symbol string) bool { return c.reader.nvml.Extensions().LookupSymbol(symbol) == nil }

func (c *card) readIdentity() {
	uuid, ret := c.device.GetUUID()
	if c.ok("uuid", ret) {
		c.UUID = &uuid
	}

	name, ret := c.device.GetName()
	if c.ok("name", ret) {
		c.Name = &name
	}

	index, ret := c.device.GetIndex()
	if c.ok("index", ret) {
		c.Index = &index
	}

	minor, ret := c.device.GetMinorNumber()
	if c.ok("minor", ret) {
		c.Minor = &minor
	}
}

func (c *card) readUse() {
	memory, ret := c.device.GetMemoryInfo()
	if c.ok("memory", ret) {
		c.Memory = makeMemory(memory)
	}

	utilization, ret := c.device.GetUtilizationRates()
	if c.ok("utilization", ret) {
		c.Utilization = &gpuinfo.Utilization{GPU: utilization.Gpu, Memory: utilization.Memory}
	}

	c.readProcesses()
}

func makeMemory(memory nvml.Memory) *gpuinfo.Memory {
	return &gpuinfo.Memory{Total: memory.Total, Used: memory.Used, Free: memory.Free}
}

// readProcesses reads all kinds or none: half a list would pass for the whole.
func (c *card) readProcesses() {
	processes := []gpuinfo.Process{}

	for _, kind := range []struct {
		name, symbol string
		read         func() ([]nvml.ProcessInfo, nvml.Return)
	}{
		{"compute", "nvmlDeviceGetComputeRunningProcesses", c.device.GetComputeRunningProcesses},
		{"graphics", "nvmlDeviceGetGraphicsRunningProcesses", c.device.GetGraphicsRunningProcesses},
		{"mps", "nvmlDeviceGetMPSComputeRunningProcesses", c.device.GetMPSComputeRunningProcesses},
	} {
		if !c.has(kind.symbol) {
			continue
		}

		found, ret := kind.read()
		if ret == nvml.ERROR_NOT_SUPPORTED && kind.name != "compute" {
			continue // a card without graphics or MPS has none of them
		}

		if !c.ok("processes", ret) {
			return
		}

		for _, each := range found {
			processes = append(processes, c.reader.makeProcess(each, kind.name))
		}
	}

	slices.SortFunc(processes, func(a, b gpuinfo.Process) int { return int(a.PID) - int(b.PID) })
	c.Processes = processes
}

// notAvailable is NVML_VALUE_NOT_AVAILABLE: the driver does not know it (nvml.h).
const notAvailable = ^uint64(0)

func (r *reader) makeProcess(info nvml.ProcessInfo, kind string) gpuinfo.Process {
	process := gpuinfo.Process{PID: info.Pid, Type: kind}
	if info.UsedGpuMemory != notAvailable {
		process.Memory = &info.UsedGpuMemory
	}

	// Not the command line, which may hold secrets. In a container the process may not be seen.
	name, err := os.ReadFile(filepath.Join(r.root, "proc", strconv.FormatUint(uint64(info.Pid), 10), "comm"))
	if err == nil {
		trimmed := strings.TrimSpace(string(name))
		process.Name = &trimmed
	}

	return process
}

func (c *card) readModes() {
	persistence, ret := c.device.GetPersistenceMode()
	if c.ok("persistence_mode", ret) {
		on := persistence == nvml.FEATURE_ENABLED
		c.PersistenceMode = &on
	}

	now, pending, ret := c.device.GetEccMode()
	if c.ok("ecc", ret) {
		c.ECC = &gpuinfo.ECC{
			Enabled: now == nvml.FEATURE_ENABLED, Pending: pending == nvml.FEATURE_ENABLED,
		}
		if c.ECC.Enabled {
			c.ECC.Corrected = c.eccErrors("ecc.corrected", nvml.MEMORY_ERROR_TYPE_CORRECTED)
			c.ECC.Uncorrected = c.eccErrors("ecc.uncorrected", nvml.MEMORY_ERROR_TYPE_UNCORRECTED)
		}
	}

	c.readMIG()
}

func (c *card) eccErrors(what string, kind nvml.MemoryErrorType) *uint64 {
	count, ret := c.device.GetTotalEccErrors(kind, nvml.VOLATILE_ECC)
	if !c.ok(what, ret) {
		return nil
	}

	return &count
}

func (c *card) readMIG() {
	if !c.has("nvmlDeviceGetMigMode") {
		c.NotSupported = append(c.NotSupported, "mig")

		return
	}

	now, pending, ret := c.device.GetMigMode()
	if !c.ok("mig", ret) {
		return
	}

	mig := &gpuinfo.MIG{Enabled: now == nvml.DEVICE_MIG_ENABLE, Pending: pending == nvml.DEVICE_MIG_ENABLE, Devices: []gpuinfo.MIGDevice{}}

	if mig.Enabled {
		count, ret := c.device.GetMaxMigDeviceCount()
		if !c.ok("mig.devices", ret) || !c.readMIGDevices(mig, count) {
			return
		}
	}

	c.MIG = mig
}

// readMIGDevices reads all instances or none, for the same reason as readProcesses.
func (c *card) readMIGDevices(mig *gpuinfo.MIG, count int) bool {
	for i := range count {
		device, ret := c.device.GetMigDeviceHandleByIndex(i)
		if ret == nvml.ERROR_NOT_FOUND {
			continue // a slot without an instance
		}

		if !c.ok("mig.devices", ret) {
			return false
		}

		uuid, ret := device.GetUUID()
		if !c.ok("mig.devices", ret) {
			return false
		}

		each := gpuinfo.MIGDevice{UUID: uuid}

		name, ret := device.GetName()
		each.Name = known(name, ret)

		memory, ret := device.GetMemoryInfo()
		if ret == nvml.SUCCESS {
			each.Memory = makeMemory(memory)
		}

		mig.Devices = append(mig.Devices, each)
	}

	return true
}
