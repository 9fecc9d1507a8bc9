// The names of `src/cuda/prelude.cuh` for a CPU, so that the kernels' own text runs without a GPU.
//
// A block's threads are fibers of one operating-system thread. A fiber runs until it meets others (a barrier, a shuffle, a
// product of matrices) and goes on when all have come. What several lanes do together is computed from what each lane
// handed in, with the fragments of the PTX manual (mma.m16n8k16, ldmatrix): a wrong index shows as a wrong number.
//
// It is stricter than a GPU where a GPU forgives: shared memory begins as NaN in every block; an asynchronous copy
// spoils its target at once and arrives only when waited for; buffers end at a page that cannot be touched; the fibers
// run in two orders, each warp as far ahead of the others as the barriers allow, and a race shows as another result; lanes that meet at different operations end the program.
#pragma once
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace emulation {

[[noreturn]] inline void fail(const char *what) {
    fprintf(stderr, "emulation: %s\n", what);
    exit(1);
}

struct Copy {
    char *to;
    char bytes[16];
};

struct Fiber {
    ucontext_t start;
    jmp_buf place;
    std::vector<char> stack;
    bool started, done;
    std::vector<std::vector<Copy>> groups; // of copies not yet waited for; the last is still open
};

// Where the lanes of a warp, or the threads of a block, meet.
struct Meeting {
    int arrived = 0, members = 0;
    u64 number = 0;
    int kind = 0;
    std::vector<std::vector<char>> given, taken;
};

struct Block {
    int x, y, z, threads;
    u64 serial = 0;
    bool backwards = false;
    int current;
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting whole;
    jmp_buf scheduler;
    const std::function<void()> *body;
    u64 progress = 0;
};
inline Block block;

inline void yield() {
    if (!_setjmp(block.fibers[block.current].place)) _longjmp(block.scheduler, 1);
}

inline void fiber_main() {
    (*block.body)();
    block.fibers[block.current].done = true;
    block.progress++;
    _longjmp(block.scheduler, 1);
}

// Hands `given` in, waits for all members, and returns what `combine` left for this member.
template <class T, class R, class Combine> R meet(Meeting &meeting, int member, int kind, const T &given, Combine combine) {
    if (meeting.arrived == 0) meeting.kind = kind;
    if (meeting.kind != kind) fail("lanes that should act together do different things");
    memcpy(meeting.given[member].data(), &given, sizeof(T));
    u64 number = meeting.number;
    block.progress++;
    if (++meeting.arrived == meeting.members) {
        std::vector<T> all(meeting.members);
        for (int i = 0; i < meeting.members; i++) memcpy((void *)&all[i], meeting.given[i].data(), sizeof(T));
        std::vector<R> results(meeting.members);
        combine(all, results);
        for (int i = 0; i < meeting.members; i++) memcpy(meeting.taken[i].data(), (void *)&results[i], sizeof(R));
        meeting.arrived = 0;
        meeting.number++;
    } else {
        while (meeting.number == number) yield();
    }
    R result;
    memcpy((void *)&result, meeting.taken[member].data(), sizeof(R));
    return result;
}

template <class T, class R, class Combine> R meet_warp(int kind, const T &given, Combine combine) {
    return meet<T, R>(block.warps[block.current / 32], block.current % 32, kind, given, combine);
}

// Runs a fiber until it ends or waits.
inline void resume(int at) {
    Fiber &fiber = block.fibers[at];
    if (fiber.done) return;
    block.current = at;
    if (_setjmp(block.scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

// Runs every block of a grid, one after another. Blocks have a multiple of 32 threads.
inline void launch(int gx, int gy, int gz, int threads, const std::function<void()> &body) {
    block.threads = threads;
    block.body = &body;
    for (block.z = 0; block.z < gz; block.z++)
        for (block.y = 0; block.y < gy; block.y++)
            for (block.x = 0; block.x < gx; block.x++) {
                block.serial++;
                block.fibers.resize(threads);
                auto prepare = [](Meeting &meeting, int members) {
                    meeting = Meeting();
                    meeting.members = members;
                    meeting.given.assign(members, std::vector<char>(64));
                    meeting.taken.assign(members, std::vector<char>(64));
                };
                block.warps.resize((threads + 31) / 32);
                for (auto &warp : block.warps) prepare(warp, 32);
                prepare(block.whole, threads);
                for (auto &fiber : block.fibers) {
                    fiber.stack.resize(1 << 16);
                    fiber.started = fiber.done = false;
                    fiber.groups.assign(1, {});
                    getcontext(&fiber.start);
                    fiber.start.uc_stack.ss_sp = fiber.stack.data();
                    fiber.start.uc_stack.ss_size = fiber.stack.size();
                    fiber.start.uc_link = nullptr;
                    makecontext(&fiber.start, fiber_main, 0);
                }
                for (volatile int left = threads; left > 0;) {
                    volatile u64 before = block.progress;
                    left = 0;
                    // A warp runs until it can only wait: as far ahead of the others as the barriers let it.
                    for (volatile int i = 0; i < (threads + 31) / 32; i = i + 1) {
                        int warp = block.backwards ? (threads + 31) / 32 - 1 - i : i;
                        for (volatile u64 at_first = ~0ull; at_first != block.progress;) {
                            at_first = block.progress;
                            for (volatile int lane = 0; lane < 32 && warp * 32 + lane < threads; lane = lane + 1) {
                                resume(warp * 32 + (block.backwards ? 31 - lane : lane));
                            }
                        }
                    }
                    for (auto &fiber : block.fibers) left = left + !fiber.done;
                    if (left > 0 && before == block.progress) fail("threads wait for others that have ended");
                }
            }
}

// An array in shared memory: NaN in every new block.
template <class T, size_t COUNT> T *shared_array(T *storage, u64 &serial) {
    if (serial != block.serial) memset(storage, 0xff, COUNT * sizeof(T));
    serial = block.serial;
    return storage;
}

// A buffer of the device: NaN at first, and no byte beyond its end can be touched.
template <class T> struct Buffer {
    T *data;
    size_t count;
    explicit Buffer(size_t n) : count(n) {
        const size_t page = 4096, size = (n * sizeof(T) + page - 1) / page * page;
        char *at = (char *)mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED || mprotect(at + size, page, PROT_NONE)) fail("no memory");
        data = (T *)(at + size - (n * sizeof(T) + 15) / 16 * 16); // 16-byte copies need aligned rows
        memset((void *)data, 0xff, n * sizeof(T));
    }
    Buffer(const Buffer &) = delete;
    T &operator[](size_t i) { return data[i]; }
    operator T *() { return data; }
};

} // namespace emulation

#define KERNEL(threads) static void
#define DEVICE static inline
#define UNROLL
#define ROLLED
#define ALL_KERNELS 1
#define SHARED(type, name, amount)                                                                                     \
    alignas(16) static type name##_storage[amount];                                                                   \
    static u64 name##_serial = 0;                                                                                      \
    type *name = emulation::shared_array<type, (amount)>(name##_storage, name##_serial)

DEVICE int thread_index() { return emulation::block.current; }
DEVICE int block_x() { return emulation::block.x; }
DEVICE int block_y() { return emulation::block.y; }
DEVICE int block_z() { return emulation::block.z; }
DEVICE void sync_block() {
    emulation::meet<int, int>(emulation::block.whole, emulation::block.current, 1, 0, [](auto &, auto &) {});
}
DEVICE float shuffle_xor(float value, int lanes) {
    return emulation::meet_warp<float, float>(100 + lanes, value, [&](auto &all, auto &results) {
        for (int i = 0; i < 32; i++) results[i] = all[i ^ lanes];
    });
}

DEVICE float float_of_bits(u32 bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
DEVICE u32 bits_of_float(float value) {
    u32 bits;
    memcpy(&bits, &value, 4);
    return bits;
}
DEVICE float exp2_fast(float x) { return exp2f(x); }
DEVICE float exp_fast(float x) { return expf(x); }
DEVICE float log_natural(float x) { return logf(x); }
DEVICE float error_function(float x) { return erff(x); }
DEVICE float square_root(float x) { return sqrtf(x); }
DEVICE float add_rn(float a, float b) { return a + b; }
DEVICE float mul_rn(float a, float b) { return a * b; }
DEVICE float div_rn(float a, float b) { return a / b; }

DEVICE float from_bf16(u16 value) { return float_of_bits((u32)value << 16); }
DEVICE float low_of(u32 pair) { return float_of_bits(pair << 16); }
DEVICE float high_of(u32 pair) { return float_of_bits(pair & 0xffff0000u); }
DEVICE u16 to_bf16(float value) {
    u32 bits = bits_of_float(value);
    if (value != value) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
DEVICE u32 pack_bf16(float low, float high) { return to_bf16(low) | (u32)to_bf16(high) << 16; }

struct MmaGiven {
    float c[4];
    u32 a[4], b[2];
};
struct MmaTaken {
    float c[4];
};
DEVICE void mma(float *c, const u32 *a, u32 b0, u32 b1) {
    MmaGiven given = {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    MmaTaken taken = emulation::meet_warp<MmaGiven, MmaTaken>(2, given, [](auto &all, auto &results) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; lane++) {
            int group = lane / 4, in_group = lane % 4;
            for (int i = 0; i < 8; i++) { // a0..a7 of the manual's figure
                int row = group + (i / 2 % 2) * 8, column = in_group * 2 + i % 2 + i / 4 * 8;
                left[row][column] = i % 2 ? high_of(all[lane].a[i / 2]) : low_of(all[lane].a[i / 2]);
            }
            for (int i = 0; i < 4; i++) {
                int row = in_group * 2 + i % 2 + i / 2 * 8;
                right[row][group] = i % 2 ? high_of(all[lane].b[i / 2]) : low_of(all[lane].b[i / 2]);
            }
        }
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
                results[lane].c[i] = all[lane].c[i] + sum;
            }
    });
    for (int i = 0; i < 4; i++) c[i] = taken.c[i];
}

struct Four {
    u32 of[4];
};
DEVICE void load_matrices_as(int kind, u32 *to, const u16 *row, bool transposed) {
    if ((uintptr_t)row % 16) emulation::fail("ldmatrix from an address that is no multiple of 16 bytes");
    Four four = emulation::meet_warp<const u16 *, Four>(kind, row, [&](auto &rows, auto &results) {
        for (int lane = 0; lane < 32; lane++)
            for (int matrix = 0; matrix < 4; matrix++) {
                u32 both[2];
                for (int i = 0; i < 2; i++) {
                    int r = lane / 4, c = lane % 4 * 2 + i;
                    both[i] = transposed ? rows[8 * matrix + c][r] : rows[8 * matrix + r][c];
                }
                results[lane].of[matrix] = both[0] | both[1] << 16;
            }
    });
    for (int i = 0; i < 4; i++) to[i] = four.of[i];
}
DEVICE void load_matrices(u32 *to, const u16 *row) { load_matrices_as(3, to, row, false); }
DEVICE void load_matrices_transposed(u32 *to, const u16 *row) { load_matrices_as(4, to, row, true); }

DEVICE void copy_async(void *to, const void *from, bool there) {
    if ((uintptr_t)to % 16 || (there && (uintptr_t)from % 16)) emulation::fail("cp.async from or to an odd address");
    emulation::Copy copy = {(char *)to, {}};
    if (there) memcpy(copy.bytes, from, 16);
    memset(to, 0xff, 16);
    emulation::block.fibers[emulation::block.current].groups.back().push_back(copy);
}
DEVICE void copies_end_group() { emulation::block.fibers[emulation::block.current].groups.push_back({}); }
template <int PENDING> DEVICE void copies_wait() {
    auto &groups = emulation::block.fibers[emulation::block.current].groups;
    while (groups.size() > PENDING + 1) {
        for (auto &copy : groups.front()) memcpy(copy.to, copy.bytes, 16);
        groups.erase(groups.begin());
    }
}
