// What the kernels are written with: a thin layer over CUDA C++ and a few PTX instructions, without any header.
//
// `emulation/emulated.h` has the same names for the CPU, so that the kernels' own text is run and compared without a
// GPU. Therefore a kernel uses nothing of CUDA but what stands here.

typedef unsigned short u16; // the bits of a bf16
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef BLOCKS // that shall fit on a multiprocessor: registers are held down to it
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, BLOCKS)
#else
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#endif
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
// An array in shared memory, aligned for 16-byte copies.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE float shuffle_xor(float value, int lanes) { return __shfl_xor_sync(0xffffffffu, value, lanes); }

DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float exp_fast(float x) { return exp2_fast(x * 1.4426950408889634f); }
DEVICE float log_natural(float x) { return logf(x); }
DEVICE float error_function(float x) { return erff(x); }
DEVICE float square_root(float x) { return __fsqrt_rn(x); }

// Arithmetic that the compiler may not fuse: the same bits as on a CPU.
DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }

DEVICE float from_bf16(u16 value) { return __uint_as_float((u32)value << 16); }
DEVICE float low_of(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }
// Two floats to the nearest bf16, ties to even; `low` comes first in memory.
DEVICE u32 pack_bf16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// c[16x8] += a[16x16] · b[16x8], bf16 products and f32 sums; fragments as in the PTX manual's figures of mma.m16n8k16.
DEVICE void mma(float *c, const u32 *a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }
// Four 8x8 matrices of bf16; lane 8·i + j names row j of matrix i.
DEVICE void load_matrices(u32 *to, const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// The same, each matrix transposed.
DEVICE void load_matrices_transposed(u32 *to, const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy 16 bytes to shared memory; zeros when not `there` (then `from` is not read).
DEVICE void copy_async(void *to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}
DEVICE void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's copies, all but those of the `PENDING` latest groups.
template <int PENDING> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
