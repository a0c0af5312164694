// SPDX-License-Identifier: Apache-2.0

// Package kernelcmdline has parameters on the kernel command line, or keeps them off it, whatever boots the host. It adds to
// what others wrote and never rewrites it, and takes back what it added.
package kernelcmdline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/thinkube/infra/modules/internal/ansible"
	"github.com/thinkube/infra/modules/internal/bootloader"
)

// Args are the module's options.
type Args struct {
	Name       string           `ansible:"name" default:"thinkube"`
	State      string           `ansible:"state" choices:"present,absent" default:"present"`
	Present    []string         `ansible:"present"`
	Absent     []string         `ansible:"absent"`
	BootLoader string           `ansible:"boot_loader" choices:"auto,grub,grubby,kernel-install,kernelstub,proxmox-boot-tool" default:"auto"`
	Root       ansible.Path     `ansible:"root" default:"/"`
	Timeout    ansible.Duration `ansible:"timeout" default:"10m"`
}

// TaskTimeout bounds the task.
func (a Args) TaskTimeout() time.Duration { return a.Timeout }

// root is the tree's folder, empty for the host's own.
func (a Args) root() string {
	if a.Root == "/" {
		return ""
	}

	return string(a.Root)
}

// Values are what the module returns.
type Values struct {
	BootLoader     string   `json:"boot_loader"`
	Configured     []string `json:"configured"`
	Running        []string `json:"running"`
	Files          []string `json:"files"`
	Findings       []string `json:"findings"`
	RebootRequired bool     `json:"reboot_required"`
	RebootReasons  []string `json:"reboot_reasons"`
}

// Failure codes of this module.
const (
	CodeNoBootLoader ansible.Code = "no_boot_loader"
	CodeOtherLoader  ansible.Code = "other_boot_loader"
	CodeReadOnly     ansible.Code = "read_only"
	CodeForeignFile  ansible.Code = "foreign_file"
	CodeRefresh      ansible.Code = "refresh_failed"
	CodeQuoted       ansible.Code = "quoted_parameter"
)

// Module is kernel_cmdline.
var Module = ansible.Module[Args, State, Values]{
	Name: "kernel_cmdline",
	Lock: "kernel_cmdline",
	Rules: ansible.Rules{
		RequiredIf: []ansible.RequiredIf{{Option: "state", Value: "present", Needs: []string{"present", "absent"}, Any: true}},
	},
	Codes: map[ansible.Code]string{
		CodeNoBootLoader: "no boot loader is found that this module knows, or not the one that was named",
		CodeOtherLoader:  "the parameters were set for another boot loader, which has to be cleaned up first",
		CodeReadOnly:     "the boot loader's files cannot be written",
		CodeForeignFile:  "the file that this module uses was written by somebody else",
		CodeRefresh:      "the boot loader's tool failed, or did not take the parameters; files are as they were",
		CodeQuoted:       "a parameter that is not to be there has a space in quotes, which the boot loader cannot be told to leave out",
	},
	Normalize: normalize,
	Open:      open,
	Plan:      makePlan,
	Result:    makeValues,
}

var (
	validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	// What shells and boot loaders would read as something else is not needed by any parameter of drivers and IOMMU.
	validParameter = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(=[A-Za-z0-9_.,:;/@%+=~^\[\]-]*)?$`)
)

func normalize(args *Args) error {
	var errs []error

	if !validName.MatchString(args.Name) {
		errs = append(errs, fmt.Errorf("name %q: must be up to 63 small letters, digits and hyphens", args.Name))
	}

	if !filepath.IsAbs(string(args.Root)) {
		errs = append(errs, fmt.Errorf("root %q: must be an absolute path", args.Root))
	}

	args.Root = ansible.Path(filepath.Clean(string(args.Root)))

	for _, list := range []struct {
		option     string
		parameters []string
	}{{"present", args.Present}, {"absent", args.Absent}} {
		for i, parameter := range list.parameters {
			if !validParameter.MatchString(parameter) {
				errs = append(errs, fmt.Errorf("%s: %q: must be one parameter, name or name=value, without spaces and quotes", list.option, parameter))
			}

			if slices.Contains(list.parameters[:i], parameter) {
				errs = append(errs, fmt.Errorf("%s: %q comes twice", list.option, parameter))
			}
		}
	}

	for _, parameter := range args.Present {
		for _, pattern := range args.Absent {
			if bootloader.Matches(parameter, pattern) {
				errs = append(errs, fmt.Errorf("%q cannot be present while %q is to be absent", parameter, pattern))
			}
		}
	}

	return errors.Join(errs...)
}

func open(_ context.Context, _ *ansible.Task, args Args) (ansible.Host[State], error) {
	if os.Geteuid() != 0 {
		return nil, ansible.Fail(ansible.CodeFailed, "use become: true", "the boot loader belongs to root")
	}

	return &host{args: args}, nil
}

func makeValues(args Args, final State) Values {
	values := Values{
		BootLoader: final.Loader, Configured: []string{}, Running: final.Running, Files: []string{}, Findings: findings(args, final), RebootReasons: rebootReasons(args, final),
	}

	if len(final.Entries) > 0 {
		values.Configured = final.Entries[0].Line
	}

	if values.Running == nil {
		values.Running = []string{}
	}

	if final.Original != nil && final.File != nil {
		values.Files = append(values.Files, final.File.Path)
	}

	values.RebootRequired = len(values.RebootReasons) > 0

	return values
}

// findings are what somebody should look at in the lines: parameters that come more than once, and those of the other
// maker's IOMMU.
func findings(args Args, state State) []string {
	found := notStartedWith(args, state)

	for _, each := range append([]bootloader.Entry{{Source: "/proc/cmdline", Line: state.Running}}, state.Entries...) {
		count := map[string]int{}

		for _, parameter := range each.Line {
			count[parameter]++

			if count[parameter] == 2 {
				times := len(slices.DeleteFunc(slices.Clone(each.Line), func(other string) bool { return other != parameter }))
				found = append(found, fmt.Sprintf("%s: %s comes %d times", each.Source, parameter, times))
			}

			if wrong := wrongVendor(state.CPUVendor, parameter); wrong != "" && count[parameter] == 1 {
				found = append(found, fmt.Sprintf("%s: %s is for processors of %s, and this is one of %s", each.Source, parameter, wrong, state.CPUVendor))
			}
		}
	}

	// Every kernel has an entry of its own.
	slices.Sort(found)

	return slices.Compact(found)
}

// notStartedWith tells what the entries had before the host was started last, and the running kernel was not started with:
// they are not what starts the host, and another restart is of no use.
func notStartedWith(args Args, state State) []string {
	found := []string{}

	if args.State != "present" || args.root() != "" || !state.StartedSince || len(lacks(state.Entries, args.Present, args.Absent)) > 0 {
		return found
	}

	for _, lack := range bootloader.Lacks(state.Running, args.Present, args.Absent) {
		found = append(found, fmt.Sprintf("%s has it otherwise since before this start, and on the command line of the running kernel, %s: "+
			"something else starts the host, or adds to the line, or an older entry was chosen", state.Entries[0].Source, lack))
	}

	return found
}

func wrongVendor(vendor, parameter string) string {
	switch name := bootloader.Name(parameter); {
	case name == "intel_iommu" && vendor == "AuthenticAMD":
		return "Intel"
	case strings.HasPrefix(name, "amd_iommu") && vendor == "GenuineIntel":
		return "AMD"
	}

	return ""
}

// rebootReasons says how the line that the kernel was started with differs from what is wanted.
func rebootReasons(args Args, final State) []string {
	reasons := []string{}
	if args.root() != "" {
		return reasons
	}

	if len(notStartedWith(args, final)) > 0 {
		return reasons
	}

	if args.State == "present" {
		for _, lack := range bootloader.Lacks(final.Running, args.Present, args.Absent) {
			reasons = append(reasons, "on the command line of the running kernel, "+lack)
		}

		return reasons
	}

	// What was taken back is in force until then. Without options to say what that was, all that no entry has.
	for _, parameter := range final.Running {
		mine := len(args.Present) == 0 || slices.Contains(args.Present, parameter)
		inEntry := func(entry bootloader.Entry) bool { return slices.Contains(entry.Line, parameter) }

		if mine && len(final.Entries) > 0 && !slices.ContainsFunc(final.Entries, inEntry) && !ofLoader(parameter) {
			reasons = append(reasons, "on the command line of the running kernel, "+parameter+" is there")
		}
	}

	return reasons
}

// ofLoader tells parameters that boot loaders add at the start, which no entry has.
func ofLoader(parameter string) bool {
	return slices.Contains([]string{"BOOT_IMAGE", "initrd", "init", "single", "recovery"}, bootloader.Name(parameter))
}
