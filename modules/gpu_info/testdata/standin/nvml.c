// SPDX-License-Identifier: Apache-2.0

// A stand-in for libnvidia-ml.so.1, for machines without NVIDIA's driver: two cards, and whatever goes wrong that STANDIN
// names. It shows that the program finds and calls such a library, and what it does when that fails; not how NVIDIA's behaves.
// Return values are those of nvml.h.

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, TOO_SMALL = 7, NOT_LOADED = 9, LOST = 15, MISMATCH = 18, UNKNOWN = 999 };

static const char *address[] = {"00000000:3B:00.0", "00000000:5E:00.0"};
static const char *uuid[] = {"GPU-00000000-0000-0000-0000-00000000003b", "GPU-00000000-0000-0000-0000-00000000005e"};
static int cards[] = {0, 1};

static int mode(const char *name)
{
	const char *given = getenv("STANDIN");
	return given && strcmp(given, name) == 0;
}

static int number(void *device) { return *(int *)device; }

static int text(char *to, unsigned size, const char *from)
{
	return snprintf(to, size, "%s", from) < (int)size ? OK : TOO_SMALL;
}

int nvmlInit_v2(void)
{
	puts("the library greets its user"); // what it must not do, and what must not matter
	fflush(stdout);

	if (mode("crash"))
		raise(SIGSEGV);
	if (mode("exit"))
		_exit(3);
	if (mode("hang") || mode("hang with a child")) {
		if (mode("hang with a child") && fork() == 0) {
			FILE *pid = fopen(getenv("STANDIN_PID"), "w");
			fprintf(pid, "%d", getpid());
			fclose(pid);
		}
		for (;;)
			pause();
	}
	if (mode("mismatch"))
		return MISMATCH;
	if (mode("not loaded"))
		return NOT_LOADED;
	if (mode("no permission"))
		return NO_PERMISSION;
	if (mode("unknown"))
		return UNKNOWN;

	return OK;
}

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int code)
{
	switch (code) {
	case MISMATCH: return "Driver/library version mismatch";
	case NOT_LOADED: return "Driver Not Loaded";
	case NO_PERMISSION: return "Insufficient Permissions";
	case LOST: return "GPU is lost";
	case NOT_SUPPORTED: return "Not Supported";
	}

	return "Unknown Error";
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return text(to, size, "550.54.15"); }
int nvmlSystemGetNVMLVersion(char *to, unsigned size) { return text(to, size, "12.550.54.15"); }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12040; return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = mode("forgotten") ? 1 : 2; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
	if (index > 1)
		return INVALID;
	if (mode("lost") && index == 1)
		return LOST;
	*device = &cards[index];
	return OK;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device)
{
	(void)device;
	if (mode("lost") && strcmp(id, "0000:5e:00.0") == 0)
		return LOST;
	return UNKNOWN;
}

struct pci {
	char legacy[16];
	unsigned domain, bus, device, id, subsystem;
	char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci)
{
	memset(pci, 0, sizeof *pci);
	return text(pci->bus_id, sizeof pci->bus_id, address[number(device)]);
}

int nvmlDeviceGetUUID(void *device, char *to, unsigned size)
{
	if (device == (void *)uuid)
		return text(to, size, "MIG-00000000-0000-0000-0000-000000000001");
	return text(to, size, uuid[number(device)]);
}

int nvmlDeviceGetName(void *device, char *to, unsigned size) { (void)device; return text(to, size, "Stand-in"); }
int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = number(device); return OK; }
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) { *minor = number(device); return OK; }

int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) // total, free, used
{
	(void)device;
	memory[0] = 3000, memory[1] = 1000, memory[2] = 2000;
	return mode("half lost") ? LOST : OK;
}

int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates)
{
	(void)device;
	rates[0] = 12, rates[1] = 3;
	return OK;
}

struct process {
	unsigned pid;
	unsigned long long memory;
};

int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, struct process *processes)
{
	if (number(device) == 1) {
		*count = 0;
		return OK;
	}
	if (*count < 1) {
		*count = 1;
		return TOO_SMALL;
	}
	*count = 1;
	processes[0] = (struct process){1, ~0ULL};
	return OK;
}

int nvmlDeviceGetGraphicsRunningProcesses(void *device, unsigned *count, struct process *processes)
{
	(void)device, (void)count, (void)processes;
	return NOT_SUPPORTED;
}

int nvmlDeviceGetPersistenceMode(void *device, int *on) { *on = number(device); return OK; }

int nvmlDeviceGetEccMode(void *device, int *now, int *pending)
{
	*now = *pending = 1;
	return number(device) ? NOT_SUPPORTED : OK;
}

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count)
{
	(void)device, (void)counter;
	*count = type ? 0 : 7;
	return OK;
}

// A driver before 450 has none of these, and calling them there would end the process.
#ifndef OLD
int nvmlDeviceGetMPSComputeRunningProcesses(void *device, unsigned *count, struct process *processes)
{
	(void)device, (void)processes;
	*count = 0;
	return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending)
{
	*now = *pending = number(device) == 0 && mode("mig");
	return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { (void)device; *count = 7; return OK; }

int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **mig)
{
	(void)device;
	if (index != 2)
		return 6; // NVML_ERROR_NOT_FOUND: a slot without an instance
	*mig = (void *)uuid;
	return OK;
}
#endif
