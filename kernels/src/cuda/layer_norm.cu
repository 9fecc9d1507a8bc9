// Layer norm over the last dimension, a warp per row; statistics in f32, no atomics.
//
// x, y, dx, dy: [rows, width] in bf16, width even, x and dy with a stride of their own from row to row; weight, bias: [width] in f32; statistics: [rows, 2]: mean and
// 1/deviation. Backward: layer_norm_backward, then layer_norm_backward_weights adds up its pieces in order.

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROWS 64 // rows of a block in the backward pass: one piece of the sums over rows
#define MAX_WIDTH 2560

struct Shape {
    int rows, width;
    float eps;
    int x_stride, dy_stride; // in elements, even
};

DEVICE Shape shape_of(const int *settings) {
    Shape shape;
    shape.rows = settings[0];
    shape.width = settings[1];
    shape.eps = float_of_bits(settings[2]);
    shape.x_stride = settings[3];
    shape.dy_stride = settings[4];
    return shape;
}

DEVICE float sum_of_warp(float value) {
    UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
    return value;
}

// Grid: (rows / WARPS rounded up).
KERNEL(THREADS)
layer_norm_forward(const u16 *x, const float *weight, const float *bias, u16 *y, float *statistics,
                   const int *settings) {
    Shape shape = shape_of(settings);
    int row = block_x() * WARPS + thread_index() / 32, lane = thread_index() % 32;
    if (row >= shape.rows) return;
    const u16 *own = x + (size_t)row * shape.x_stride;
    float sum = 0, squares = 0;
    for (int i = 2 * lane; i < shape.width; i += 64) {
        u32 both = *(const u32 *)(own + i);
        sum += low_of(both) + high_of(both);
    }
    float mean = sum_of_warp(sum) / shape.width;
    for (int i = 2 * lane; i < shape.width; i += 64) { // the row is in the cache now
        u32 both = *(const u32 *)(own + i);
        float a = low_of(both) - mean, b = high_of(both) - mean;
        squares += a * a + b * b;
    }
    float inverse = 1.0f / square_root(sum_of_warp(squares) / shape.width + shape.eps);
    for (int i = 2 * lane; i < shape.width; i += 64) {
        u32 both = *(const u32 *)(own + i);
        float a = (low_of(both) - mean) * inverse * weight[i] + bias[i];
        float b = (high_of(both) - mean) * inverse * weight[i + 1] + bias[i + 1];
        *(u32 *)(y + (size_t)row * shape.width + i) = pack_bf16(a, b);
    }
    if (lane == 0) {
        statistics[2 * (size_t)row] = mean;
        statistics[2 * (size_t)row + 1] = inverse;
    }
}

// dx = 1/σ · (w·dy − mean(w·dy) − x̂ · mean(w·dy·x̂)); pieces: [blocks, 2, width]: Σ dy·x̂, Σ dy over the block's rows.
// Grid: (rows / ROWS rounded up).
KERNEL(THREADS)
layer_norm_backward(const u16 *x, const float *weight, const float *statistics, const u16 *dy, u16 *dx, float *pieces,
                    const int *settings) {
    Shape shape = shape_of(settings);
    int lane = thread_index() % 32, first = block_x() * ROWS;
    int end = first + ROWS < shape.rows ? first + ROWS : shape.rows;
    for (int row = first + thread_index() / 32; row < end; row += WARPS) {
        const u16 *own_x = x + (size_t)row * shape.x_stride, *own_dy = dy + (size_t)row * shape.dy_stride;
        float mean = statistics[2 * (size_t)row], inverse = statistics[2 * (size_t)row + 1];
        float plain = 0, normal = 0;
        for (int i = 2 * lane; i < shape.width; i += 64) {
            u32 xs = *(const u32 *)(own_x + i), dys = *(const u32 *)(own_dy + i);
            float da = low_of(dys) * weight[i], db = high_of(dys) * weight[i + 1];
            plain += da + db;
            normal += (da * (low_of(xs) - mean) + db * (high_of(xs) - mean)) * inverse;
        }
        plain = sum_of_warp(plain) / shape.width;
        normal = sum_of_warp(normal) / shape.width;
        for (int i = 2 * lane; i < shape.width; i += 64) {
            u32 xs = *(const u32 *)(own_x + i), dys = *(const u32 *)(own_dy + i);
            float a = (low_of(xs) - mean) * inverse, b = (high_of(xs) - mean) * inverse;
            float da = inverse * (low_of(dys) * weight[i] - plain - a * normal);
            float db = inverse * (high_of(dys) * weight[i + 1] - plain - b * normal);
            *(u32 *)(dx + (size_t)row * shape.width + i) = pack_bf16(da, db);
        }
    }
    // The rows are in the cache now; each thread adds up columns of its own, row by row.
    for (int i = 2 * thread_index(); i < shape.width; i += 2 * THREADS) {
        float weights[2] = {0, 0}, biases[2] = {0, 0};
        for (int row = first; row < end; row++) {
            float mean = statistics[2 * (size_t)row], inverse = statistics[2 * (size_t)row + 1];
            u32 xs = *(const u32 *)(x + (size_t)row * shape.x_stride + i);
            u32 dys = *(const u32 *)(dy + (size_t)row * shape.dy_stride + i);
            weights[0] += low_of(dys) * ((low_of(xs) - mean) * inverse);
            weights[1] += high_of(dys) * ((high_of(xs) - mean) * inverse);
            biases[0] += low_of(dys);
            biases[1] += high_of(dys);
        }
        float *own = pieces + (size_t)block_x() * 2 * shape.width + i;
        own[0] = weights[0];
        own[1] = weights[1];
        own[shape.width] = biases[0];
        own[shape.width + 1] = biases[1];
    }
}

// A warp per column of pieces. Grid: (2 · width / WARPS rounded up).
KERNEL(THREADS)
layer_norm_backward_weights(const float *pieces, float *dweight, float *dbias, const int *settings) {
    Shape shape = shape_of(settings);
    int column = block_x() * WARPS + thread_index() / 32, lane = thread_index() % 32;
    if (column >= 2 * shape.width) return;
    int count = (shape.rows + ROWS - 1) / ROWS;
    float sum = 0;
    for (int piece = lane; piece < count; piece += 32) sum += pieces[(size_t)piece * 2 * shape.width + column];
    sum = sum_of_warp(sum);
    if (lane > 0) return;
    if (column < shape.width) dweight[column] = sum;
    else dbias[column - shape.width] = sum;
}
