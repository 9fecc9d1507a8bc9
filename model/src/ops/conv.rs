//! Two-dimensional convolution over `[batch, height, width, channels]`.

use super::cpu::{self, host, on_host};
use super::record::{plain, record};
use crate::kernels::conv::Conv;
pub(crate) use crate::kernels::conv::Geometry;
use burn::tensor::Tensor;
use burn::tensor::ops::ConvOptions;

/// `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, inputs, kernel, kernel]`; `bias`: `[1, outputs]`, or
/// `[batch, outputs]` for a shift of each sample's own → `[batch, height', width', outputs]`
pub(crate) fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, geometry: Geometry) -> Tensor<4> {
    let (plain_x, w) = (plain(&x), plain(&weight));
    if !on_host(&plain_x) {
        return generic(x, weight, bias, geometry);
    }
    let (from, weight_shape) = (x.dims(), weight.dims());
    let [shifts, outputs] = bias.dims();
    let conv = Conv::new(from, outputs, geometry);
    let y = conv.forward(host(&plain_x).values(), host(&w).values(), host(&plain(&bias)).values());
    record([x.into(), weight.into(), bias.into()], cpu::tensor(y, conv.output()), move |gradient, wanted| {
        let (x, w, gradient) = (host(&plain_x), host(&w), host(&gradient));
        let (x, w, gradient) = (x.values(), w.values(), gradient.values());
        [
            wanted[0].then(|| cpu::tensor(conv.input_gradient(w, gradient), from).into()),
            wanted.gradient(1, weight_shape, |to| conv.weight_gradient_into(x, gradient, to)),
            wanted[2].then(|| cpu::tensor(conv.bias_gradient(gradient, shifts), [shifts, outputs]).into()),
        ]
    })
}

/// From burn's operations.
fn generic(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, geometry: Geometry) -> Tensor<4> {
    let [shifts, outputs] = bias.dims();
    let mut x = x.permute([0, 3, 1, 2]);
    let mut padding = geometry.before;
    if geometry.before != geometry.after {
        x = x.pad((geometry.before, geometry.after, geometry.before, geometry.after), 0.0);
        padding = 0;
    }
    let options = ConvOptions::new([geometry.stride; 2], [padding; 2], [1, 1], 1);
    let y = burn::tensor::module::conv2d(x, weight, None, options).permute([0, 2, 3, 1]);
    y + bias.reshape([shifts, 1, 1, outputs])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn rows_agree_with_burn() {
        for (kernel, stride, before, after) in [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0)] {
            let geometry = Geometry { kernel, stride, before, after };
            for shifts in [1, 3] {
                check::agree(
                    [vec![3, 9, 6, 4], vec![5, 4, kernel, kernel], vec![shifts, 5]],
                    |[x, w, b]| conv2d(check::rank(x), check::rank(w), check::rank(b), geometry),
                    |[x, w, b]| generic(check::rank(x), check::rank(w), check::rank(b), geometry),
                );
            }
        }
    }
}
