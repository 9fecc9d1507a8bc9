//! Scaled dot-product attention in O(rows) memory.
//!
//! Scores exist for a few rows at a time; the backward pass computes them again from the logarithm of each row's sum
//! of exponentials, as in FlashAttention (arXiv:2205.14135, algorithm 4). Products of matrices are burn's on every
//! device, the softmax between them is a loop over slices on the CPU.

use super::cpu::{self, exp, host, on_host};
use super::record::{Any, plain, record};
use crate::layers::as_dtype;
use burn::tensor::{Bool, DType, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Scores that exist at a time: 16 MiB.
const SCORES: usize = 4 << 20;

/// How [`attention`] splits and masks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    /// Heads that the channels are split into.
    pub(crate) heads: usize,
    /// Whether a position sees only itself and those before it.
    pub(crate) causal: bool,
}

/// softmax(Q Kᵀ / √head_width) V for every head; scores and softmax in f32.
///
/// `query`: `[batch, rows, channels]`; `key`, `value`: `[batch, keys, channels]` → `[batch, rows, channels]`
pub(crate) fn attention(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, shape: AttentionShape) -> Tensor<3> {
    let inputs = Inputs::new(&query, &key, &value, shape);
    let (result, log_sums) = inputs.forward();
    let saved = result.clone();
    let log_sums = Arc::new(log_sums);
    record([query.into(), key.into(), value.into()], result, move |gradient, _| {
        inputs.backward(&saved, &log_sums, gradient)
    })
}

/// The inputs by head: `[batch, heads, rows or keys, width]`.
struct Inputs {
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f32,
    causal: bool,
}

impl Inputs {
    fn new(query: &Tensor<3>, key: &Tensor<3>, value: &Tensor<3>, shape: AttentionShape) -> Self {
        let by_head = |x: &Tensor<3>| split(plain(x), shape.heads);
        let width = query.dims()[2] / shape.heads;
        Self {
            query: by_head(query),
            key: by_head(key),
            value: by_head(value),
            scale: (width as f32).powf(-0.5),
            causal: shape.causal,
        }
    }

    /// First row and number of rows of each part.
    fn parts(&self) -> Vec<(usize, usize)> {
        let [batch, heads, rows, _] = self.query.dims();
        let keys = self.key.dims()[2];
        let step = (SCORES / (batch * heads * keys)).clamp(1, rows);
        (0..rows).step_by(step).map(|start| (start, step.min(rows - start))).collect()
    }

    /// The result, and per part the logarithms of the sums: `[batch, heads, rows of the part, 1]`.
    fn forward(&self) -> (Tensor<3>, Vec<Tensor<4>>) {
        let parts = self.parts().into_iter().map(|(start, rows)| {
            let (weights, log_sums) = self.softmax(self.scores(start, rows), start);
            (as_dtype(weights, self.value.dtype()).matmul(self.value.clone()), log_sums)
        });
        let (results, log_sums): (Vec<_>, Vec<_>) = parts.unzip();
        (merge(joined(results)), log_sums)
    }

    /// Q Kᵀ for some rows, not scaled: `[batch, heads, rows, keys]` in f32.
    fn scores(&self, start: usize, rows: usize) -> Tensor<4> {
        let query = self.query.clone().narrow(2, start, rows);
        as_dtype(query.matmul(self.key.clone().transpose()), DType::F32)
    }

    fn softmax(&self, scores: Tensor<4>, start: usize) -> (Tensor<4>, Tensor<4>) {
        let [batch, heads, rows, keys] = scores.dims();
        if !on_host(&scores) {
            let scores = self.mask(scores * self.scale, start);
            let largest = scores.clone().max_dim(3);
            let log_sums = (scores.clone() - largest.clone()).exp().sum_dim(3).log() + largest;
            return ((scores - log_sums.clone()).exp(), log_sums);
        }
        let mut log_sums = vec![0.0; batch * heads * rows];
        let weights = cpu::change(scores, |values| {
            let tasks = values.par_chunks_mut(rows * keys).zip(log_sums.par_chunks_mut(rows));
            tasks.for_each(|(values, log_sums)| {
                for (i, (row, log_sum)) in values.chunks_exact_mut(keys).zip(log_sums).enumerate() {
                    let seen = if self.causal { (start + i + 1).min(keys) } else { keys };
                    let (row, hidden) = row.split_at_mut(seen);
                    *log_sum = softmax_row(row, self.scale);
                    hidden.fill(0.0);
                }
            });
        });
        (weights, cpu::tensor(log_sums, [batch, heads, rows, 1]))
    }

    fn mask(&self, scores: Tensor<4>, start: usize) -> Tensor<4> {
        if !self.causal {
            return scores;
        }
        let [batch, heads, rows, keys] = scores.dims();
        let hidden = Tensor::<2, Bool>::tril_mask([rows, keys], start as i64, &scores.device());
        scores.mask_fill(hidden.unsqueeze::<4>().expand([batch, heads, rows, keys]), f32::NEG_INFINITY)
    }

    fn backward(&self, result: &Tensor<3>, log_sums: &[Tensor<4>], gradient: Tensor<3>) -> [Option<Any>; 3] {
        let heads = self.query.dims()[1];
        let (result, gradient) = (split(result.clone(), heads), split(gradient, heads));
        let mut dqueries = Vec::new();
        let mut sums: Option<[Tensor<4>; 2]> = None;
        for ((start, rows), log_sums) in self.parts().into_iter().zip(log_sums) {
            let gradient = gradient.clone().narrow(2, start, rows);
            let result = result.clone().narrow(2, start, rows);
            let query = self.query.clone().narrow(2, start, rows);
            let products = gradient.clone().matmul(self.value.clone().transpose()); // of the weights
            let means = as_dtype(gradient.clone() * result, DType::F32).sum_dim(3);
            let (weights, dscores) = self.score_gradient(start, log_sums, products, &means);
            let dtype = query.dtype();
            let (weights, dscores) = (as_dtype(weights, dtype), as_dtype(dscores, dtype));
            dqueries.push(dscores.clone().matmul(self.key.clone()));
            let dkey = dscores.transpose().matmul(query);
            let dvalue = weights.transpose().matmul(gradient);
            sums = Some(match sums {
                None => [dkey, dvalue],
                Some([key, value]) => [key + dkey, value + dvalue],
            });
        }
        let [dkey, dvalue] = sums.expect("at least one row");
        [Some(merge(joined(dqueries)).into()), Some(merge(dkey).into()), Some(merge(dvalue).into())]
    }

    /// The softmax's weights, and the gradient of the scores before scaling: `weights · (products − means) · scale`.
    fn score_gradient(
        &self,
        start: usize,
        log_sums: &Tensor<4>,
        products: Tensor<4>,
        means: &Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let [_, _, rows, keys] = products.dims();
        let scores = self.scores(start, rows);
        if !on_host(&scores) {
            let weights = (self.mask(scores * self.scale, start) - log_sums.clone()).exp();
            let dscores = (as_dtype(products, DType::F32) - means.clone()) * weights.clone() * self.scale;
            return (weights, dscores);
        }
        let (log_sums, means) = (host(log_sums), host(means));
        let mut dscores = None;
        let weights = cpu::change(scores, |weights| {
            dscores = Some(cpu::change(products, |products| {
                let tasks = weights.par_chunks_mut(rows * keys).zip(products.par_chunks_mut(rows * keys));
                let rows = log_sums.values().par_chunks(rows).zip(means.values().par_chunks(rows));
                tasks.zip(rows).for_each(|((weights, products), (log_sums, means))| {
                    let both = weights.chunks_exact_mut(keys).zip(products.chunks_exact_mut(keys));
                    for (i, ((weights, products), (log_sum, mean))) in both.zip(log_sums.iter().zip(means)).enumerate()
                    {
                        let seen = if self.causal { (start + i + 1).min(keys) } else { keys };
                        weights[seen..].fill(0.0);
                        products[seen..].fill(0.0);
                        for (weight, product) in weights[..seen].iter_mut().zip(&mut products[..seen]) {
                            *weight = exp(*weight * self.scale - log_sum);
                            *product = *weight * (*product - mean) * self.scale;
                        }
                    }
                });
            }));
        });
        (weights, dscores.expect("computed with the weights"))
    }
}

/// Scales a row of scores, turns it into weights, and returns the logarithm of the sum of exponentials.
fn softmax_row(row: &mut [f32], scale: f32) -> f32 {
    let largest = row.iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value)) * scale;
    row.iter_mut().for_each(|value| *value = exp(*value * scale - largest));
    let sum: f32 = row.chunks(64).map(|part| part.iter().sum::<f32>()).sum();
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|value| *value *= inverse);
    largest + libm::logf(sum)
}

/// `[batch, length, heads * width]` → `[batch, heads, length, width]`, a view.
fn split(x: Tensor<3>, heads: usize) -> Tensor<4> {
    let [batch, length, channels] = x.dims();
    x.reshape([batch, length, heads, channels / heads]).swap_dims(1, 2)
}

/// `[batch, heads, length, width]` → `[batch, length, heads * width]`
fn merge(x: Tensor<4>) -> Tensor<3> {
    let [batch, heads, length, width] = x.dims();
    x.swap_dims(1, 2).reshape([batch, length, heads * width])
}

fn joined(mut parts: Vec<Tensor<4>>) -> Tensor<4> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;
    use burn::tensor::activation;

    /// The whole matrix of scores at once, by burn's operations.
    fn naive(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, shape: AttentionShape) -> Tensor<3> {
        let scale = ((query.dims()[2] / shape.heads) as f64).powf(-0.5);
        let [query, key, value] = [query, key, value].map(|x| split(x, shape.heads));
        let mut scores = query.matmul(key.transpose()) * scale;
        let [batch, heads, rows, keys] = scores.dims();
        if shape.causal {
            let hidden = Tensor::<2, Bool>::tril_mask([rows, keys], 0, &scores.device()).unsqueeze::<4>();
            scores = scores.mask_fill(hidden.expand([batch, heads, rows, keys]), f32::NEG_INFINITY);
        }
        merge(activation::softmax(scores, 3).matmul(value))
    }

    #[test]
    fn agrees_with_the_definition() {
        for (rows, keys, causal) in [(7, 5, false), (9, 9, true), (2100, 1100, false)] {
            let shape = AttentionShape { heads: 2, causal };
            check::agree(
                [vec![2, rows, 8], vec![2, keys, 8], vec![2, keys, 8]],
                |[q, k, v]| attention(check::rank(q), check::rank(k), check::rank(v), shape),
                |[q, k, v]| naive(check::rank(q), check::rank(k), check::rank(v), shape),
            );
        }
    }
}
