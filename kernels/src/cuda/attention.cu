// Scaled dot-product attention, forward and backward, in memory linear in the number of rows.
//
// After FlashAttention-2 (arXiv:2307.08691): tiles of one side pass through shared memory while a warp keeps 16 rows of
// the other in registers; the softmax is kept online; the backward pass computes the scores again from the logarithm of
// each row's sum. No sum is taken by atomics: the gradient of the queries and that of keys and values are kernels of
// their own, which costs 7 products of matrices instead of 5 and gives the same bits every time.
//
// query, result: [batch, rows, heads, HEAD_WIDTH], key, value: [batch, keys, heads, HEAD_WIDTH], all bf16; what comes from
// elsewhere (query, key, value, gradient) has a stride of its own from row to row, so that it may be padded or a part of
// one product's result; what is made here is contiguous. log_sums, means: [batch, heads, rows] in f32. Rows begin at
// multiples of 16 bytes.
//
// Defined from outside: HEAD_WIDTH (a multiple of 8), TILE (streamed rows at a time, a multiple of 16), OF_KEY and
// OF_VALUE (which gradients attention_backward_key computes: both at once do not fit the registers at width 160), and
// WANT_name of the kernel that is wanted (compiled alone, it compiles in a quarter of the time) or ALL_KERNELS.

#define WIDTH ((HEAD_WIDTH + 15) / 16 * 16) // padded with zeros for products of 16
#define STRIDE (WIDTH + 8)                  // rows in shared memory: eight consecutive ones touch all banks once
#define STEPS (WIDTH / 16)
#define COLUMNS (HEAD_WIDTH / 8)
#define OWN 64 // rows that a block keeps: 4 warps of 16
#define THREADS 128
#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f
#define MINUS_INFINITY float_of_bits(0xff800000u)

struct Shape {
    int heads, rows, keys;
    bool causal;
    float scale;
    int query_stride, key_stride, value_stride, gradient_stride; // in elements
};

// From row to row of what is made here.
DEVICE int stride_of(const Shape &shape) { return shape.heads * HEAD_WIDTH; }

DEVICE Shape shape_of(const int *settings) {
    Shape shape;
    shape.heads = settings[0];
    shape.rows = settings[1];
    shape.keys = settings[2];
    shape.causal = settings[3] != 0;
    shape.scale = float_of_bits(settings[4]);
    shape.query_stride = settings[5];
    shape.key_stride = settings[6];
    shape.value_stride = settings[7];
    shape.gradient_stride = settings[8];
    return shape;
}

// Where the rows of one head of one sample begin.
DEVICE size_t head_of(int length, int stride) {
    return (size_t)block_z() * length * stride + (size_t)block_y() * HEAD_WIDTH;
}
DEVICE size_t sums_of(const Shape &shape) { return ((size_t)block_z() * shape.heads + block_y()) * shape.rows; }

DEVICE int lane() { return thread_index() % 32; }
DEVICE int warp() { return thread_index() / 32; }

// Starts to copy `count` rows from `first` on; rows from `end` on are zeros.
DEVICE void load_tile(u16 *to, const u16 *from, int count, int first, int end, int stride) {
    for (int i = thread_index(); i < count * COLUMNS; i += THREADS) {
        int row = i / COLUMNS, column = i % COLUMNS * 8;
        bool there = first + row < end;
        copy_async(to + row * STRIDE + column, from + (size_t)(there ? first + row : 0) * stride + column, there);
    }
}

// The columns from HEAD_WIDTH to WIDTH, which no copy writes.
DEVICE void zero_padding(u16 *tiles, int count) {
    for (int row = thread_index(); row < count; row += THREADS)
        for (int column = HEAD_WIDTH; column < WIDTH; column++) tiles[row * STRIDE + column] = 0;
}

// A warp's 16 rows as left operands.
DEVICE void load_own(u32 (*own)[4], const u16 *tile) {
    const u16 *row = tile + (warp() * 16 + lane() % 16) * STRIDE + lane() / 16 * 8;
    UNROLL for (int step = 0; step < STEPS; step++) load_matrices(own[step], row + step * 16);
}

// to[16 x 16·PAIRS] = own[16 x WIDTH] · tileᵀ
template <int PAIRS> DEVICE void multiply_transposed(float (*to)[4], const u32 (*own)[4], const u16 *tile) {
    UNROLL for (int i = 0; i < 2 * PAIRS; i++) UNROLL for (int j = 0; j < 4; j++) to[i][j] = 0;
    UNROLL for (int step = 0; step < STEPS; step++) {
        UNROLL for (int pair = 0; pair < PAIRS; pair++) {
            u32 b[4];
            int row = pair * 16 + lane() / 16 * 8 + lane() % 8;
            load_matrices(b, tile + row * STRIDE + step * 16 + lane() / 8 % 2 * 8);
            mma(to[2 * pair], own[step], b[0], b[1]);
            mma(to[2 * pair + 1], own[step], b[2], b[3]);
        }
    }
}

// to[16 x HEAD_WIDTH] += weights[16 x 16·PAIRS] · tile
template <int PAIRS> DEVICE void accumulate(float (*to)[4], const float (*weights)[4], const u16 *tile) {
    UNROLL for (int pair = 0; pair < PAIRS; pair++) {
        const float(*w)[4] = weights + 2 * pair;
        u32 a[4] = {pack_bf16(w[0][0], w[0][1]), pack_bf16(w[0][2], w[0][3]), pack_bf16(w[1][0], w[1][1]),
                    pack_bf16(w[1][2], w[1][3])};
        UNROLL for (int column = 0; column < COLUMNS; column += 2) {
            u32 b[4];
            load_matrices_transposed(b, tile + (pair * 16 + lane() % 16) * STRIDE + column * 8 + lane() / 16 * 8);
            mma(to[column], a, b[0], b[1]);
            if (column + 1 < COLUMNS) mma(to[column + 1], a, b[2], b[3]);
        }
    }
}

// Writes a warp's 16 rows as bf16, each times its factor.
DEVICE void store(u16 *to, const float (*values)[4], const float *factors, int first, int end, int stride) {
    UNROLL for (int half = 0; half < 2; half++) {
        int row = first + lane() / 4 + half * 8;
        if (row >= end) continue;
        u16 *at = to + (size_t)row * stride + lane() % 4 * 2;
        UNROLL for (int column = 0; column < COLUMNS; column++) {
            const float *v = values[column] + 2 * half;
            *(u32 *)(at + column * 8) = pack_bf16(v[0] * factors[half], v[1] * factors[half]);
        }
    }
}

#if ALL_KERNELS || WANT_attention_forward
// Grid: (tiles of OWN rows, heads, batch).
KERNEL(THREADS)
attention_forward(const u16 *query, const u16 *key, const u16 *value, u16 *result, float *log_sums,
                  const int *settings) {
    SHARED(u16, tiles, 4 * TILE * STRIDE); // two stages of keys and values
    Shape shape = shape_of(settings);
    query += head_of(shape.rows, shape.query_stride);
    key += head_of(shape.keys, shape.key_stride);
    value += head_of(shape.keys, shape.value_stride);
    int first = block_x() * OWN;
    int own_row = first + warp() * 16 + lane() / 4;

    zero_padding(tiles, 4 * TILE);
    load_tile(tiles, query, OWN, first, shape.rows, shape.query_stride);
    copies_end_group();
    copies_wait<0>();
    sync_block();
    u32 own[STEPS][4];
    load_own(own, tiles);
    sync_block();

    float sums[COLUMNS][4] = {};
    float largest[2] = {MINUS_INFINITY, MINUS_INFINITY}, total[2] = {0, 0};
    const float factor = shape.scale * LOG2_E;
    int end = shape.causal && first + OWN < shape.keys ? first + OWN : shape.keys;
    int count = (end + TILE - 1) / TILE;

    load_tile(tiles, key, TILE, 0, shape.keys, shape.key_stride);
    load_tile(tiles + TILE * STRIDE, value, TILE, 0, shape.keys, shape.value_stride);
    copies_end_group();
    for (int t = 0; t < count; t++) {
        if (t + 1 < count) {
            u16 *next = tiles + (t + 1) % 2 * 2 * TILE * STRIDE;
            load_tile(next, key, TILE, (t + 1) * TILE, shape.keys, shape.key_stride);
            load_tile(next + TILE * STRIDE, value, TILE, (t + 1) * TILE, shape.keys, shape.value_stride);
        }
        copies_end_group();
        copies_wait<1>();
        sync_block();

        const u16 *keys = tiles + t % 2 * 2 * TILE * STRIDE;
        float weights[TILE / 8][4];
        multiply_transposed<TILE / 16>(weights, own, keys);
        bool whole = (t + 1) * TILE <= shape.keys && !(shape.causal && (t + 1) * TILE > first);
        if (!whole) {
            UNROLL for (int i = 0; i < TILE / 8; i++) UNROLL for (int j = 0; j < 4; j++) {
                int seen = t * TILE + i * 8 + lane() % 4 * 2 + j % 2;
                bool hidden = seen >= shape.keys || (shape.causal && seen > own_row + j / 2 * 8);
                if (hidden) weights[i][j] = MINUS_INFINITY;
            }
        }
        UNROLL for (int half = 0; half < 2; half++) {
            float now = largest[half];
            UNROLL for (int i = 0; i < TILE / 8; i++) {
                now = fmaxf(now, fmaxf(weights[i][2 * half], weights[i][2 * half + 1]) * factor);
            }
            now = fmaxf(now, shuffle_xor(now, 1));
            now = fmaxf(now, shuffle_xor(now, 2));
            // Every row sees key 0, which is in the first tile: from there on `now` is finite.
            float shrink = exp2_fast(largest[half] - now);
            largest[half] = now;
            total[half] *= shrink;
            UNROLL for (int column = 0; column < COLUMNS; column++) {
                sums[column][2 * half] *= shrink;
                sums[column][2 * half + 1] *= shrink;
            }
            UNROLL for (int i = 0; i < TILE / 8; i++) UNROLL for (int j = 2 * half; j < 2 * half + 2; j++) {
                weights[i][j] = exp2_fast(weights[i][j] * factor - now);
                total[half] += weights[i][j];
            }
        }
        accumulate<TILE / 16>(sums, weights, keys + TILE * STRIDE);
        sync_block();
    }

    float inverse[2];
    UNROLL for (int half = 0; half < 2; half++) {
        total[half] += shuffle_xor(total[half], 1);
        total[half] += shuffle_xor(total[half], 2);
        inverse[half] = 1.0f / total[half];
        int row = own_row + half * 8;
        if (lane() % 4 == 0 && row < shape.rows) {
            log_sums[sums_of(shape) + row] = largest[half] * LN_2 + log_natural(total[half]);
        }
    }
    store(result + head_of(shape.rows, stride_of(shape)), sums, inverse, first + warp() * 16, shape.rows, stride_of(shape));
}
#endif

#if ALL_KERNELS || WANT_attention_means
// means = Σ gradient · result over a head's width. Grid: (tiles of OWN rows, heads, batch).
KERNEL(THREADS)
attention_means(const u16 *result, const u16 *gradient, float *means, const int *settings) {
    Shape shape = shape_of(settings);
    result += head_of(shape.rows, stride_of(shape));
    gradient += head_of(shape.rows, shape.gradient_stride);
    ROLLED for (int i = 0; i < 16; i++) {
        int row = block_x() * OWN + warp() * 16 + i;
        if (row >= shape.rows) return;
        const u16 *own = result + (size_t)row * stride_of(shape), *other = gradient + (size_t)row * shape.gradient_stride;
        float sum = 0;
        for (int column = lane() * 2; column < HEAD_WIDTH; column += 64) {
            u32 a = *(const u32 *)(own + column), b = *(const u32 *)(other + column);
            sum += low_of(a) * low_of(b) + high_of(a) * high_of(b);
        }
        UNROLL for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
        if (lane() == 0) means[sums_of(shape) + row] = sum;
    }
}
#endif

#if ALL_KERNELS || WANT_attention_backward_query
// The gradient of the queries. Grid: (tiles of OWN rows, heads, batch).
KERNEL(THREADS)
attention_backward_query(const u16 *query, const u16 *key, const u16 *value, const u16 *gradient,
                         const float *log_sums, const float *means, u16 *dquery, const int *settings) {
    SHARED(u16, tiles, 4 * TILE * STRIDE);
    Shape shape = shape_of(settings);
    query += head_of(shape.rows, shape.query_stride);
    key += head_of(shape.keys, shape.key_stride);
    value += head_of(shape.keys, shape.value_stride);
    gradient += head_of(shape.rows, shape.gradient_stride);
    int first = block_x() * OWN;
    int own_row = first + warp() * 16 + lane() / 4;

    zero_padding(tiles, 4 * TILE);
    load_tile(tiles, query, OWN, first, shape.rows, shape.query_stride);
    load_tile(tiles + OWN * STRIDE, gradient, OWN, first, shape.rows, shape.gradient_stride);
    copies_end_group();
    copies_wait<0>();
    sync_block();
    u32 own[STEPS][4], own_gradient[STEPS][4];
    load_own(own, tiles);
    load_own(own_gradient, tiles + OWN * STRIDE);
    sync_block();

    float log_sum[2], mean[2];
    UNROLL for (int half = 0; half < 2; half++) {
        int row = own_row + half * 8;
        log_sum[half] = row < shape.rows ? log_sums[sums_of(shape) + row] * LOG2_E : 0;
        mean[half] = row < shape.rows ? means[sums_of(shape) + row] : 0;
    }
    float sums[COLUMNS][4] = {};
    const float factor = shape.scale * LOG2_E;
    int end = shape.causal && first + OWN < shape.keys ? first + OWN : shape.keys;
    int count = (end + TILE - 1) / TILE;

    load_tile(tiles, key, TILE, 0, shape.keys, shape.key_stride);
    load_tile(tiles + TILE * STRIDE, value, TILE, 0, shape.keys, shape.value_stride);
    copies_end_group();
    for (int t = 0; t < count; t++) {
        if (t + 1 < count) {
            u16 *next = tiles + (t + 1) % 2 * 2 * TILE * STRIDE;
            load_tile(next, key, TILE, (t + 1) * TILE, shape.keys, shape.key_stride);
            load_tile(next + TILE * STRIDE, value, TILE, (t + 1) * TILE, shape.keys, shape.value_stride);
        }
        copies_end_group();
        copies_wait<1>();
        sync_block();
        const u16 *keys = tiles + t % 2 * 2 * TILE * STRIDE, *values = keys + TILE * STRIDE;
        UNROLL for (int pair = 0; pair < TILE / 16; pair++) {
            float scores[2][4], products[2][4];
            multiply_transposed<1>(scores, own, keys + pair * 16 * STRIDE);
            multiply_transposed<1>(products, own_gradient, values + pair * 16 * STRIDE);
            UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 4; j++) {
                int seen = t * TILE + pair * 16 + i * 8 + lane() % 4 * 2 + j % 2;
                bool hidden = seen >= shape.keys || (shape.causal && seen > own_row + j / 2 * 8);
                float weight = hidden ? 0 : exp2_fast(scores[i][j] * factor - log_sum[j / 2]);
                scores[i][j] = weight * (products[i][j] - mean[j / 2]);
            }
            accumulate<1>(sums, scores, keys + pair * 16 * STRIDE);
        }
        sync_block();
    }
    float scales[2] = {shape.scale, shape.scale};
    store(dquery + head_of(shape.rows, stride_of(shape)), sums, scales, first + warp() * 16, shape.rows, stride_of(shape));
}
#endif

#if ALL_KERNELS || WANT_attention_backward_key
// The gradients of keys and values. Grid: (tiles of OWN keys, heads, batch).
KERNEL(THREADS)
attention_backward_key(const u16 *query, const u16 *key, const u16 *value, const u16 *gradient, const float *log_sums,
                       const float *means, u16 *dkey, u16 *dvalue, const int *settings) {
    SHARED(u16, tiles, 4 * TILE * STRIDE); // two stages of queries and gradients
    SHARED(float, row_sums, 4 * TILE);     // two stages of log_sums and means
    Shape shape = shape_of(settings);
    query += head_of(shape.rows, shape.query_stride);
    key += head_of(shape.keys, shape.key_stride);
    value += head_of(shape.keys, shape.value_stride);
    gradient += head_of(shape.rows, shape.gradient_stride);
    log_sums += sums_of(shape);
    means += sums_of(shape);
    int first = block_x() * OWN;
    int own_key = first + warp() * 16 + lane() / 4;

    zero_padding(tiles, 4 * TILE);
    load_tile(tiles, key, OWN, first, shape.keys, shape.key_stride);
    load_tile(tiles + OWN * STRIDE, value, OWN, first, shape.keys, shape.value_stride);
    copies_end_group();
    copies_wait<0>();
    sync_block();
    u32 own[STEPS][4], own_value[STEPS][4];
    load_own(own, tiles);
    if (OF_KEY) load_own(own_value, tiles + OWN * STRIDE);
    sync_block();

    float key_sums[COLUMNS][4] = {}, value_sums[COLUMNS][4] = {};
    const float factor = shape.scale * LOG2_E;
    int count = (shape.rows + TILE - 1) / TILE;
    int start = shape.causal ? first / TILE : 0; // earlier rows do not see these keys

    // Stage t % 2 gets the rows of tile t.
    auto load = [&](int t) {
        u16 *stage = tiles + t % 2 * 2 * TILE * STRIDE;
        load_tile(stage, query, TILE, t * TILE, shape.rows, shape.query_stride);
        load_tile(stage + TILE * STRIDE, gradient, TILE, t * TILE, shape.rows, shape.gradient_stride);
        for (int i = thread_index(); i < TILE; i += THREADS) {
            int row = t * TILE + i;
            row_sums[t % 2 * 2 * TILE + i] = row < shape.rows ? log_sums[row] * LOG2_E : 0;
            row_sums[t % 2 * 2 * TILE + TILE + i] = row < shape.rows ? means[row] : 0;
        }
    };
    if (start < count) load(start);
    copies_end_group();
    for (int t = start; t < count; t++) {
        if (t + 1 < count) load(t + 1);
        copies_end_group();
        copies_wait<1>();
        sync_block();
        const u16 *rows = tiles + t % 2 * 2 * TILE * STRIDE, *gradients = rows + TILE * STRIDE;
        const float *log_sum = row_sums + t % 2 * 2 * TILE, *mean = log_sum + TILE;
        UNROLL for (int pair = 0; pair < TILE / 16; pair++) {
            float weights[2][4];
            multiply_transposed<1>(weights, own, rows + pair * 16 * STRIDE);
            UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 4; j++) {
                int local = pair * 16 + i * 8 + lane() % 4 * 2 + j % 2, row = t * TILE + local;
                bool hidden = row >= shape.rows || (shape.causal && own_key + j / 2 * 8 > row);
                weights[i][j] = hidden ? 0 : exp2_fast(weights[i][j] * factor - log_sum[local]);
            }
            if (OF_VALUE) accumulate<1>(value_sums, weights, gradients + pair * 16 * STRIDE);
            if (OF_KEY) {
                float products[2][4];
                multiply_transposed<1>(products, own_value, gradients + pair * 16 * STRIDE);
                UNROLL for (int i = 0; i < 2; i++) UNROLL for (int j = 0; j < 4; j++) {
                    int local = pair * 16 + i * 8 + lane() % 4 * 2 + j % 2;
                    products[i][j] = weights[i][j] * (products[i][j] - mean[local]);
                }
                accumulate<1>(key_sums, products, rows + pair * 16 * STRIDE);
            }
        }
        sync_block();
    }
    float scales[2] = {shape.scale, shape.scale}, ones[2] = {1, 1};
    int own_first = first + warp() * 16;
    if (OF_KEY)
        store(dkey + head_of(shape.keys, stride_of(shape)), key_sums, scales, own_first, shape.keys, stride_of(shape));
    if (OF_VALUE)
        store(dvalue + head_of(shape.keys, stride_of(shape)), value_sums, ones, own_first, shape.keys, stride_of(shape));
}
#endif
