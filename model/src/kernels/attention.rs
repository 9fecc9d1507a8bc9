//! Scaled dot-product attention in tiles, as FlashAttention (arXiv:2205.14135, algorithms 1 and 4; the order of loops
//! in the backward pass is FlashAttention-2's, arXiv:2307.08691).
//!
//! Scores exist for a tile of keys and rows at a time, in a core's cache, **one line per key**: rows lie next to each
//! other, so that maxima, sums and exponentials of many rows are vector instructions, and so are the products.

mod backward;
mod forward;

use std::ops::Range;

/// Sizes of an attention. Queries are `[batch, rows, heads * width]`, keys and values `[batch, keys, heads * width]`.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Samples.
    pub batch: usize,
    /// Queries of a sample.
    pub rows: usize,
    /// Keys of a sample.
    pub keys: usize,
    /// Heads that the channels are split into.
    pub heads: usize,
    /// Channels of a head.
    pub width: usize,
    /// Whether a position sees only itself and those before it.
    pub causal: bool,
}

/// What the backward pass needs of the forward pass.
#[derive(Clone, Debug)]
pub struct LogSums {
    /// The logarithm of each row's sum of exponentials: `[batch, heads, rows]`.
    values: Vec<f32>,
}

/// Keys of a tile.
const KEYS: usize = 256;
/// Rows of a tile at most.
const ROWS: usize = 256;

impl Attention {
    /// softmax(Q Kᵀ / √width) V for every head: `[batch, rows, heads * width]`.
    pub fn forward(&self, query: &[f32], key: &[f32], value: &[f32]) -> (Vec<f32>, LogSums) {
        forward::forward(self, query, key, value)
    }

    /// The gradients of query, key and value for that of the result.
    pub fn backward(
        &self,
        [query, key, value]: [&[f32]; 3],
        result: &[f32],
        log_sums: &LogSums,
        gradient: &[f32],
    ) -> [Vec<f32>; 3] {
        backward::backward(self, [query, key, value], result, log_sums, gradient)
    }

    fn channels(&self) -> usize {
        self.heads * self.width
    }

    fn scale(&self) -> f32 {
        (self.width as f32).powf(-0.5)
    }

    /// Rows of a tile, for at least four tiles where there are enough rows.
    fn tile_rows(&self) -> usize {
        self.rows.div_ceil(4).next_multiple_of(64).min(ROWS)
    }

    /// Keys of each tile that the rows see.
    fn key_tiles(&self, rows: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let seen = if self.causal { rows.end.min(self.keys) } else { self.keys };
        (0..seen).step_by(KEYS).map(move |first| first..(first + KEYS).min(seen))
    }

    /// How many of a tile's rows, from the first, do not see the key.
    fn hidden(&self, key: usize, rows: &Range<usize>) -> usize {
        if self.causal { key.saturating_sub(rows.start).min(rows.len()) } else { 0 }
    }
}

/// Writes some rows of one head as `[width, rows]`, times `scale`; `x` begins at the head's first channel.
fn head_transposed(x: &[f32], channels: usize, rows: usize, scale: f32, out: &mut [f32]) {
    for (c, out) in out.chunks_exact_mut(rows).enumerate() {
        for (out, row) in out.iter_mut().zip(x.chunks(channels)) {
            *out = row[c] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * i + i * 37 + seed * 101) % 61) as f32 / 20.0 - 1.5).collect()
    }

    /// By the definition in f64: the result, and the gradients for `gradient`.
    fn naive(a: &Attention, [query, key, value]: [&[f32]; 3], gradient: &[f32]) -> [Vec<f64>; 4] {
        let channels = a.channels();
        let mut y = vec![0.0; query.len()];
        let mut d = [vec![0.0; query.len()], vec![0.0; key.len()], vec![0.0; key.len()]];
        let scale = (a.width as f64).powf(-0.5);
        for (sample, head) in (0..a.batch).flat_map(|s| (0..a.heads).map(move |h| (s, h))) {
            let at_row = |i: usize, c: usize| (sample * a.rows + i) * channels + head * a.width + c;
            let at_key = |j: usize, c: usize| (sample * a.keys + j) * channels + head * a.width + c;
            let dot = |f: &dyn Fn(usize) -> f64| (0..a.width).map(f).sum::<f64>();
            for i in 0..a.rows {
                let seen = if a.causal { (i + 1).min(a.keys) } else { a.keys };
                let score = |j| dot(&|c| f64::from(query[at_row(i, c)]) * f64::from(key[at_key(j, c)])) * scale;
                let weights: Vec<f64> = (0..seen).map(|j| score(j).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let weights: Vec<f64> = weights.iter().map(|w| w / sum).collect();
                let products: Vec<f64> = (0..seen)
                    .map(|j| dot(&|c| f64::from(gradient[at_row(i, c)]) * f64::from(value[at_key(j, c)])))
                    .collect();
                let mean: f64 = weights.iter().zip(&products).map(|(w, p)| w * p).sum();
                for (j, (weight, product)) in weights.iter().zip(&products).enumerate() {
                    let dscore = weight * (product - mean) * scale;
                    for c in 0..a.width {
                        y[at_row(i, c)] += weight * f64::from(value[at_key(j, c)]);
                        d[0][at_row(i, c)] += dscore * f64::from(key[at_key(j, c)]);
                        d[1][at_key(j, c)] += dscore * f64::from(query[at_row(i, c)]);
                        d[2][at_key(j, c)] += weight * f64::from(gradient[at_row(i, c)]);
                    }
                }
            }
        }
        let [dquery, dkey, dvalue] = d;
        [y, dquery, dkey, dvalue]
    }

    #[test]
    fn agrees_with_the_definition() {
        let sizes =
            [(1, 7, 5, 2, 8, false), (2, 77, 77, 3, 16, true), (1, 700, 300, 2, 40, false), (1, 600, 600, 1, 8, true)];
        for (batch, rows, keys, heads, width, causal) in sizes {
            let a = Attention { batch, rows, keys, heads, width, causal };
            let query = values(batch * rows * heads * width, 1);
            let (key, value) = (values(batch * keys * heads * width, 2), values(batch * keys * heads * width, 3));
            let gradient = values(query.len(), 4);
            let (y, log_sums) = a.forward(&query, &key, &value);
            let [dq, dk, dv] = a.backward([&query, &key, &value], &y, &log_sums, &gradient);
            let exact = naive(&a, [&query, &key, &value], &gradient);
            for (found, exact) in [y, dq, dk, dv].iter().zip(&exact) {
                let peak = exact.iter().fold(0.0f64, |peak, v| peak.max(v.abs()));
                let off = found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(off < 5e-6 * peak, "{a:?}: {off} of {peak}");
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let a = Attention { batch: 1, rows: 3, keys: 600, heads: 1, width: 4, causal: false };
        let (query, key) = (vec![100.0; 12], values(2400, 1));
        let (y, _) = a.forward(&query, &key, &key);
        assert!(y.iter().all(|y| y.is_finite()));
    }
}
