//! Group norm over pixels as rows, with SiLU after it where that follows.

use super::cpu::{self, host, on_host};
use super::record::{plain, record};
use crate::kernels::group_norm::GroupNorm;
use crate::layers::as_dtype;
use burn::tensor::{DType, Tensor, activation};

/// How [`group_norm`] groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNormShape {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    /// Whether SiLU follows.
    pub(crate) silu: bool,
}

/// Normalises each group of channels over all pixels of a sample; statistics in f32 or better.
///
/// `x`: `[batch, pixels, channels]`; `weight`, `bias`: `[channels]` → the shape of `x`
pub(crate) fn group_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, shape: GroupNormShape) -> Tensor<3> {
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    if let Some(y) = super::on_device::group_norm(&x, &weight, &bias, shape) {
        return y;
    }
    let (plain_x, w, b) = (plain(&x), plain(&weight), plain(&bias));
    if !on_host(&plain_x) {
        return generic(x, weight, bias, shape);
    }
    let dims @ [_, pixels, channels] = x.dims();
    let GroupNormShape { groups, eps, silu } = shape;
    let norm = GroupNorm { pixels, channels, groups, eps, silu };
    let (y, stats) = norm.forward(host(&plain_x).values(), host(&w).values(), host(&b).values());
    record([x.into(), weight.into(), bias.into()], cpu::tensor(y, dims), move |gradient, _| {
        let (x, w, b, gradient) = (host(&plain_x), host(&w), host(&b), host(&gradient));
        let [dx, dweight, dbias] = norm.backward(x.values(), w.values(), b.values(), &stats, gradient.values());
        [
            Some(cpu::tensor(dx, dims).into()),
            Some(cpu::tensor(dweight, [channels]).into()),
            Some(cpu::tensor(dbias, [channels]).into()),
        ]
    })
}

/// From burn's operations.
fn generic(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, shape: GroupNormShape) -> Tensor<3> {
    let dtype = x.dtype();
    let [batch, pixels, channels] = x.dims();
    let grouped = [batch, pixels, shape.groups, channels / shape.groups];
    let x = as_dtype(x, DType::F32).reshape(grouped);
    let mean = x.clone().mean_dims(&[1, 3]);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dims(&[1, 3]);
    let normal = (centred / (variance + shape.eps).sqrt()).reshape([batch, pixels, channels]);
    let y = as_dtype(normal * weight.unsqueeze() + bias.unsqueeze(), dtype);
    if shape.silu { activation::silu(y) } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn slices_agree_with_burn() {
        for silu in [false, true] {
            let shape = GroupNormShape { groups: 3, eps: 1e-5, silu };
            check::agree(
                [vec![2, 130, 12], vec![12], vec![12]],
                |[x, w, b]| group_norm(check::rank(x), check::rank(w), check::rank(b), shape),
                |[x, w, b]| generic(check::rank(x), check::rank(w), check::rank(b), shape),
            );
        }
    }
}
