// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// The CUDA driver API, by the names and values that its library keeps stable (CUDA Driver API reference; the suffix _v2 is
// what cuda.h has hidden behind the plain names since CUDA 3.2 and 4.0).

#include "cuda.h"

#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum {
	JIT_ERROR_LOG_BUFFER = 5,      // CU_JIT_ERROR_LOG_BUFFER
	JIT_ERROR_LOG_BUFFER_SIZE = 6, // CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES
	THREADS_PER_BLOCK = 256,
};

typedef uint64_t device_pointer; // CUdeviceptr

static int refuse(struct outcome *o, const char *call, int code, const char *text)
{
	o->code = code;
	o->call = call;
	snprintf(o->text, sizeof o->text, "%s", text && *text ? text : "no reason given");

	return 0;
}

// describe adds the library's own words to a failed call.
static int failed(void *library, struct outcome *o, const char *call, int code)
{
	int (*name)(int, const char **) = (int (*)(int, const char **))dlsym(library, "cuGetErrorName");
	int (*words)(int, const char **) = (int (*)(int, const char **))dlsym(library, "cuGetErrorString");
	const char *n = NULL, *w = NULL;

	if (name)
		name(code, &n);
	if (words)
		words(code, &w);

	refuse(o, call, code, "");
	snprintf(o->text, sizeof o->text, "%s (%d)%s%s", n ? n : "error", code, w ? ": " : "", w ? w : "");

	return 0;
}

// FIND declares a pointer to a function of the library, or leaves the function if there is none.
#define FIND(name, symbol, ...)                                                    \
	int (*name)(__VA_ARGS__) = (int (*)(__VA_ARGS__))dlsym(library, symbol);   \
	if (!name) {                                                               \
		refuse(o, symbol, -1, "the library has no such function");         \
		return;                                                            \
	}

// CALL leaves the function, or what it is in, when a call fails.
#define CALL(or_else, symbol, call)                                                \
	do {                                                                       \
		int code = call;                                                   \
		if (code) {                                                        \
			failed(library, o, symbol, code);                          \
			or_else;                                                   \
		}                                                                  \
	} while (0)

// with_context runs the kernel where a context is current.
static void with_context(void *library, const char *ptx, const char *function, const uint32_t *in, uint32_t *out, uint32_t count,
			 uint32_t rounds, struct outcome *o)
{
	FIND(load, "cuModuleLoadDataEx", void **, const void *, unsigned, int *, void **)
	FIND(find, "cuModuleGetFunction", void **, void *, const char *)
	FIND(allocate, "cuMemAlloc_v2", device_pointer *, size_t)
	FIND(to_card, "cuMemcpyHtoD_v2", device_pointer, const void *, size_t)
	FIND(clear, "cuMemsetD32_v2", device_pointer, unsigned, size_t)
	FIND(launch, "cuLaunchKernel", void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **)
	FIND(wait, "cuCtxSynchronize", void)
	FIND(from_card, "cuMemcpyDtoH_v2", void *, device_pointer, size_t)

	void *module = NULL, *kernel = NULL;
	device_pointer numbers = 0, results = 0;
	size_t bytes = (size_t)count * sizeof *in;

	int options[] = {JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE};
	void *values[] = {o->log, (void *)(sizeof o->log - 1)};

	CALL(return, "cuModuleLoadDataEx", load(&module, ptx, 2, options, values));
	CALL(return, "cuModuleGetFunction", find(&kernel, module, function));
	CALL(return, "cuMemAlloc", allocate(&numbers, bytes));
	CALL(return, "cuMemAlloc", allocate(&results, bytes));
	CALL(return, "cuMemcpyHtoD", to_card(numbers, in, bytes));
	// So that nothing that an earlier run left there passes for a result.
	CALL(return, "cuMemsetD32", clear(results, 0, count));

	void *arguments[] = {&numbers, &results, &count, &rounds};
	unsigned blocks = (count + THREADS_PER_BLOCK - 1) / THREADS_PER_BLOCK;

	CALL(return, "cuLaunchKernel", launch(kernel, blocks, 1, 1, THREADS_PER_BLOCK, 1, 1, 0, NULL, arguments, NULL));
	CALL(return, "cuCtxSynchronize", wait());
	CALL(return, "cuMemcpyDtoH", from_card(out, results, bytes));
}

// with_library does all of it; what it takes on the card goes with the context.
static void with_library(void *library, const char *ptx, const char *function, const uint32_t *in, uint32_t *out, uint32_t count,
			 uint32_t rounds, struct outcome *o)
{
	FIND(init, "cuInit", unsigned)
	FIND(number, "cuDeviceGetCount", int *)
	FIND(get, "cuDeviceGet", int *, int)
	FIND(address, "cuDeviceGetPCIBusId", char *, int, int)
	FIND(name, "cuDeviceGetName", char *, int, int)
	FIND(create, "cuCtxCreate_v2", void **, unsigned, int)
	FIND(destroy, "cuCtxDestroy_v2", void *)

	void *context = NULL;
	int device = 0;

	CALL(return, "cuInit", init(0));
	CALL(return, "cuDeviceGetCount", number(&o->devices));
	CALL(return, "cuDeviceGet", get(&device, 0));
	CALL(return, "cuDeviceGetPCIBusId", address(o->address, sizeof o->address, device));
	CALL(return, "cuDeviceGetName", name(o->name, sizeof o->name, device));
	CALL(return, "cuCtxCreate", create(&context, 0, device));

	with_context(library, ptx, function, in, out, count, rounds, o);

	int code = destroy(context);
	if (code && !o->code)
		failed(library, o, "cuCtxDestroy", code);
}

void thinkube_compute(const char *path, const char *ptx, const char *function, const uint32_t *in, uint32_t *out, uint32_t count,
		      uint32_t rounds, struct outcome *o)
{
	memset(o, 0, sizeof *o);

	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library) {
		refuse(o, "dlopen", -1, dlerror());
		return;
	}

	// It stays loaded: the process ends soon, and unloading a driver's library is not what it is tested for.
	with_library(library, ptx, function, in, out, count, rounds, o);
}
