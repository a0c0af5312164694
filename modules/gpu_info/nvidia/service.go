// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package nvidia

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sys/unix"

	"github.com/thinkube/infra/modules/internal/ansible"

	gpuinfo "github.com/thinkube/infra/modules/gpu_info"
)

// Module is gpu_info with the services that ask the driver.
func Module() ansible.Runner {
	module := gpuinfo.Module
	module.Services = map[string]func(context.Context) error{
		gpuinfo.ServiceRead: service(func(request gpuinfo.Request, doing func(string)) gpuinfo.Reply {
			return read(nvml.New(), request, doing)
		}),
		gpuinfo.ServiceCompute: service(compute),
	}

	return module
}

// service answers the one request on stdin. What the libraries print goes to stderr.
func service(answer func(request gpuinfo.Request, doing func(string)) gpuinfo.Reply) func(context.Context) error {
	return func(context.Context) error {
		fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			err = unix.Dup3(2, 1, 0)
		}

		if err != nil {
			return err
		}

		out := json.NewEncoder(os.NewFile(uintptr(fd), "answer"))

		var request gpuinfo.Request

		err = json.NewDecoder(os.Stdin).Decode(&request)
		if err != nil {
			return fmt.Errorf("reading the request: %w", err)
		}

		reply := answer(request, func(what string) { _ = out.Encode(gpuinfo.Reply{Doing: what}) })
		reply.Done = true

		return out.Encode(reply)
	}
}
