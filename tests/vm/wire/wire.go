// SPDX-License-Identifier: Apache-2.0

// Package wire is what a test and the program in the guest say to each other, over a virtio serial port, a JSON object a
// line; and what init is told before.
package wire

// Port is the name of the virtio serial port.
const Port = "thinkube"

// Ready is the ID of the answer that nobody asked for: the guest takes requests from now on.
const Ready = 0

// Request starts a program in the guest, or ends one.
type Request struct {
	ID    int      `json:"id"` // 1 or more
	Argv  []string `json:"argv,omitempty"`
	Stdin []byte   `json:"stdin,omitempty"`
	// Kill ends what the request of that ID started, with all of its process group.
	Kill bool `json:"kill,omitempty"`
}

// Answer is how a program ended.
type Answer struct {
	ID     int    `json:"id"`
	Code   int    `json:"code"` // 128 and the signal's number for one that a signal ended, as a shell has it
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Error  string `json:"error,omitempty"` // it could not be started
}

// InitFile is where init finds the Init in its initramfs.
const InitFile = "/thinkube/init.json"

// FilesFolder holds in the initramfs what is to be put into the root.
const FilesFolder = "/thinkube/files"

// Init is what init does.
type Init struct {
	// Modules are paths of kernel modules in the initramfs, with their parameters behind a space, in the order to load.
	Modules []string `json:"modules"`
	// Root is the disk with the root, an ext4; "": the initramfs is all there is.
	Root string `json:"root"`
}

// SystemInit is the init of a root.
const SystemInit = "/lib/systemd/systemd"
