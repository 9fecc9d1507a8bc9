// Group norm over pixels as rows, with SiLU after it where that follows; statistics in f32, no atomics.
//
// x, y, dx, dy: [batch, pixels, channels] in bf16, x and dy with a stride of their own from pixel to pixel; weight, bias:
// [channels] in f32. A pixel's channels are read in pairs, so a group has an even number of them, and there are at most
// MAX_CHANNELS. Sums are taken over fixed pieces of PIXELS pixels, then over the pieces, in one order.
//
// Forward: group_norm_pieces, group_norm_statistics, group_norm_apply. Backward: group_norm_backward_pieces,
// group_norm_backward_sums, group_norm_backward_apply, group_norm_backward_weights.

#define MAX_CHANNELS 2560
#define PIXELS 32
#define THREADS 256

struct Shape {
    int pixels, channels, groups, batch;
    bool silu;
    float eps;
    int x_stride, dy_stride; // in elements, even; a sample's elements are counted by an int
};

DEVICE Shape shape_of(const int *settings) {
    Shape shape;
    shape.pixels = settings[0];
    shape.channels = settings[1];
    shape.groups = settings[2];
    shape.batch = settings[3];
    shape.silu = settings[4] != 0;
    shape.eps = float_of_bits(settings[5]);
    shape.x_stride = settings[6];
    shape.dy_stride = settings[7];
    return shape;
}

DEVICE int pieces_of(const Shape &shape) { return (shape.pixels + PIXELS - 1) / PIXELS; }
DEVICE float sigmoid(float z) { return 1.0f / (1.0f + exp_fast(-z)); }

// Which pairs of channels, and which of the piece's pixels, a thread takes: several pixels at a time when few channels.
struct Walk {
    int pair, pair_step, row, row_step;
    bool idle;
};
DEVICE Walk walk_of(const Shape &shape) {
    int pairs = shape.channels / 2, rows = pairs < THREADS ? THREADS / pairs : 1;
    Walk walk;
    walk.pair = pairs < THREADS ? thread_index() % pairs : thread_index();
    walk.pair_step = pairs < THREADS ? pairs : THREADS;
    walk.row = pairs < THREADS ? thread_index() / pairs : 0;
    walk.row_step = rows;
    walk.idle = walk.row >= rows;
    return walk;
}

// Adds up two sums per channel over a piece's pixels; `each(pixel, pair, sums)` adds one pixel's pair of channels.
// sums[channel] and sums[MAX_CHANNELS + channel] hold the result when this returns.
template <class Each> DEVICE void sum_piece(float *sums, const Shape &shape, Each each) {
    Walk walk = walk_of(shape);
    int first = block_x() * PIXELS, end = first + PIXELS < shape.pixels ? first + PIXELS : shape.pixels;
    for (int pair = walk.pair; pair < shape.channels / 2 && !walk.idle; pair += walk.pair_step) {
        float own[4] = {0, 0, 0, 0};
        for (int pixel = first + walk.row; pixel < end; pixel += walk.row_step) each(pixel, pair, own);
        // When several threads share a pair, row_step · channels is at most 2 · THREADS.
        int at = walk.row * shape.channels + 2 * pair;
        sums[at] = own[0];
        sums[at + 1] = own[1];
        sums[MAX_CHANNELS + at] = own[2];
        sums[MAX_CHANNELS + at + 1] = own[3];
    }
    sync_block();
    if (walk.row_step == 1) return;
    for (int channel = thread_index(); channel < shape.channels; channel += THREADS) {
        for (int row = 1; row < walk.row_step; row++) {
            sums[channel] += sums[row * shape.channels + channel];
            sums[MAX_CHANNELS + channel] += sums[MAX_CHANNELS + row * shape.channels + channel];
        }
    }
    sync_block();
}

// Where the block's sample begins in what has this stride.
DEVICE size_t sample_at(const Shape &shape, int stride) { return (size_t)block_y() * shape.pixels * stride; }

// Sums are taken of x − shift, where shift is the group's first value in the sample: the variance then loses no digits to
// the mean.
DEVICE float shift_of(const u16 *x, const Shape &shape, int group) {
    return from_bf16(x[group * (shape.channels / shape.groups)]);
}

// pieces: [batch, pieces, groups, 2]: Σ(x − shift), Σ(x − shift)². Grid: (pieces, batch).
KERNEL(THREADS)
group_norm_pieces(const u16 *x, float *pieces, const int *settings) {
    SHARED(float, sums, 2 * MAX_CHANNELS);
    Shape shape = shape_of(settings);
    x += sample_at(shape, shape.x_stride);
    int width = shape.channels / shape.groups;
    sum_piece(sums, shape, [&](int pixel, int pair, float *own) {
        float shift = shift_of(x, shape, 2 * pair / width);
        u32 both = *(const u32 *)(x + pixel * shape.x_stride + 2 * pair);
        float a = low_of(both) - shift, b = high_of(both) - shift;
        own[0] += a;
        own[1] += b;
        own[2] += a * a;
        own[3] += b * b;
    });
    for (int group = thread_index(); group < shape.groups; group += THREADS) {
        float plain = 0, squares = 0;
        for (int channel = group * width; channel < (group + 1) * width; channel++) {
            plain += sums[channel];
            squares += sums[MAX_CHANNELS + channel];
        }
        size_t at = (((size_t)block_y() * pieces_of(shape) + block_x()) * shape.groups + group) * 2;
        pieces[at] = plain;
        pieces[at + 1] = squares;
    }
}

// statistics: [batch, groups, 2]: mean and 1/deviation. A warp per group. Grid: (groups / 8 rounded up, batch).
KERNEL(THREADS)
group_norm_statistics(const u16 *x, const float *pieces, float *statistics, const int *settings) {
    Shape shape = shape_of(settings);
    x += sample_at(shape, shape.x_stride);
    int group = block_x() * (THREADS / 32) + thread_index() / 32, lane = thread_index() % 32;
    if (group >= shape.groups) return;
    float plain = 0, squares = 0;
    for (int piece = lane; piece < pieces_of(shape); piece += 32) {
        size_t at = (((size_t)block_y() * pieces_of(shape) + piece) * shape.groups + group) * 2;
        plain += pieces[at];
        squares += pieces[at + 1];
    }
    UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) {
        plain += shuffle_xor(plain, lanes);
        squares += shuffle_xor(squares, lanes);
    }
    if (lane > 0) return;
    float count = (float)shape.pixels * (shape.channels / shape.groups);
    float mean = plain / count, variance = fmaxf(squares / count - mean * mean, 0.0f);
    size_t at = ((size_t)block_y() * shape.groups + group) * 2;
    statistics[at] = mean + shift_of(x, shape, group);
    statistics[at + 1] = 1.0f / square_root(variance + shape.eps);
}

// The norm as x · scale + shift, per channel of this block's sample.
DEVICE void scale_and_shift(float *sums, const Shape &shape, const float *weight, const float *bias,
                            const float *statistics) {
    for (int channel = thread_index(); channel < shape.channels; channel += THREADS) {
        int group = channel / (shape.channels / shape.groups);
        const float *own = statistics + ((size_t)block_y() * shape.groups + group) * 2;
        float scale = own[1] * weight[channel];
        sums[channel] = scale;
        sums[MAX_CHANNELS + channel] = bias[channel] - own[0] * scale;
    }
    sync_block();
}

// Calls each(pixel, channel) for all pairs of channels of a piece, in the order of memory.
template <class Each> DEVICE void for_piece(const Shape &shape, Each each) {
    int first = block_x() * PIXELS, end = first + PIXELS < shape.pixels ? first + PIXELS : shape.pixels;
    int count = (end - first) * (shape.channels / 2);
    for (int i = thread_index(); i < count; i += THREADS) {
        each(first + i / (shape.channels / 2), i % (shape.channels / 2) * 2);
    }
}

// Grid: (pieces, batch).
KERNEL(THREADS)
group_norm_apply(const u16 *x, const float *weight, const float *bias, const float *statistics, u16 *y,
                 const int *settings) {
    SHARED(float, factors, 2 * MAX_CHANNELS);
    Shape shape = shape_of(settings);
    x += sample_at(shape, shape.x_stride);
    y += sample_at(shape, shape.channels);
    scale_and_shift(factors, shape, weight, bias, statistics);
    for_piece(shape, [&](int pixel, int channel) {
        u32 both = *(const u32 *)(x + pixel * shape.x_stride + channel);
        float a = low_of(both) * factors[channel] + factors[MAX_CHANNELS + channel];
        float b = high_of(both) * factors[channel + 1] + factors[MAX_CHANNELS + channel + 1];
        if (shape.silu) {
            a *= sigmoid(a);
            b *= sigmoid(b);
        }
        *(u32 *)(y + pixel * shape.channels + channel) = pack_bf16(a, b);
    });
}

// The gradient of the norm's output z: SiLU's derivative is σ(z)·(1 + z·(1 − σ(z))).
DEVICE float before_silu(float z, float gradient, bool silu) {
    if (!silu) return gradient;
    float s = sigmoid(z);
    return gradient * (s * (1.0f + z * (1.0f - s)));
}

// pieces: [batch, pieces, channels, 2]: Σ dz, Σ dz · x̂. Grid: (pieces, batch).
KERNEL(THREADS)
group_norm_backward_pieces(const u16 *x, const float *weight, const float *bias, const float *statistics,
                           const u16 *dy, float *pieces, const int *settings) {
    SHARED(float, sums, 2 * MAX_CHANNELS);
    Shape shape = shape_of(settings);
    x += sample_at(shape, shape.x_stride);
    dy += sample_at(shape, shape.dy_stride);
    int width = shape.channels / shape.groups;
    sum_piece(sums, shape, [&](int pixel, int pair, float *own) {
        int channel = 2 * pair;
        const float *group = statistics + ((size_t)block_y() * shape.groups + channel / width) * 2;
        u32 xs = *(const u32 *)(x + pixel * shape.x_stride + channel);
        u32 dys = *(const u32 *)(dy + pixel * shape.dy_stride + channel);
        float a = (low_of(xs) - group[0]) * group[1], b = (high_of(xs) - group[0]) * group[1];
        float da = before_silu(a * weight[channel] + bias[channel], low_of(dys), shape.silu);
        float db = before_silu(b * weight[channel + 1] + bias[channel + 1], high_of(dys), shape.silu);
        own[0] += da;
        own[1] += db;
        own[2] += da * a;
        own[3] += db * b;
    });
    for (int channel = thread_index(); channel < shape.channels; channel += THREADS) {
        size_t at = (((size_t)block_y() * pieces_of(shape) + block_x()) * shape.channels + channel) * 2;
        pieces[at] = sums[channel];
        pieces[at + 1] = sums[MAX_CHANNELS + channel];
    }
}

// sums: [batch, channels, 2] over all pixels; means: [batch, groups, 2]: of w·dz and w·dz·x̂. Grid: (groups, batch).
KERNEL(THREADS)
group_norm_backward_sums(const float *weight, const float *pieces, float *sums, float *means, const int *settings) {
    SHARED(float, of_group, 2 * MAX_CHANNELS);
    Shape shape = shape_of(settings);
    int width = shape.channels / shape.groups, lane = thread_index() % 32;
    for (int i = thread_index() / 32; i < width; i += THREADS / 32) {
        int channel = block_x() * width + i;
        float plain = 0, normal = 0;
        for (int piece = lane; piece < pieces_of(shape); piece += 32) {
            size_t at = (((size_t)block_y() * pieces_of(shape) + piece) * shape.channels + channel) * 2;
            plain += pieces[at];
            normal += pieces[at + 1];
        }
        UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) {
            plain += shuffle_xor(plain, lanes);
            normal += shuffle_xor(normal, lanes);
        }
        if (lane == 0) {
            size_t at = ((size_t)block_y() * shape.channels + channel) * 2;
            sums[at] = plain;
            sums[at + 1] = normal;
            of_group[i] = weight[channel] * plain;
            of_group[MAX_CHANNELS + i] = weight[channel] * normal;
        }
    }
    sync_block();
    if (thread_index() > 0) return;
    float plain = 0, normal = 0, count = (float)shape.pixels * width;
    for (int i = 0; i < width; i++) {
        plain += of_group[i];
        normal += of_group[MAX_CHANNELS + i];
    }
    size_t at = ((size_t)block_y() * shape.groups + block_x()) * 2;
    means[at] = plain / count;
    means[at + 1] = normal / count;
}

// dx = 1/σ · (w·dz − mean(w·dz) − x̂ · mean(w·dz·x̂)), the means over the group. Grid: (pieces, batch).
KERNEL(THREADS)
group_norm_backward_apply(const u16 *x, const float *weight, const float *bias, const float *statistics,
                          const float *means, const u16 *dy, u16 *dx, const int *settings) {
    Shape shape = shape_of(settings);
    x += sample_at(shape, shape.x_stride);
    dy += sample_at(shape, shape.dy_stride);
    dx += sample_at(shape, shape.channels);
    int width = shape.channels / shape.groups;
    for_piece(shape, [&](int pixel, int channel) {
        size_t group = ((size_t)block_y() * shape.groups + channel / width) * 2;
        const float *own = statistics + group, *mean = means + group;
        u32 xs = *(const u32 *)(x + pixel * shape.x_stride + channel);
        u32 dys = *(const u32 *)(dy + pixel * shape.dy_stride + channel);
        float a = (low_of(xs) - own[0]) * own[1], b = (high_of(xs) - own[0]) * own[1];
        float da = before_silu(a * weight[channel] + bias[channel], low_of(dys), shape.silu);
        float db = before_silu(b * weight[channel + 1] + bias[channel + 1], high_of(dys), shape.silu);
        da = own[1] * (weight[channel] * da - mean[0] - a * mean[1]);
        db = own[1] * (weight[channel + 1] * db - mean[0] - b * mean[1]);
        *(u32 *)(dx + pixel * shape.channels + channel) = pack_bf16(da, db);
    });
}

// dweight, dbias: [channels], the sums over the samples in order. Grid: (channels / THREADS rounded up).
KERNEL(THREADS)
group_norm_backward_weights(const float *sums, float *dweight, float *dbias, const int *settings) {
    Shape shape = shape_of(settings);
    int channel = block_x() * THREADS + thread_index();
    if (channel >= shape.channels) return;
    float plain = 0, normal = 0;
    for (int sample = 0; sample < shape.batch; sample++) {
        plain += sums[((size_t)sample * shape.channels + channel) * 2];
        normal += sums[((size_t)sample * shape.channels + channel) * 2 + 1];
    }
    dweight[channel] = normal;
    dbias[channel] = plain;
}
