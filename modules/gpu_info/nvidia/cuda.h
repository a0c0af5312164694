// SPDX-License-Identifier: Apache-2.0

#ifndef THINKUBE_CUDA_H
#define THINKUBE_CUDA_H

#include <stdint.h>

// What became of a computation on the one card that CUDA sees.
struct outcome {
	int code;          // 0: everything was called and nothing failed
	const char *call;  // the call that failed
	char text[1024];   // why
	char log[4096];    // of the translation of the kernel
	char address[64];  // of the card, as CUDA names it
	char name[256];
	int devices;       // how many cards CUDA sees
};

// thinkube_compute has the first card run the kernel `function` of the text `ptx` over `count` numbers, a thread each.
void thinkube_compute(const char *library, const char *ptx, const char *function, const uint32_t *in, uint32_t *out,
		      uint32_t count, uint32_t rounds, struct outcome *outcome);

#endif
