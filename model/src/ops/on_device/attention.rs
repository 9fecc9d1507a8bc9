//! Attention by kernels: what is kept for the backward pass is the inputs, the result and the logarithms of the sums.

use super::{covered, executor, outputs};
use crate::layers::as_dtype;
use crate::ops::attention::AttentionShape;
use crate::ops::record::{Any, plain, record};
use ballast_kernels::plan::{self, attention_backward, attention_forward};
use burn::tensor::{DType, Tensor};

/// See [`crate::ops::attention`].
pub(in crate::ops) fn attention(
    query: &Tensor<3>,
    key: &Tensor<3>,
    value: &Tensor<3>,
    shape: AttentionShape,
) -> Option<Tensor<3>> {
    let executor = executor(query)?;
    if key.dtype() != DType::BF16 || value.dtype() != DType::BF16 {
        return None;
    }
    let (from @ [batch, rows, channels], context @ [_, keys, _]) = (query.dims(), key.dims());
    let sizes = plan::AttentionShape {
        batch: batch as u64,
        rows: rows as u64,
        keys: keys as u64,
        heads: shape.heads as u64,
        width: (channels / shape.heads) as u64,
        causal: shape.causal,
    };
    let inputs = [query, key, value].map(|x| executor.rows(plain(x).into()));
    let strides = inputs.each_ref().map(|input| input.stride);
    let forward = covered("attention", &sizes, attention_forward(sizes, strides))?;
    let [query_rows, key_rows, value_rows] = inputs.map(|input| input.tensor);
    let [result, log_sums] = outputs(executor.run(&forward, &[&query_rows, &key_rows, &value_rows]));

    let (saved, log_sums) = (Any::from(result.clone()), Any::from(log_sums));
    let inputs = [query, key, value].map(|x| x.clone().into());
    Some(record(inputs, result.reshape(from), move |gradient: Tensor<3>, _| {
        let gradient = executor.rows(as_dtype(gradient, DType::BF16).into());
        let [of_query, of_key, of_value] = strides;
        let backward = attention_backward(sizes, [of_query, of_key, of_value, gradient.stride]);
        let backward = backward.expect("what has a forward pass has a backward pass");
        let inputs = [&query_rows, &key_rows, &value_rows, &gradient.tensor, &saved, &log_sums];
        let [dquery, dkey, dvalue] = outputs(executor.run(&backward, &inputs));
        [Some(dquery.reshape(from).into()), Some(dkey.reshape(context).into()), Some(dvalue.reshape(context).into())]
    }))
}
