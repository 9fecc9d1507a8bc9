//! Layer norm over the last dimension.

use super::cpu::{self, host, on_host};
use super::record::{plain, record};
use crate::kernels::layer_norm;
use crate::layers::as_dtype;
use burn::tensor::{DType, Tensor};

/// Normalises every row; statistics in f32.
///
/// `x`: `[batch, rows, width]`; `weight`, `bias`: `[width]` → the shape of `x`
pub(crate) fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<3> {
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    if let Some(y) = super::on_device::layer_norm(&x, &weight, &bias, eps) {
        return y;
    }
    let (plain_x, w, b) = (plain(&x), plain(&weight), plain(&bias));
    if !on_host(&plain_x) {
        return generic(x, weight, bias, eps);
    }
    let dims @ [_, _, width] = x.dims();
    let (y, stats) = layer_norm::forward(host(&plain_x).values(), host(&w).values(), host(&b).values(), eps as f32);
    record([x.into(), weight.into(), bias.into()], cpu::tensor(y, dims), move |gradient, _| {
        let (x, w, gradient) = (host(&plain_x), host(&w), host(&gradient));
        let [dx, dweight, dbias] = layer_norm::backward(x.values(), w.values(), &stats, gradient.values());
        [
            Some(cpu::tensor(dx, dims).into()),
            Some(cpu::tensor(dweight, [width]).into()),
            Some(cpu::tensor(dbias, [width]).into()),
        ]
    })
}

/// From burn's operations.
fn generic(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<3> {
    let dtype = x.dtype();
    let x = as_dtype(x, DType::F32);
    let mean = x.clone().mean_dim(2);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dim(2);
    let normal = centred / (variance + eps).sqrt();
    as_dtype(normal * weight.unsqueeze() + bias.unsqueeze(), dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn slices_agree_with_burn() {
        for width in [5, 32] {
            check::agree(
                [vec![2, 70, width], vec![width], vec![width]],
                |[x, w, b]| layer_norm(check::rank(x), check::rank(w), check::rank(b), 1e-5),
                |[x, w, b]| generic(check::rank(x), check::rank(w), check::rank(b), 1e-5),
            );
        }
    }
}
