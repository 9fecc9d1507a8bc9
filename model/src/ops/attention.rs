//! Scaled dot-product attention in O(rows) memory.
//!
//! Scores exist for a few rows at a time; the backward pass computes them again from the logarithm of each row's sum
//! of exponentials, as in FlashAttention (arXiv:2205.14135, algorithm 4).

use super::cpu::{self, host, on_host};
use super::record::{Any, plain, record};
use crate::kernels::attention::Attention;
use crate::layers::as_dtype;
use burn::tensor::{Bool, DType, Tensor};

/// Scores that exist at a time where the operation is built from burn's: 16 MiB.
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
    if on_host(&plain(&query)) {
        return on_slices(query, key, value, shape);
    }
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    if let Some(y) = super::on_device::attention(&query, &key, &value, shape) {
        return y;
    }
    generic(query, key, value, shape)
}

/// From burn's operations.
fn generic(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, shape: AttentionShape) -> Tensor<3> {
    let inputs = Inputs::new(&query, &key, &value, shape);
    let (result, log_sums) = inputs.forward();
    let saved = result.clone();
    record([query.into(), key.into(), value.into()], result, move |gradient, _| {
        inputs.backward(&saved, &log_sums, gradient)
    })
}

fn on_slices(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>, shape: AttentionShape) -> Tensor<3> {
    let (from @ [batch, rows, channels], context @ [_, keys, _]) = (query.dims(), key.dims());
    let AttentionShape { heads, causal } = shape;
    let attention = Attention { batch, rows, keys, heads, width: channels / heads, causal };
    let inputs = [plain(&query), plain(&key), plain(&value)];
    let [q, k, v] = inputs.each_ref().map(host);
    let (result, log_sums) = attention.forward(q.values(), k.values(), v.values());
    let result = cpu::tensor(result, from);
    let saved = result.clone();
    record([query.into(), key.into(), value.into()], result, move |gradient, _| {
        let [q, k, v] = inputs.each_ref().map(host);
        let inputs = [q.values(), k.values(), v.values()];
        let (saved, gradient) = (host(&saved), host(&gradient));
        let [dquery, dkey, dvalue] = attention.backward(inputs, saved.values(), &log_sums, gradient.values());
        [
            Some(cpu::tensor(dquery, from).into()),
            Some(cpu::tensor(dkey, context).into()),
            Some(cpu::tensor(dvalue, context).into()),
        ]
    })
}

/// For burn's operations, the inputs by head: `[batch, heads, rows or keys, width]`.
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
        let query = as_dtype(self.query.clone().narrow(2, start, rows), DType::F32);
        query.matmul(as_dtype(self.key.clone(), DType::F32).transpose())
    }

    /// The weights, and the logarithms of the sums.
    fn softmax(&self, scores: Tensor<4>, start: usize) -> (Tensor<4>, Tensor<4>) {
        let scores = self.mask(scores * self.scale, start);
        let largest = scores.clone().max_dim(3);
        let log_sums = (scores.clone() - largest.clone()).exp().sum_dim(3).log() + largest;
        ((scores - log_sums.clone()).exp(), log_sums)
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
            let [full, value] = [gradient.clone(), self.value.clone()].map(|x| as_dtype(x, DType::F32));
            let products = full.clone().matmul(value.transpose()); // of the weights
            let means = (full * as_dtype(result, DType::F32)).sum_dim(3);
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
        let scores = self.scores(start, products.dims()[2]);
        let weights = (self.mask(scores * self.scale, start) - log_sums.clone()).exp();
        let dscores = (products - means.clone()) * weights.clone() * self.scale;
        (weights, dscores)
    }
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
            for ours in [attention, generic] {
                check::agree(
                    [vec![2, rows, 8], vec![2, keys, 8], vec![2, keys, 8]],
                    |[q, k, v]| ours(check::rank(q), check::rank(k), check::rank(v), shape),
                    |[q, k, v]| naive(check::rank(q), check::rank(k), check::rank(v), shape),
                );
            }
        }
    }
}
