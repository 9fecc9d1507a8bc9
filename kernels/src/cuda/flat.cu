// Flat buffers of f32: how gradients come into one, how slots are added, what they are known by, and AdamW on them.
//
// Every buffer begins at a multiple of 16 bytes. `settings` are {elements, blocks of the grid}: a grid of any size does it.

#define THREADS 256
#define DIGEST_CHUNK 65536 // elements of one digest

#define EACH_ELEMENT(i)                                                                                                \
    for (u64 i = (u64)block_x() * THREADS + thread_index(), step = settings[1] * THREADS, count = settings[0];        \
         i < count; i += step)

// to[i] = 0
KERNEL(THREADS)
flat_clear(float *to, const u64 *settings) {
    EACH_ELEMENT(i) to[i] = 0;
}

// to[i] = from[i]
KERNEL(THREADS)
flat_put_f32(float *to, const float *from, const u64 *settings) {
    EACH_ELEMENT(i) to[i] = from[i];
}

// to[i] = from[i], from bf16: exact.
KERNEL(THREADS)
flat_put_bf16(float *to, const u16 *from, const u64 *settings) {
    EACH_ELEMENT(i) to[i] = from_bf16(from[i]);
}

// left[i] += right[i], rounded to nearest.
KERNEL(THREADS)
flat_add(float *left, const float *right, const u64 *settings) {
    EACH_ELEMENT(i) left[i] = add_rn(left[i], right[i]);
}

// The last step of splitmix64: every bit of the result depends on every bit of x, and no two x have one result.
DEVICE u64 mixed(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// digests: [chunks][2]: Σ h and Σ (upper half of h) · (lower half of h), modulo 2^64, where h = mixed(index · 2^32 + bits)
// of each element. Sums of whole numbers: the same in any order of the threads, and another for elements in another order.
// A block for each chunk. settings: {elements}
KERNEL(THREADS)
flat_digest(const u32 *bits, u64 *digests, const u64 *settings) {
    SHARED(u64, sums, 2 * THREADS);
    u64 first = (u64)block_x() * DIGEST_CHUNK, count = settings[0], sum = 0, products = 0;
    u64 end = first + DIGEST_CHUNK < count ? first + DIGEST_CHUNK : count;
    for (u64 i = first + thread_index(); i < end; i += THREADS) {
        u64 h = mixed(i << 32 | bits[i]);
        sum += h;
        products += (h >> 32) * (h & 0xffffffffull);
    }
    sums[thread_index()] = sum;
    sums[THREADS + thread_index()] = products;
    sync_block();
    if (thread_index() > 1) return;
    u64 total = 0;
    for (int i = 0; i < THREADS; i++) total += sums[thread_index() * THREADS + i];
    digests[(u64)block_x() * 2 + thread_index()] = total;
}

// A range of parameters with its own learning rate: 48 bytes, as the host writes it.
struct FlatGroup {
    u64 start, end;
    float decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size, unused;
};

// Moves params, exp_avg and exp_avg_sq of a group; others stay as they are. norm: [2] as `norm_finish` makes it: the second
// is the factor that clips. The arithmetic of `model/src/adamw.rs`, none of it fused: the same bits as on a CPU.
// blocks: {blocks of the grid}
KERNEL(THREADS)
flat_adamw(float *params, float *exp_avg, float *exp_avg_sq, const float *gradient, const double *norm,
           const FlatGroup *group_of, const u64 *blocks) {
    FlatGroup group = *group_of;
    u64 step = blocks[0] * THREADS;
    float clip = (float)norm[1];
    bool clips = norm[1] < 1;
    for (u64 i = group.start + (u64)block_x() * THREADS + thread_index(); i < group.end; i += step) {
        float g = clips ? mul_rn(gradient[i], clip) : gradient[i];
        float m = exp_avg[i], v = exp_avg_sq[i];
        m = add_rn(m, mul_rn(add_rn(g, -m), group.one_minus_beta1));
        v = add_rn(mul_rn(v, group.beta2), mul_rn(mul_rn(g, g), group.one_minus_beta2));
        float denominator = add_rn(div_rn(square_root(v), group.bias_correction2_sqrt), group.eps);
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        params[i] = add_rn(mul_rn(params[i], group.decay), -mul_rn(group.step_size, div_rn(m, denominator)));
    }
}
