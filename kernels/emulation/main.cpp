// Runs every kernel on the CPU (see emulated.h) and compares it with the plain formula in f64, at shapes that fill tiles
// and that do not, with the threads of each block in both orders. Prints a line per case; exit 1 when one is wrong.
#include "emulated.h"

#define HEAD_WIDTH 40
#define TILE 64
#define OF_KEY 1
#define OF_VALUE 1
namespace width40 {
#include "../src/cuda/attention.cu"
}
#undef HEAD_WIDTH
#define HEAD_WIDTH 64
#include "undefine.h"
namespace width64 {
#include "../src/cuda/attention.cu"
}
#undef HEAD_WIDTH
#define HEAD_WIDTH 80
#include "undefine.h"
namespace width80 {
#include "../src/cuda/attention.cu"
}
#undef HEAD_WIDTH
#undef TILE
#undef OF_VALUE
#define HEAD_WIDTH 160
#define TILE 32
#define OF_VALUE 0
#include "undefine.h"
namespace width160_key {
#include "../src/cuda/attention.cu"
}
#undef OF_KEY
#undef OF_VALUE
#define OF_KEY 0
#define OF_VALUE 1
#include "undefine.h"
namespace width160_value {
#include "../src/cuda/attention.cu"
}
#include "undefine.h"
namespace group_norm {
#include "../src/cuda/group_norm.cu"
}
#include "undefine.h"
namespace layer_norm {
#include "../src/cuda/layer_norm.cu"
}
#include "undefine.h"
namespace geglu {
#include "../src/cuda/geglu.cu"
}
#include "undefine.h"
namespace optimizer {
#include "../src/cuda/optimizer.cu"
}
#include "undefine.h"
namespace flat {
#include "../src/cuda/flat.cu"
}
#include "undefine.h"

using emulation::Buffer;
using emulation::launch;
typedef std::vector<double> Values;

static int failures = 0, cases = 0;

// A fixed generator: the same numbers everywhere.
static u64 state = 1;
static double uniform() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(state >> 11) / 9007199254740992.0;
}
static double normal() {
    return sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform());
}
static void fill(Buffer<u16> &buffer, double scale, double shift = 0) {
    for (size_t i = 0; i < buffer.count; i++) buffer[i] = to_bf16((float)(normal() * scale + shift));
}
static void fill(Buffer<float> &buffer, double scale, double shift = 0) {
    for (size_t i = 0; i < buffer.count; i++) buffer[i] = (float)(normal() * scale + shift);
}
static double value_of(u16 x) { return from_bf16(x); }
static double value_of(float x) { return x; }
static int bits(double x) { return (int)bits_of_float((float)x); }

// The L2 norm of the difference, relative to that of what is right; values below a thousandth count as that.
template <class T> static void compare(const char *what, const char *part, T *found, const Values &right, double allowed) {
    double difference = 0, size = 1e-6 * (double)right.size();
    bool finite = true;
    for (size_t i = 0; i < right.size(); i++) {
        double f = value_of(found[i]);
        finite = finite && std::isfinite(f);
        difference += (f - right[i]) * (f - right[i]);
        size += right[i] * right[i];
    }
    double error = sqrt(difference / size);
    bool good = finite && error <= allowed;
    cases++;
    failures += !good;
    printf("%-44s %-12s error %.1e, allowed %.0e%s\n", what, part, error, allowed, good ? "" : "   WRONG");
}

// Runs `run` with the threads of each block in both orders; all of `results` must be the same bits.
template <class Run, class... Results> static void both_orders(const char *what, Run run, Results &...results) {
    emulation::block.backwards = true;
    run();
    std::vector<std::vector<char>> first;
    auto keep = [&](auto &r) { first.emplace_back((char *)r.data, (char *)(r.data + r.count)); };
    (keep(results), ...);
    auto spoil = [&](auto &r) { memset((void *)r.data, 0xff, r.count * sizeof(*r.data)); };
    (spoil(results), ...);
    emulation::block.backwards = false;
    run();
    size_t i = 0;
    bool same = true;
    auto check = [&](auto &r) { same = same && !memcmp(first[i++].data(), r.data, r.count * sizeof(*r.data)); };
    (check(results), ...);
    cases++;
    failures += !same;
    if (!same) printf("%-44s the order of the threads changes the result   WRONG\n", what);
}

struct AttentionCase {
    int batch, heads, rows, keys;
    bool causal;
    bool fused; // query, key and value are parts of one buffer's rows
};

template <class Forward, class Means, class BackwardQuery, class BackwardKey>
static void attention(int width, AttentionCase c, Forward forward, Means means_of, BackwardQuery backward_query,
                      BackwardKey backward_key) {
    char what[96];
    snprintf(what, sizeof what, "attention %dx%dx%dx%d, width %d%s%s", c.batch, c.heads, c.rows, c.keys, width,
             c.causal ? ", causal" : "", c.fused ? ", fused" : "");
    int channels = c.heads * width, qs = channels, ks = channels, vs = channels;
    size_t rows = (size_t)c.batch * c.rows, keys = (size_t)c.batch * c.keys;
    if (c.fused) qs = ks = vs = 3 * channels;
    // Parts of one buffer begin at an offset; separate ones at 0.
    Buffer<u16> q_all(rows * qs), k_all(c.fused ? 1 : keys * ks), v_all(c.fused ? 1 : keys * vs);
    Buffer<u16> dq(rows * channels), dk(keys * channels), dv(keys * channels);
    fill(q_all, 1.5);
    fill(k_all, 1.5);
    fill(v_all, 1, 0.25);
    u16 *q = q_all, *k = c.fused ? q + channels : (u16 *)k_all, *v = c.fused ? q + 2 * channels : (u16 *)v_all;
    int gs = c.fused ? channels + 8 : channels;
    Buffer<u16> result(rows * channels), gradient(rows * gs);
    fill(gradient, 1);
    Buffer<float> log_sums(rows * c.heads), means(rows * c.heads);
    double scale = 1 / sqrt((double)width);
    Buffer<int> settings(9);
    int words[9] = {c.heads, c.rows, c.keys, c.causal, bits(scale), qs, ks, vs, gs};
    memcpy(settings.data, words, sizeof words);

    int row_tiles = (c.rows + 63) / 64, key_tiles = (c.keys + 63) / 64;
    both_orders(
        what,
        [&] {
            launch(row_tiles, c.heads, c.batch, 128, [&] { forward(q, k, v, result, log_sums, settings); });
            launch(row_tiles, c.heads, c.batch, 128, [&] { means_of(result, gradient, means, settings); });
            launch(row_tiles, c.heads, c.batch, 128,
                   [&] { backward_query(q, k, v, gradient, log_sums, means, dq, settings); });
            backward_key(key_tiles, c.heads, c.batch, q, k, v, gradient.data, log_sums.data, means.data, dk.data,
                         dv.data, settings.data);
        },
        result, log_sums, means, dq, dk, dv);

    Values r(rows * channels), l(rows * c.heads), rdq(rows * channels), rdk(keys * channels), rdv(keys * channels);
    std::vector<double> weights(c.keys);
    for (int b = 0; b < c.batch; b++)
        for (int h = 0; h < c.heads; h++)
            for (int i = 0; i < c.rows; i++) {
                auto at = [&](u16 *x, int length, int stride, int row, int d) {
                    return value_of(x[((size_t)b * length + row) * stride + h * width + d]);
                };
                auto out = [&](int length, int row, int d) { return ((size_t)b * length + row) * channels + h * width + d; };
                double total = 0, mean = 0;
                int seen = c.causal && i + 1 < c.keys ? i + 1 : c.keys;
                for (int j = 0; j < seen; j++) {
                    double score = 0;
                    for (int d = 0; d < width; d++) score += at(q, c.rows, qs, i, d) * at(k, c.keys, ks, j, d);
                    total += weights[j] = exp(score * scale);
                }
                l[((size_t)b * c.heads + h) * c.rows + i] = log(total);
                for (int j = 0; j < seen; j++)
                    for (int d = 0; d < width; d++) r[out(c.rows, i, d)] += weights[j] / total * at(v, c.keys, vs, j, d);
                for (int d = 0; d < width; d++) mean += r[out(c.rows, i, d)] * at(gradient.data, c.rows, gs, i, d);
                for (int j = 0; j < seen; j++) {
                    double product = 0, weight = weights[j] / total;
                    for (int d = 0; d < width; d++) product += at(gradient.data, c.rows, gs, i, d) * at(v, c.keys, vs, j, d);
                    double dscore = weight * (product - mean) * scale;
                    for (int d = 0; d < width; d++) {
                        rdq[out(c.rows, i, d)] += dscore * at(k, c.keys, ks, j, d);
                        rdk[out(c.keys, j, d)] += dscore * at(q, c.rows, qs, i, d);
                        rdv[out(c.keys, j, d)] += weight * at(gradient.data, c.rows, gs, i, d);
                    }
                }
            }
    // bf16 keeps 8 bits: rounding weights and results costs about 2e-3 of their norm.
    compare(what, "result", result.data, r, 4e-3);
    compare(what, "log_sums", log_sums.data, l, 1e-6);
    compare(what, "dquery", dq.data, rdq, 8e-3);
    compare(what, "dkey", dk.data, rdk, 8e-3);
    compare(what, "dvalue", dv.data, rdv, 8e-3);
}

static const AttentionCase ATTENTION_CASES[] = {
    {1, 2, 64, 64, false, false},  {2, 1, 1, 1, false, false},   {1, 1, 130, 77, false, false},
    {1, 1, 77, 77, true, false},   {1, 1, 70, 200, false, false}, {1, 2, 144, 144, false, true},
    {1, 1, 200, 33, true, false},   {1, 3, 20, 140, true, false},
};

static void attentions() {
    for (auto &c : ATTENTION_CASES) {
        attention(40, c, width40::attention_forward, width40::attention_means, width40::attention_backward_query,
                  [](int x, int y, int z, auto... rest) {
                      launch(x, y, z, 128, [&] { width40::attention_backward_key(rest...); });
                  });
        attention(64, c, width64::attention_forward, width64::attention_means, width64::attention_backward_query,
                  [](int x, int y, int z, auto... rest) {
                      launch(x, y, z, 128, [&] { width64::attention_backward_key(rest...); });
                  });
        attention(80, c, width80::attention_forward, width80::attention_means, width80::attention_backward_query,
                  [](int x, int y, int z, auto... rest) {
                      launch(x, y, z, 128, [&] { width80::attention_backward_key(rest...); });
                  });
        attention(160, c, width160_key::attention_forward, width160_key::attention_means,
                  width160_key::attention_backward_query, [](int x, int y, int z, auto... rest) {
                      launch(x, y, z, 128, [&] { width160_key::attention_backward_key(rest...); });
                      launch(x, y, z, 128, [&] { width160_value::attention_backward_key(rest...); });
                  });
    }
}

static void group_norms(int batch, int pixels, int channels, int groups, bool silu, double shift) {
    char what[96];
    snprintf(what, sizeof what, "group norm %dx%dx%d, %d groups%s", batch, pixels, channels, groups, silu ? ", SiLU" : "");
    int pieces = (pixels + 31) / 32, width = channels / groups;
    size_t size = (size_t)batch * pixels * channels;
    Buffer<u16> x(size), y(size), dy(size), dx(size);
    Buffer<float> weight(channels), bias(channels), piece_sums((size_t)batch * pieces * groups * 2);
    Buffer<float> statistics((size_t)batch * groups * 2), piece_gradients((size_t)batch * pieces * channels * 2);
    Buffer<float> sums((size_t)batch * channels * 2), means((size_t)batch * groups * 2), dweight(channels), dbias(channels);
    fill(x, 2, shift);
    fill(dy, 1);
    fill(weight, 0.5, 1);
    fill(bias, 0.5);
    double eps = 1e-5;
    Buffer<int> settings(8);
    int words[8] = {pixels, channels, groups, batch, silu, bits(eps), channels, channels};
    memcpy(settings.data, words, sizeof words);
    both_orders(
        what,
        [&] {
            using namespace group_norm;
            launch(pieces, batch, 1, 256, [&] { group_norm_pieces(x, piece_sums, settings); });
            launch((groups + 7) / 8, batch, 1, 256, [&] { group_norm_statistics(x, piece_sums, statistics, settings); });
            launch(pieces, batch, 1, 256, [&] { group_norm_apply(x, weight, bias, statistics, y, settings); });
            launch(pieces, batch, 1, 256, [&] {
                group_norm_backward_pieces(x, weight, bias, statistics, dy, piece_gradients, settings);
            });
            launch(groups, batch, 1, 256,
                   [&] { group_norm_backward_sums(weight, piece_gradients, sums, means, settings); });
            launch(pieces, batch, 1, 256,
                   [&] { group_norm_backward_apply(x, weight, bias, statistics, means, dy, dx, settings); });
            launch((channels + 255) / 256, 1, 1, 256, [&] { group_norm_backward_weights(sums, dweight, dbias, settings); });
        },
        y, statistics, dx, dweight, dbias);

    Values ry(size), rdx(size), rdweight(channels), rdbias(channels);
    for (int b = 0; b < batch; b++)
        for (int g = 0; g < groups; g++) {
            auto each = [&](auto f) {
                for (int p = 0; p < pixels; p++)
                    for (int c = g * width; c < (g + 1) * width; c++) f(((size_t)b * pixels + p) * channels + c, c);
            };
            double n = (double)pixels * width, mean = 0, variance = 0, plain = 0, product = 0;
            each([&](size_t i, int) { mean += value_of(x[i]) / n; });
            each([&](size_t i, int) { variance += pow(value_of(x[i]) - mean, 2) / n; });
            double inverse = 1 / sqrt(variance + eps);
            auto dz = [&](size_t i, int c) {
                double z = (value_of(x[i]) - mean) * inverse * weight[c] + bias[c], s = 1 / (1 + exp(-z));
                return value_of(dy[i]) * (silu ? s * (1 + z * (1 - s)) : 1);
            };
            each([&](size_t i, int c) {
                double normal = (value_of(x[i]) - mean) * inverse, z = normal * weight[c] + bias[c];
                ry[i] = silu ? z / (1 + exp(-z)) : z;
                rdweight[c] += dz(i, c) * normal;
                rdbias[c] += dz(i, c);
                plain += dz(i, c) * weight[c] / n;
                product += dz(i, c) * weight[c] * normal / n;
            });
            each([&](size_t i, int c) {
                rdx[i] = inverse * (dz(i, c) * weight[c] - plain - (value_of(x[i]) - mean) * inverse * product);
            });
        }
    compare(what, "y", y.data, ry, 3e-3);
    compare(what, "dx", dx.data, rdx, 3e-3);
    compare(what, "dweight", dweight.data, rdweight, 1e-5);
    compare(what, "dbias", dbias.data, rdbias, 1e-5);
}

static void layer_norms(int rows, int width) {
    char what[96];
    snprintf(what, sizeof what, "layer norm %dx%d", rows, width);
    size_t size = (size_t)rows * width;
    int pieces = (rows + 63) / 64;
    Buffer<u16> x(size), y(size), dy(size), dx(size);
    Buffer<float> weight(width), bias(width), statistics(2 * rows), sums((size_t)pieces * 2 * width), dweight(width), dbias(width);
    fill(x, 2, 3);
    fill(dy, 1);
    fill(weight, 0.5, 1);
    fill(bias, 0.5);
    double eps = 1e-5;
    Buffer<int> settings(5);
    int words[5] = {rows, width, bits(eps), width, width};
    memcpy(settings.data, words, sizeof words);
    both_orders(
        what,
        [&] {
            using namespace layer_norm;
            launch((rows + 7) / 8, 1, 1, 256, [&] { layer_norm_forward(x, weight, bias, y, statistics, settings); });
            launch(pieces, 1, 1, 256, [&] { layer_norm_backward(x, weight, statistics, dy, dx, sums, settings); });
            launch((2 * width + 7) / 8, 1, 1, 256, [&] { layer_norm_backward_weights(sums, dweight, dbias, settings); });
        },
        y, statistics, dx, dweight, dbias);
    Values ry(size), rdx(size), rdweight(width), rdbias(width);
    for (int r = 0; r < rows; r++) {
        auto at = [&](int c) { return (size_t)r * width + c; };
        double mean = 0, variance = 0, plain = 0, product = 0;
        for (int c = 0; c < width; c++) mean += value_of(x[at(c)]) / width;
        for (int c = 0; c < width; c++) variance += pow(value_of(x[at(c)]) - mean, 2) / width;
        double inverse = 1 / sqrt(variance + eps);
        for (int c = 0; c < width; c++) {
            double normal = (value_of(x[at(c)]) - mean) * inverse, g = value_of(dy[at(c)]);
            ry[at(c)] = normal * weight[c] + bias[c];
            rdweight[c] += g * normal;
            rdbias[c] += g;
            plain += g * weight[c] / width;
            product += g * weight[c] * normal / width;
        }
        for (int c = 0; c < width; c++) {
            double normal = (value_of(x[at(c)]) - mean) * inverse;
            rdx[at(c)] = inverse * (value_of(dy[at(c)]) * weight[c] - plain - normal * product);
        }
    }
    compare(what, "y", y.data, ry, 3e-3);
    compare(what, "dx", dx.data, rdx, 3e-3);
    compare(what, "dweight", dweight.data, rdweight, 1e-5);
    compare(what, "dbias", dbias.data, rdbias, 1e-5);
}

static void geglus(int rows, int width) {
    char what[96];
    snprintf(what, sizeof what, "GEGLU %dx%d", rows, width);
    Buffer<u16> x((size_t)rows * width * 2), y((size_t)rows * width), dy((size_t)rows * width), dx((size_t)rows * width * 2);
    fill(x, 1.5);
    fill(dy, 1);
    Buffer<int> settings(4);
    settings[0] = rows;
    settings[1] = width;
    settings[2] = 2 * width;
    settings[3] = width;
    int blocks = (rows * width / 2 + 255) / 256;
    both_orders(
        what,
        [&] {
            launch(blocks, 1, 1, 256, [&] { geglu::geglu_forward(x, y, settings); });
            launch(blocks, 1, 1, 256, [&] { geglu::geglu_backward(x, dy, dx, settings); });
        },
        y, dx);
    Values ry((size_t)rows * width), rdx((size_t)rows * width * 2);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width; c++) {
            size_t h = (size_t)r * width * 2 + c, g = h + width, i = (size_t)r * width + c;
            double z = value_of(x[g]), below = 0.5 * erfc(-z / sqrt(2.0));
            ry[i] = value_of(x[h]) * z * below;
            rdx[h] = value_of(dy[i]) * z * below;
            rdx[g] = value_of(dy[i]) * value_of(x[h]) * (below + z * exp(-z * z / 2) / sqrt(2 * 3.141592653589793));
        }
    compare(what, "y", y.data, ry, 3e-3);
    compare(what, "dx", dx.data, rdx, 3e-3);
}

// AdamW and the norm promise the CPU's bits: compared with its loops, written out.
static void optimizers(u64 elements, double limit, bool ema) {
    char what[96];
    snprintf(what, sizeof what, "optimizer, %llu elements, limit %g%s", elements, limit, ema ? ", average" : "");
    Buffer<float> params(elements), gradient(elements), m(elements), v(elements), averages(ema ? elements : 1);
    Buffer<u16> rounded(elements);
    fill(params, 1);
    fill(gradient, 0.01);
    fill(m, 0.001);
    fill(averages, 1);
    for (u64 i = 0; i < elements; i++) v[i] = (float)(uniform() * 1e-4);
    u64 start = elements / 5, chunks = (elements + 65535) / 65536; // parameters before `start` stay
    optimizer::Group group = {start, elements, 0.99999f, 0.1f, 0.999f, 0.001f, 0.0316f, 1e-8f, 1e-3f, ema ? 0.01f : 0};
    Buffer<optimizer::Group> groups(2);
    groups[1] = group;
    Buffer<double> sums(chunks), norm(2), limits(1);
    limits[0] = limit;
    Buffer<u64> count(1);
    count[0] = elements;
    Buffer<int> settings(2);
    settings[0] = 1;
    settings[1] = 3;
    std::vector<float> p0(params.data, params.data + elements), m0(m.data, m.data + elements), v0(v.data, v.data + elements),
        a0(averages.data, averages.data + averages.count);
    both_orders(
        what,
        [&] {
            memcpy(params.data, p0.data(), elements * 4);
            memcpy(m.data, m0.data(), elements * 4);
            memcpy(v.data, v0.data(), elements * 4);
            memcpy(averages.data, a0.data(), averages.count * 4);
            launch((int)((chunks * 8 + 255) / 256), 1, 1, 256, [&] { optimizer::norm_chunks(gradient, sums, count); });
            launch(1, 1, 1, 256, [&] { optimizer::norm_finish(sums, norm, limits, count); });
            launch(3, 1, 1, 256, [&] {
                optimizer::adamw(params, gradient, m, v, averages, rounded, norm, groups, settings);
            });
        },
        params, m, v, averages, rounded, norm);
    double total = 0;
    for (u64 chunk = 0; chunk < chunks; chunk++) {
        double lanes[8] = {}, sum = 0;
        for (u64 i = chunk * 65536; i < elements && i < (chunk + 1) * 65536; i++) lanes[i % 8] += (double)gradient[i] * (double)gradient[i];
        for (double lane : lanes) sum += lane;
        total += sum;
    }
    double length = sqrt(total), factor = limit / (length + 1e-6);
    bool same = norm[0] == length;
    for (u64 i = 0; i < elements; i++) {
        float p = p0[i], mm = m0[i], vv = v0[i], a = ema ? a0[i] : 0;
        if (i >= start) {
            volatile float g = gradient[i];
            if (limit > 0 && factor < 1) g = g * (float)factor;
            volatile float difference = g - mm, moved = difference * group.one_minus_beta1;
            mm = mm + moved;
            volatile float square = g * g, share = square * group.one_minus_beta2, kept = vv * group.beta2;
            vv = kept + share;
            volatile float denominator = sqrtf(vv) / group.bias_correction2_sqrt;
            denominator = denominator + group.eps;
            volatile float ratio = mm / denominator, change = group.step_size * ratio, decayed = p * group.decay;
            p = decayed - change;
            volatile float apart = p - a, drawn = apart * 0.01f;
            if (ema) a = a + drawn;
            same = same && rounded[i] == to_bf16(p);
        }
        same = same && params[i] == p && m[i] == mm && v[i] == vv && (!ema || averages[i] == a);
    }
    cases++;
    failures += !same;
    printf("%-44s %-12s %s\n", what, "all", same ? "the CPU's bits" : "other bits than on the CPU   WRONG");
}

static void exact(const char *what, const char *part, bool same) {
    cases++;
    failures += !same;
    printf("%-44s %-12s %s\n", what, part, same ? "the same bits" : "other bits   WRONG");
}

// The flat buffers' kernels against the same in plain loops, bit for bit.
static void flats(u64 elements, int blocks) {
    char what[96];
    snprintf(what, sizeof what, "flat buffer of %llu in %d blocks", elements, blocks);
    Buffer<u64> settings(2);
    settings[0] = elements, settings[1] = blocks;
    Buffer<float> a(elements), b(elements), to(elements);
    Buffer<u16> half(elements);
    fill(a, 1);
    fill(b, 1e4);
    fill(half, 3);
    a[0] = -0.0f;
    std::vector<float> a0(a.data, a.data + elements);

    both_orders(what, [&] { launch(blocks, 1, 1, 256, [&] { flat::flat_clear(to, settings); }); }, to);
    bool same = true;
    for (u64 i = 0; i < elements; i++) same = same && bits_of_float(to[i]) == 0;
    exact(what, "clear", same);
    both_orders(what, [&] { launch(blocks, 1, 1, 256, [&] { flat::flat_put_f32(to, a, settings); }); }, to);
    exact(what, "put f32", !memcmp(to.data, a.data, elements * 4));
    both_orders(what, [&] { launch(blocks, 1, 1, 256, [&] { flat::flat_put_bf16(to, half, settings); }); }, to);
    same = true;
    for (u64 i = 0; i < elements; i++) same = same && bits_of_float(to[i]) == (u32)half[i] << 16;
    exact(what, "put bf16", same);
    both_orders(
        what,
        [&] {
            memcpy(a.data, a0.data(), elements * 4);
            launch(blocks, 1, 1, 256, [&] { flat::flat_add(a, b, settings); });
        },
        a);
    same = true;
    for (u64 i = 0; i < elements; i++) {
        volatile float sum = a0[i] + b[i];
        same = same && a[i] == sum;
    }
    exact(what, "add", same);

    u64 chunks = (elements + 65535) / 65536;
    Buffer<u64> digests(2 * chunks);
    both_orders(
        what, [&] { launch((int)chunks, 1, 1, 256, [&] { flat::flat_digest((u32 *)b.data, digests, settings); }); },
        digests);
    same = true;
    auto digest_of = [&](u64 chunk, u64 *sums) {
        sums[0] = sums[1] = 0;
        for (u64 i = chunk * 65536; i < elements && i < (chunk + 1) * 65536; i++) {
            u64 h = i << 32 | bits_of_float(b[i]);
            h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9ull;
            h = (h ^ h >> 27) * 0x94d049bb133111ebull;
            h ^= h >> 31;
            sums[0] += h;
            sums[1] += (h >> 32) * (u32)h;
        }
    };
    for (u64 chunk = 0; chunk < chunks; chunk++) {
        u64 sums[2];
        digest_of(chunk, sums);
        same = same && digests[2 * chunk] == sums[0] && digests[2 * chunk + 1] == sums[1];
    }
    exact(what, "digest", same);
    if (elements > 1) { // two elements exchanged are another digest
        float kept = b[0];
        b[0] = b[1], b[1] = kept;
        u64 sums[2];
        digest_of(0, sums);
        exact(what, "exchanged", digests[0] != sums[0] && digests[1] != sums[1]);
    }
}

// The same steps as `optimizer.cu`'s kernel takes, to the same bits, without averages and rounded parameters.
static void flat_optimizers(u64 elements, u64 start, u64 end, double factor) {
    char what[96];
    snprintf(what, sizeof what, "flat AdamW, %llu..%llu of %llu, factor %g", start, end, elements, factor);
    Buffer<float> params(elements), m(elements), v(elements), gradient(elements), averages(1);
    Buffer<float> params2(elements), m2(elements), v2(elements);
    Buffer<u16> rounded(elements);
    Buffer<double> norm(2);
    Buffer<flat::FlatGroup> group(1);
    Buffer<optimizer::Group> groups(1);
    Buffer<int> settings(2);
    Buffer<u64> blocks(1);
    fill(params, 1);
    fill(m, 1e-3);
    fill(gradient, 1e-2);
    for (u64 i = 0; i < elements; i++) v[i] = (float)(uniform() * 1e-4);
    norm[0] = 1, norm[1] = factor;
    settings[0] = 0, settings[1] = 2, blocks[0] = 2;
    flat::FlatGroup values = {start, end, 0.999f, 0.1f, 0.999f, 0.001f, 0.3f, 1e-8f, 1e-3f, 0};
    group[0] = values;
    static_assert(sizeof(flat::FlatGroup) == 48 && sizeof(optimizer::Group) == 48, "as the host writes them");
    memcpy(groups.data, group.data, 48);
    std::vector<float> p0(params.data, params.data + elements), m0(m.data, m.data + elements), v0(v.data, v.data + elements);
    memcpy(params2.data, p0.data(), elements * 4);
    memcpy(m2.data, m0.data(), elements * 4);
    memcpy(v2.data, v0.data(), elements * 4);
    launch(2, 1, 1, 256, [&] {
        optimizer::adamw(params2, gradient, m2, v2, averages, rounded, norm, groups, settings);
    });
    both_orders(
        what,
        [&] {
            memcpy(params.data, p0.data(), elements * 4);
            memcpy(m.data, m0.data(), elements * 4);
            memcpy(v.data, v0.data(), elements * 4);
            launch(2, 1, 1, 256, [&] { flat::flat_adamw(params, m, v, gradient, norm, group, blocks); });
        },
        params, m, v);
    bool moved = end == start || memcmp(params.data, p0.data(), elements * 4);
    exact(what, "all", moved && !memcmp(params.data, params2.data, elements * 4) &&
                           !memcmp(m.data, m2.data, elements * 4) && !memcmp(v.data, v2.data, elements * 4));
}

int main() {
    attentions();
    group_norms(2, 64, 320, 32, true, 0);
    group_norms(1, 100, 64, 32, true, 30);
    group_norms(2, 33, 2560, 32, false, -5);
    group_norms(1, 1, 640, 32, true, 1);
    group_norms(3, 70, 96, 8, false, 0);
    group_norms(1, 1100, 32, 4, true, 2); // more pieces than lanes
    layer_norms(70, 320);
    layer_norms(1, 1280);
    layer_norms(130, 34);
    layer_norms(2150, 8); // more pieces than lanes
    geglus(5, 320);
    geglus(3, 6);
    optimizers(200001, 0, true);
    optimizers(70000, 0.5, false);
    optimizers(65536, 1e6, true);
    flats(1, 1);
    flats(255, 3);
    flats(65536, 4);
    flats(140001, 7);
    flat_optimizers(1000, 0, 1000, 1);
    flat_optimizers(70001, 64, 69000, 0.123);
    printf("%d of %d comparisons are wrong\n", failures, cases);
    return failures > 0;
}
