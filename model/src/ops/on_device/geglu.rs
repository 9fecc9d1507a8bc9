//! GEGLU by kernels.

use super::{covered, executor, outputs};
use crate::layers::as_dtype;
use crate::ops::record::{plain, record};
use ballast_kernels::plan::{geglu_backward, geglu_forward};
use burn::tensor::{DType, Tensor};

/// See [`crate::ops::geglu`].
pub(in crate::ops) fn geglu(x: &Tensor<3>) -> Option<Tensor<3>> {
    let executor = executor(x)?;
    let dims @ [batch, rows, double] = x.dims();
    let width = double / 2;
    let sizes = [(batch * rows) as u64, width as u64];
    let own = executor.rows(plain(x).into());
    let forward = covered("GEGLU", &sizes, geglu_forward(sizes, own.stride))?;
    let [y] = outputs(executor.run(&forward, &[&own.tensor]));
    Some(record([x.clone().into()], y.reshape([batch, rows, width]), move |gradient: Tensor<3>, _| {
        let gradient = executor.rows(as_dtype(gradient, DType::BF16).into());
        let backward = geglu_backward(sizes, [own.stride, gradient.stride]);
        let backward = backward.expect("what has a forward pass has a backward pass");
        let [dx] = outputs(executor.run(&backward, &[&own.tensor, &gradient.tensor]));
        [Some(dx.reshape(dims).into())]
    }))
}
