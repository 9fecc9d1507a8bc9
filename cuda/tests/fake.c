/* Libraries that answer as NVIDIA's do, each with as much of a machine as the test wants: compiled by tests/machine.rs
   with -DDRIVER, -DNVRTC or -DNCCL. The first GPU is a modern one; -DALIKE makes all of them so. */
#include <string.h>
#ifdef DRIVER
#ifndef INIT
#define INIT 0
#endif
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = DRIVER; return 0; }
int cuDeviceGetCount(int *count) { *count = GPUS; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 10; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 10 ? "NVIDIA Test 80GB" : "NVIDIA Old 8GB", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = device == 10 ? 85899345920u : 8589934592u; return 0; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 0xab, 16); uuid[15] = (char)device; return 0; }
#ifdef ALIKE
#define MODERN(device) 1
#else
#define MODERN(device) ((device) == 10)
#endif
#ifndef NO_ATTRIBUTE
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? (MODERN(device) ? 9 : 7) : (MODERN(device) ? 0 : 5);
    return 0;
}
#endif
#endif
#ifdef NVRTC
int nvrtcVersion(int *major, int *minor) { *major = NVRTC / 1000; *minor = NVRTC % 1000 / 10; return 0; }
#endif
#ifdef NCCL
int ncclGetVersion(int *version) { *version = NCCL; return 0; }
#ifndef FEW
#define HAVE(name) int name(void) { return 0; }
HAVE(ncclGetUniqueId) HAVE(ncclCommInitRankConfig) HAVE(ncclCommGetAsyncError) HAVE(ncclCommAbort)
HAVE(ncclGroupStart) HAVE(ncclGroupEnd) HAVE(ncclSend) HAVE(ncclRecv) HAVE(ncclAllReduce)
HAVE(ncclGetErrorString) HAVE(ncclGetLastError)
#endif
#endif
