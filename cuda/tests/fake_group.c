/* A driver and an NCCL that work, over the host's memory: "device" memory is malloc's, a stream is a list of operations that
   go on whenever somebody looks, and ranks are processes that share a file. As with the real ones nothing blocks, nothing has
   a deadline, and an operation goes on only while its own rank looks.

   Compiled twice by tests/real.rs: as libcuda.so.1 with -DDRIVER, as libnccl.so.2 with -DNCCL; the second finds the first's
   stream through fake_progress. FAKE_NCCL_DIR names the folder of the shared files. */
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_READY 600

#ifdef DRIVER
typedef int (*progress_function)(void);
/* What the other library has to do on the stream: 0 when all is done. */
static progress_function progress;
void fake_progress(progress_function function) { progress = function; }

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *device, int index) { *device = index; return index < 4 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
static _Thread_local void *current;
int cuCtxSetCurrent(void *context) { current = context; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)(intptr_t)7; return !current || flags != 1; }
int cuStreamDestroy_v2(void *stream) { return stream != (void *)(intptr_t)7; }
int cuStreamQuery(void *stream) {
    if (!current || stream != (void *)(intptr_t)7) return 201;
    return progress && progress() ? NOT_READY : 0;
}
int cuStreamSynchronize(void *stream) {
    int code;
    while ((code = cuStreamQuery(stream)) == NOT_READY) {}
    return code;
}
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    *address = current && bytes ? (uint64_t)(uintptr_t)malloc(bytes) : 0;
    return *address ? 0 : 2;
}
int cuMemFree_v2(uint64_t address) { free((void *)(uintptr_t)address); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    memcpy((void *)(uintptr_t)to, from, bytes);
    return cuStreamQuery(stream) == 201;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return cuStreamQuery(stream) == 201;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    memmove((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return cuStreamQuery(stream) == 201;
}
int cuModuleLoadData(void **module, const void *text) {
    *module = (void *)(intptr_t)3;
    return !strstr(text, "ballast_add");
}
int cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = (void *)(intptr_t)4;
    return module != (void *)(intptr_t)3 || strcmp(name, "ballast_add");
}
/* The one kernel that there is: left[i] += right[i]. */
int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    if (function != (void *)(intptr_t)4 || !x || y != 1 || z != 1 || block_x != 256 || block_y != 1 || block_z != 1) return 1;
    if (shared || extra || cuStreamQuery(stream) == 201) return 1;
    float *left = (float *)(uintptr_t) * (uint64_t *)arguments[0];
    float *right = (float *)(uintptr_t) * (uint64_t *)arguments[1];
    for (uint64_t i = 0, count = *(uint64_t *)arguments[2]; i < count; i++) left[i] += right[i];
    return 0;
}
int cuGetErrorName(int code, const char **name) { *name = code ? "CUDA_ERROR_MADE_UP" : "CUDA_SUCCESS"; return 0; }
#endif

#ifdef NCCL
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RANKS 4
#define CHUNK 65536 /* floats in one box */

typedef struct { char bytes[128]; } Id;
/* What goes from one rank to another: full until the receiver has emptied it. */
typedef struct { atomic_int is_full; int count; float values[CHUNK]; } Box;
typedef struct { atomic_int joined, has_left[RANKS]; Box boxes[RANKS][RANKS]; } Shared;
typedef struct { Shared *shared; int rank, size; } Comm;
typedef struct { size_t size; unsigned magic, version; int blocking; } Config;

enum { SEND, RECEIVE, ADD_UP };
typedef struct Op {
    int kind, peer;
    Comm *comm;
    float *values, *owned; /* owned: freed at the end */
    size_t count, done;
    struct Op **parts; /* ADD_UP: receives, by rank; none for its own */
    struct Op *next;
    int is_done;
} Op;
static Op *first;

void fake_progress(int (*function)(void));

/* Two operations with one peer, in one direction, go one after the other. */
static int comes_first(const Op *op) {
    for (const Op *other = first; other != op; other = other->next)
        if (!other->is_done && other->kind == op->kind && other->peer == op->peer) return 0;
    return 1;
}

static void go_on(Op *op) {
    Shared *shared = op->comm->shared;
    if (op->kind == ADD_UP) {
        for (int rank = 0; rank < op->comm->size; rank++)
            if (op->parts[rank] && !op->parts[rank]->is_done) return;
        for (int rank = 0; rank < op->comm->size; rank++)
            for (size_t i = 0; op->parts[rank] && i < op->count; i++) op->values[i] += op->parts[rank]->values[i];
        op->is_done = 1;
        return;
    }
    if (!comes_first(op)) return;
    Box *box = op->kind == SEND ? &shared->boxes[op->comm->rank][op->peer] : &shared->boxes[op->peer][op->comm->rank];
    if (atomic_load(&box->is_full) == (op->kind == SEND)) return;
    size_t count = op->count - op->done < CHUNK ? op->count - op->done : CHUNK;
    if (op->kind == SEND) {
        memcpy(box->values, op->values + op->done, count * sizeof(float));
        box->count = (int)count;
    } else {
        if ((size_t)box->count != count) abort(); /* sends and receives have one length */
        memcpy(op->values + op->done, box->values, count * sizeof(float));
    }
    atomic_store(&box->is_full, op->kind == SEND);
    op->done += count;
    op->is_done = op->done == op->count;
}

static int progress(void) {
    int is_pending = 0;
    for (Op *op = first; op; op = op->next) {
        if (!op->is_done) go_on(op);
        is_pending |= !op->is_done;
    }
    while (!is_pending && first) {
        Op *op = first;
        first = op->next;
        free(op->owned);
        free(op->parts);
        free(op);
    }
    return is_pending;
}

static Op *push(int kind, Comm *comm, int peer, float *values, size_t count) {
    Op *op = calloc(1, sizeof *op);
    op->kind = kind, op->comm = comm, op->peer = peer, op->values = values, op->count = count, op->is_done = !count;
    Op **end = &first;
    while (*end) end = &(*end)->next;
    return *end = op;
}

int ncclGetVersion(int *version) { *version = 23007; return 0; }

int ncclGetUniqueId(Id *id) {
    const char *folder = getenv("FAKE_NCCL_DIR");
    if (!folder) return 2;
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "%s/group-%d", folder, (int)getpid());
    int file = open(id->bytes, O_CREAT | O_RDWR, 0600);
    return file < 0 || ftruncate(file, sizeof(Shared)) || close(file) ? 2 : 0;
}

int ncclCommInitRankConfig(Comm **comm, int size, Id id, int rank, Config *config) {
    if (size > RANKS || rank >= size || config->magic != 0xcafebeef || config->blocking != 0 || config->size < 40) return 4;
    int file = open(id.bytes, O_RDWR);
    if (file < 0) return 2;
    Comm *made = malloc(sizeof *made);
    made->shared = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    made->rank = rank, made->size = size;
    close(file);
    atomic_fetch_add(&made->shared->joined, 1);
    fake_progress(progress);
    *comm = made;
    return 7; /* it goes on */
}

int ncclCommGetAsyncError(Comm *comm, int *state) {
    *state = atomic_load(&comm->shared->joined) < comm->size ? 7 : 0;
    /* First who has left, then what is there: a rank leaves after it has sent what it had to. */
    int has_left[RANKS];
    for (int rank = 0; rank < RANKS; rank++) has_left[rank] = atomic_load(&comm->shared->has_left[rank]);
    progress();
    for (Op *op = first; op; op = op->next)
        if (!op->is_done && op->peer >= 0 && has_left[op->peer]) *state = 6;
    return 0;
}

int ncclCommAbort(Comm *comm) {
    atomic_store(&comm->shared->has_left[comm->rank], 1);
    first = NULL; /* what was under way is lost */
    return 0;
}

static int depth;
int ncclGroupStart(void) { depth++; return 0; }
int ncclGroupEnd(void) { return --depth < 0 ? 5 : 0; }

int ncclSend(float *from, size_t count, int type, int peer, Comm *comm, void *stream) {
    if (type != 7 || peer >= comm->size || !stream) return 4;
    push(SEND, comm, peer, from, count);
    return 0;
}

int ncclRecv(float *to, size_t count, int type, int peer, Comm *comm, void *stream) {
    if (type != 7 || peer >= comm->size || !stream) return 4;
    push(RECEIVE, comm, peer, to, count);
    return 0;
}

int ncclAllReduce(float *from, float *to, size_t count, int type, int operation, Comm *comm, void *stream) {
    if (from != to || type != 7 || operation != 0 || !stream) return 4;
    Op **parts = calloc(RANKS, sizeof *parts);
    for (int rank = 0; rank < comm->size; rank++) {
        if (rank == comm->rank) continue;
        float *copy = malloc(count * sizeof(float)), *received = malloc(count * sizeof(float));
        memcpy(copy, from, count * sizeof(float));
        push(SEND, comm, rank, copy, count)->owned = copy;
        parts[rank] = push(RECEIVE, comm, rank, received, count);
        parts[rank]->owned = received;
    }
    push(ADD_UP, comm, -1, to, count)->parts = parts;
    return 0;
}

const char *ncclGetErrorString(int code) { return code ? "a made-up error" : "no error"; }
const char *ncclGetLastError(Comm *comm) { (void)comm; return ""; }
#endif
