//! Scaled dot-product attention, the one place where it is computed.
//!
//! Text encoder, UNet and autoencoder all call [`attention`]; a better kernel replaces the inside of this file.

use crate::layers::as_dtype;
use burn::tensor::{Bool, DType, Tensor, activation};

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
    let [batch, rows, channels] = query.dims();
    let keys = key.dims()[1];
    let dtype = query.dtype();
    let width = channels / shape.heads;
    let split = |x: Tensor<3>, length| x.reshape([batch, length, shape.heads, width]).swap_dims(1, 2);
    let query = split(query * (width as f64).powf(-0.5), rows); // [batch, heads, rows, width]
    let key = split(key, keys); // [batch, heads, keys, width]
    let value = split(value, keys);
    let mut scores = as_dtype(query.matmul(key.transpose()), DType::F32); // [batch, heads, rows, keys]
    if shape.causal {
        let mask = Tensor::<2, Bool>::tril_mask([rows, keys], 0, &scores.device()).unsqueeze::<4>();
        scores = scores.mask_fill(mask.expand([batch, shape.heads, rows, keys]), f32::NEG_INFINITY);
    }
    let weights = as_dtype(activation::softmax(scores, 3), dtype);
    weights.matmul(value).swap_dims(1, 2).reshape([batch, rows, channels])
}
