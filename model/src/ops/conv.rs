//! Two-dimensional convolution over `[batch, height, width, channels]`.
//!
//! On a GPU, no picture is brought into another layout. burn's convolutions say `[batch, channels, height, width]`, but those
//! of its CubeCL backend change to channels last by a change of strides, take any tensor whose channels are next to each
//! other in memory, forward and in both backward passes, and give such tensors back (`burn-cubecl` 0.22.1,
//! `kernel/conv/base.rs`; `cubek-convolution` 0.3.1, `routines/base.rs`): what is permuted here is copied nowhere.
//! They want the same of the weight, `[outputs, kernel, kernel, inputs]` in memory, and copy one in PyTorch's order whenever they
//! are called. So it is brought there once for the forward and the backward pass, and its gradient is brought back. Convolutions
//! of 3x3 have 541 of the 860 million parameters of SD 1.5's UNet: 1.1 GB in bf16, read and written once in each direction.

use super::cpu::{self, host, on_host};
use super::record::{plain, record};
use crate::kernels::conv::Conv;
pub(crate) use crate::kernels::conv::Geometry;
use crate::layers::{as_dtype, from_rows, to_rows};
use burn::backend::Dispatch;
use burn::backend::ops::ModuleOps;
use burn::tensor::Tensor;
use burn::tensor::ops::ConvOptions;

/// `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, inputs, kernel, kernel]`; `bias`: `[1, outputs]`, or
/// `[batch, outputs]` for a shift of each sample's own → `[batch, height', width', outputs]`
///
/// Computes in the type of `x`; all gradients come in it.
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
    let burns = Burns { x: plain(&x), weight: channels_last(as_dtype(plain(&weight), x.dtype())), geometry };
    let shifts = bias.dims()[0];
    let y = burns.forward(as_dtype(plain(&bias), x.dtype()));
    record([x.into(), weight.into(), bias.into()], y, move |gradient, wanted| {
        [
            wanted[0].then(|| burns.input_gradient(gradient.clone()).into()),
            wanted[1].then(|| burns.weight_gradient(gradient.clone()).into()),
            wanted[2].then(|| bias_gradient(gradient, shifts).into()),
        ]
    })
}

/// What burn's operations are given, without autodiff.
struct Burns {
    x: Tensor<4>,
    /// `[outputs, inputs, kernel, kernel]`, with the inputs next to each other in memory.
    weight: Tensor<4>,
    geometry: Geometry,
}

impl Burns {
    fn options(&self) -> ConvOptions<2> {
        let Geometry { stride, before, after, .. } = self.geometry;
        ConvOptions::new_with_padding([stride; 2], [(before, after); 2], [1, 1], 1)
    }

    fn forward(&self, bias: Tensor<2>) -> Tensor<4> {
        let [shifts, outputs] = bias.dims();
        let of_all = (shifts == 1).then(|| bias.clone().reshape([outputs]));
        let y = to_rows(burn::tensor::module::conv2d(
            from_rows(self.x.clone()),
            self.weight.clone(),
            of_all,
            self.options(),
        ));
        if shifts == 1 { y } else { y + bias.reshape([shifts, 1, 1, outputs]) }
    }

    /// `[batch, height, width, inputs]`
    fn input_gradient(&self, gradient: Tensor<4>) -> Tensor<4> {
        let (x, weight) = (from_rows(self.x.clone()), self.weight.clone());
        let [x, weight, gradient] = [x, weight, from_rows(gradient)].map(Tensor::into_dispatch);
        to_rows(Tensor::from_dispatch(Dispatch::conv2d_x_backward(x, weight, gradient, self.options())))
    }

    /// `[outputs, inputs, kernel, kernel]`, in this order in memory.
    fn weight_gradient(&self, gradient: Tensor<4>) -> Tensor<4> {
        let (x, weight) = (from_rows(self.x.clone()), self.weight.clone());
        let dims = weight.dims();
        let [x, weight, gradient] = [x, weight, from_rows(gradient)].map(Tensor::into_dispatch);
        let found = Dispatch::conv2d_weight_backward(x, weight, gradient, self.options());
        in_order(Tensor::from_dispatch(found)).reshape(dims)
    }
}

/// The sum over pixels, and over samples where they share the bias: `[shifts, outputs]`. It is added in f32.
fn bias_gradient(gradient: Tensor<4>, shifts: usize) -> Tensor<2> {
    let outputs = gradient.dims()[3];
    let rows: Tensor<3> = gradient.reshape([shifts as i64, -1, outputs as i64]);
    rows.sum_dim(1).reshape([shifts, outputs])
}

/// The same weight with its inputs next to each other in memory.
fn channels_last(weight: Tensor<4>) -> Tensor<4> {
    let [outputs, inputs, height, width] = weight.dims();
    from_rows(in_order(to_rows(weight)).reshape([outputs, height, width, inputs]))
}

/// The elements in the order of the dimensions, whatever their order in memory: burn copies where that is another.
fn in_order(x: Tensor<4>) -> Tensor<1> {
    x.reshape([-1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    /// With burn's own gradients.
    fn of_burn(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, geometry: Geometry) -> Tensor<4> {
        let [shifts, outputs] = bias.dims();
        let Geometry { stride, before, after, .. } = geometry;
        let x = from_rows(x).pad((before, after, before, after), 0.0);
        let y = burn::tensor::module::conv2d(x, weight, None, ConvOptions::new([stride; 2], [0; 2], [1, 1], 1));
        to_rows(y) + bias.reshape([shifts, 1, 1, outputs])
    }

    #[test]
    fn rows_agree_with_burn() {
        for (kernel, stride, before, after) in [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0)] {
            let geometry = Geometry { kernel, stride, before, after };
            for shifts in [1, 3] {
                for ours in [conv2d, generic] {
                    check::agree(
                        [vec![3, 9, 6, 4], vec![5, 4, kernel, kernel], vec![shifts, 5]],
                        |[x, w, b]| ours(check::rank(x), check::rank(w), check::rank(b), geometry),
                        |[x, w, b]| of_burn(check::rank(x), check::rank(w), check::rank(b), geometry),
                    );
                }
            }
        }
    }
}
