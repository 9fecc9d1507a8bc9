// GEGLU (arXiv:2002.05202): the first half of the channels times the GELU of the second, with the exact error function.
//
// x, dx: [rows, 2 · width], y, dy: [rows, width], bf16; width even; x and dy with a stride of their own
// from row to row. settings: rows, width, x_stride, dy_stride. One thread per pair of
// channels. Grid: (rows · width / 2 / THREADS rounded up).

#define THREADS 256

// GELU's value and derivative: z·Φ(z), Φ(z) + z·φ(z).
DEVICE void gelu(float z, float *value, float *slope) {
    float below = 0.5f * (1.0f + error_function(z * 0.70710678118654752f));
    *value = z * below;
    *slope = below + z * (0.3989422804014327f * exp_fast(-0.5f * z * z));
}

KERNEL(THREADS)
geglu_forward(const u16 *x, u16 *y, const int *settings) {
    size_t width = settings[1], i = ((size_t)block_x() * THREADS + thread_index()) * 2;
    if (i >= settings[0] * width) return;
    const u16 *own = x + i / width * settings[2] + i % width;
    u32 hidden = *(const u32 *)own, gate = *(const u32 *)(own + width);
    float a, b, slope;
    gelu(low_of(gate), &a, &slope);
    gelu(high_of(gate), &b, &slope);
    *(u32 *)(y + i) = pack_bf16(low_of(hidden) * a, high_of(hidden) * b);
}

KERNEL(THREADS)
geglu_backward(const u16 *x, const u16 *dy, u16 *dx, const int *settings) {
    size_t width = settings[1], i = ((size_t)block_x() * THREADS + thread_index()) * 2;
    if (i >= settings[0] * width) return;
    size_t row = i / width, column = i % width, at = row * 2 * width + column;
    const u16 *own = x + row * settings[2] + column;
    u32 hidden = *(const u32 *)own, gate = *(const u32 *)(own + width);
    u32 gradient = *(const u32 *)(dy + row * settings[3] + column);
    float a, b, slope_a, slope_b;
    gelu(low_of(gate), &a, &slope_a);
    gelu(high_of(gate), &b, &slope_b);
    *(u32 *)(dx + at) = pack_bf16(low_of(gradient) * a, high_of(gradient) * b);
    *(u32 *)(dx + at + width) = pack_bf16(low_of(gradient) * low_of(hidden) * slope_a,
                                          high_of(gradient) * high_of(hidden) * slope_b);
}
