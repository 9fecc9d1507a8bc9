// The end of a step over flat buffers: the gradient's norm, and AdamW with the moving average, all parameters at once.
//
// Operations and their order are those of `model/src/adamw.rs` and `worker/src/optimizer.rs`, and none is fused: the
// same bits as on a CPU. Nothing here waits for the host: the factor that clips stays on the device.

#define THREADS 256
#define CHUNK 65536 // elements of one partial sum of the norm
#define LANES 8     // sums side by side within it

// sums: [chunks], Σ g² in f64. A square of two f32 is exact in f64. Grid: (chunks · LANES / THREADS rounded up).
KERNEL(THREADS)
norm_chunks(const float *gradient, double *sums, const u64 *elements) {
    SHARED(double, lanes, THREADS);
    u64 chunk = ((u64)block_x() * THREADS + thread_index()) / LANES, lane = thread_index() % LANES;
    u64 first = chunk * CHUNK, end = first + CHUNK < *elements ? first + CHUNK : *elements;
    double sum = 0;
    for (u64 i = first + lane; i < end; i += LANES) sum += (double)gradient[i] * (double)gradient[i];
    lanes[thread_index()] = sum;
    sync_block();
    if (lane > 0 || first >= *elements) return;
    double total = 0;
    for (int i = 0; i < LANES; i++) total += lanes[thread_index() + i];
    sums[chunk] = total;
}

// norm: [2]: the L2 norm, and the factor that brings it down to limits[0] (0: no limit). Grid: (1).
KERNEL(THREADS)
norm_finish(const double *sums, double *norm, const double *limits, const u64 *elements) {
    SHARED(double, part, THREADS);
    u64 chunks = (*elements + CHUNK - 1) / CHUNK;
    double total = 0;
    for (u64 first = 0; first < chunks; first += THREADS) {
        if (first + thread_index() < chunks) part[thread_index()] = sums[first + thread_index()];
        sync_block();
        u64 count = chunks - first < THREADS ? chunks - first : THREADS;
        if (thread_index() == 0)
            for (u64 i = 0; i < count; i++) total += part[i];
        sync_block();
    }
    if (thread_index() > 0) return;
    double length = sqrt(total), factor = limits[0] / (length + 1e-6);
    norm[0] = length;
    norm[1] = limits[0] > 0 && factor < 1 ? factor : 1;
}

// A range of parameters with its own learning rate. 48 bytes, as the host writes it.
struct Group {
    u64 start, end;
    float decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size;
    float one_minus_ema_decay; // 0: there is no moving average, `averages` is not touched
};

// Moves params, exp_avg, exp_avg_sq and averages, and writes params rounded to bf16 to `rounded`, from which the next
// forward pass reads; elements outside the group stay as they are. One launch per group. Grid: any size.
KERNEL(THREADS)
adamw(float *params, const float *gradient, float *exp_avg, float *exp_avg_sq, float *averages, u16 *rounded,
      const double *norm, const Group *groups, const int *settings) {
    Group group = groups[settings[0]];
    u64 step = (u64)settings[1] * THREADS; // settings[1]: blocks of the grid
    float clip = (float)norm[1];
    bool clips = norm[1] < 1;
    for (u64 i = group.start + (u64)block_x() * THREADS + thread_index(); i < group.end; i += step) {
        float g = clips ? mul_rn(gradient[i], clip) : gradient[i];
        float m = exp_avg[i], v = exp_avg_sq[i], p = params[i];
        m = add_rn(m, mul_rn(add_rn(g, -m), group.one_minus_beta1));
        v = add_rn(mul_rn(v, group.beta2), mul_rn(mul_rn(g, g), group.one_minus_beta2));
        float denominator = add_rn(div_rn(square_root(v), group.bias_correction2_sqrt), group.eps);
        p = add_rn(mul_rn(p, group.decay), -mul_rn(group.step_size, div_rn(m, denominator)));
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        params[i] = p;
        rounded[i] = (u16)pack_bf16(p, 0);
        if (group.one_minus_ema_decay != 0) {
            float average = averages[i];
            averages[i] = add_rn(average, mul_rn(add_rn(p, -average), group.one_minus_ema_decay));
        }
    }
}
