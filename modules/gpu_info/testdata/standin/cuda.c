// SPDX-License-Identifier: Apache-2.0

// A stand-in for libcuda.so.1, for machines without NVIDIA's driver: one card, which "computes" here what check.ptx does
// there, and whatever goes wrong that STANDIN names. See nvml.c.

#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int mode(const char *name)
{
	const char *given = getenv("STANDIN");
	return given && strcmp(given, name) == 0;
}

// The card that CUDA_VISIBLE_DEVICES names, as CUDA would.
static int second(void)
{
	const char *visible = getenv("CUDA_VISIBLE_DEVICES");
	return visible && strstr(visible, "5e") != NULL;
}

int cuInit(unsigned flags)
{
	(void)flags;
	if (mode("cuda crash") && second())
		raise(SIGSEGV);
	while (mode("cuda hang") && second())
		pause();
	return mode("cuda init") ? 999 : 0;
}

int cuGetErrorName(int code, const char **name) { *name = code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_UNKNOWN"; return 0; }
int cuGetErrorString(int code, const char **text) { *text = code == 719 ? "unspecified launch failure" : "unknown error"; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return getenv("CUDA_VISIBLE_DEVICES") ? 0 : 100; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }

int cuDeviceGetPCIBusId(char *to, int size, int device)
{
	(void)device;
	snprintf(to, size, "%s", second() && !mode("cuda other card") ? "0000:5E:00.0" : "0000:3B:00.0");
	return 0;
}

int cuDeviceGetName(char *to, int size, int device) { (void)device; snprintf(to, size, "Stand-in"); return 0; }
int cuCtxCreate_v2(void **context, unsigned flags, int device) { (void)flags, (void)device; *context = context; return 0; }
int cuCtxDestroy_v2(void *context) { (void)context; return 0; }

int cuModuleLoadDataEx(void **module, const void *text, unsigned count, int *options, void **values)
{
	(void)count, (void)options;
	*module = module;
	if (mode("cuda translate")) {
		strcpy(values[0], "ptxas fatal : not today\n");
		return 218;
	}
	return strstr(text, ".visible .entry thinkube_check(") ? 0 : 218;
}

int cuModuleGetFunction(void **function, void *module, const char *name) { (void)module; *function = function; return strcmp(name, "thinkube_check"); }
int cuMemAlloc_v2(uint64_t *memory, size_t size) { *memory = (uintptr_t)malloc(size); return *memory ? 0 : 2; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)(uintptr_t)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (void *)(uintptr_t)from, size); return 0; }

int cuMemsetD32_v2(uint64_t to, unsigned value, size_t count)
{
	for (size_t i = 0; i < count; i++)
		((uint32_t *)(uintptr_t)to)[i] = value;
	return 0;
}

int cuCtxSynchronize(void) { return mode("cuda launch") ? 719 : 0; }

int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
		   void *stream, void **arguments, void **extra)
{
	(void)function, (void)gy, (void)gz, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;

	uint32_t *in = (uint32_t *)(uintptr_t)*(uint64_t *)arguments[0];
	uint32_t *out = (uint32_t *)(uintptr_t)*(uint64_t *)arguments[1];
	uint32_t count = *(uint32_t *)arguments[2], rounds = *(uint32_t *)arguments[3];

	for (uint32_t i = 0; i < gx * bx && i < count; i++) {
		uint32_t x = in[i], bits;
		float f = 1, m;

		for (uint32_t r = 0; r < rounds; r++) {
			x = x * 1664525u + 1013904223u;
			x ^= x >> 15;
			bits = (x & 0x7fffff) | 0x3f800000;
			memcpy(&m, &bits, 4);
			f = fmaf(f, 0.25f, m);
		}

		memcpy(&bits, &f, 4);
		out[i] = x ^ bits;
	}

	if (mode("cuda wrong") && second())
		out[4242] ^= 1;

	return 0;
}
