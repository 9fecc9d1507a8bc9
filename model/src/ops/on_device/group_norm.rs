//! Group norm, with SiLU where that follows, by kernels. Gradients of weight and bias are f32.

use super::{covered, executor, in_f32, outputs};
use crate::layers::as_dtype;
use crate::ops::group_norm::GroupNormShape;
use crate::ops::record::{Any, plain, record};
use ballast_kernels::plan::{self, group_norm_backward, group_norm_forward};
use burn::tensor::{DType, Tensor};

/// See [`crate::ops::group_norm`].
pub(in crate::ops) fn group_norm(
    x: &Tensor<3>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    shape: GroupNormShape,
) -> Option<Tensor<3>> {
    let executor = executor(x)?;
    let [w, b] = in_f32([weight, bias])?;
    let dims @ [batch, pixels, channels] = x.dims();
    let sizes = plan::GroupNormShape {
        batch: batch as u64,
        pixels: pixels as u64,
        channels: channels as u64,
        groups: shape.groups as u64,
        eps: shape.eps as f32,
        silu: shape.silu,
    };
    let own = executor.rows(plain(x).into());
    let forward = covered("group norm", &sizes, group_norm_forward(sizes, own.stride))?;
    let [y, statistics] = outputs(executor.run(&forward, &[&own.tensor, &w, &b]));
    let statistics = Any::from(statistics);

    let inputs = [x.clone().into(), weight.clone().into(), bias.clone().into()];
    Some(record(inputs, y.reshape(dims), move |gradient: Tensor<3>, _| {
        let gradient = executor.rows(as_dtype(gradient, DType::BF16).into());
        let backward = group_norm_backward(sizes, [own.stride, gradient.stride]);
        let backward = backward.expect("what has a forward pass has a backward pass");
        let inputs = [&own.tensor, &gradient.tensor, &w, &b, &statistics];
        let [dx, dweight, dbias] = outputs(executor.run(&backward, &inputs));
        [Some(dx.reshape(dims).into()), Some(dweight.into()), Some(dbias.into())]
    }))
}
