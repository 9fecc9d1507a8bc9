//! Layer norm by kernels. Gradients of weight and bias are f32.

use super::{covered, executor, in_f32, outputs};
use crate::layers::as_dtype;
use crate::ops::record::{Any, plain, record};
use ballast_kernels::plan::{LayerNormShape, layer_norm_backward, layer_norm_forward};
use burn::tensor::{DType, Tensor};

/// See [`crate::ops::layer_norm`].
pub(in crate::ops) fn layer_norm(x: &Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Option<Tensor<3>> {
    let executor = executor(x)?;
    let [w, b] = in_f32([weight, bias])?;
    let dims @ [batch, rows, width] = x.dims();
    let sizes = LayerNormShape { rows: (batch * rows) as u64, width: width as u64, eps: eps as f32 };
    let own = executor.rows(plain(x).into());
    let forward = covered("layer norm", &sizes, layer_norm_forward(sizes, own.stride))?;
    let [y, statistics] = outputs(executor.run(&forward, &[&own.tensor, &w, &b]));
    let statistics = Any::from(statistics);

    let inputs = [x.clone().into(), weight.clone().into(), bias.clone().into()];
    Some(record(inputs, y.reshape(dims), move |gradient: Tensor<3>, _| {
        let gradient = executor.rows(as_dtype(gradient, DType::BF16).into());
        let backward = layer_norm_backward(sizes, [own.stride, gradient.stride]);
        let backward = backward.expect("what has a forward pass has a backward pass");
        let inputs = [&own.tensor, &gradient.tensor, &w, &statistics];
        let [dx, dweight, dbias] = outputs(executor.run(&backward, &inputs));
        [Some(dx.reshape(dims).into()), Some(dweight.into()), Some(dbias.into())]
    }))
}
