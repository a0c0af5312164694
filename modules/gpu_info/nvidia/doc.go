// SPDX-License-Identifier: Apache-2.0

// Package nvidia is the part of gpu_info that asks NVIDIA's driver: NVML for what the cards are, and CUDA to have them
// compute. It needs cgo, and glibc where it runs; both libraries are looked for only then, so it is built without them.
//
// It runs in a process of its own (see gpuinfo.Request): the libraries may crash it, and the driver may hang it.
package nvidia
