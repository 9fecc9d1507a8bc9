//! `y = x Wᵀ + b` with PyTorch's layout of the weight.

use super::cpu::{self, host, on_host};
use super::record::{Any, Wanted, plain, record};
use crate::kernels::linear::LinearShape;
use crate::layers::as_dtype;
use burn::tensor::Tensor;

/// `x`: `[rows, inputs]`; `weight`: `[outputs, inputs]`; `bias`: `[outputs]` → `[rows, outputs]`
///
/// Computes in the type of `x`; all gradients come in it.
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let dtype = x.dtype();
    let (plain_x, w) = (plain(&x), as_dtype(plain(&weight), dtype));
    let y = forward(&plain_x, &w, bias.as_ref().map(|bias| as_dtype(plain(bias), dtype)));
    let gradients = move |gradient: Tensor<2>, wanted| backward(&plain_x, &w, &gradient, wanted);
    match bias {
        None => record([x.into(), weight.into()], y, move |gradient, wanted| {
            let [dx, dweight, _] = gradients(gradient, wanted);
            [dx, dweight]
        }),
        Some(bias) => record([x.into(), weight.into(), bias.into()], y, gradients),
    }
}

fn forward(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    if !on_host(x) {
        let y = x.clone().matmul(weight.clone().transpose());
        return match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        };
    }
    let shape = shape(x, weight);
    let bias = bias.map(|bias| host(&bias));
    let y = shape.forward(host(x).values(), host(weight).values(), bias.as_ref().map(cpu::Host::values));
    cpu::tensor(y, [shape.rows, shape.outputs])
}

fn shape(x: &Tensor<2>, weight: &Tensor<2>) -> LinearShape {
    let ([rows, inputs], [outputs, _]) = (x.dims(), weight.dims());
    LinearShape { rows, inputs, outputs }
}

/// The gradients of `x`, `weight` and bias where they are wanted.
fn backward(x: &Tensor<2>, weight: &Tensor<2>, gradient: &Tensor<2>, wanted: Wanted) -> [Option<Any>; 3] {
    let shape = shape(x, weight);
    if !on_host(gradient) {
        return [
            wanted[0].then(|| gradient.clone().matmul(weight.clone()).into()),
            wanted[1].then(|| gradient.clone().transpose().matmul(x.clone()).into()),
            wanted[2].then(|| gradient.clone().sum_dim(0).reshape([shape.outputs]).into()),
        ];
    }
    let (x, weight, gradient) = (host(x), host(weight), host(gradient));
    let (x, weight, gradient) = (x.values(), weight.values(), gradient.values());
    let LinearShape { rows, inputs, outputs } = shape;
    [
        wanted[0].then(|| cpu::tensor(shape.input_gradient(gradient, weight), [rows, inputs]).into()),
        wanted.gradient(1, [outputs, inputs], |to| shape.weight_gradient_into(gradient, x, to)),
        wanted[2].then(|| cpu::tensor(shape.bias_gradient(gradient), [outputs]).into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn agrees_with_burn() {
        check::agree(
            [vec![600, 6], vec![5, 6], vec![5]],
            |[x, w, b]| linear(check::rank(x), check::rank(w), Some(check::rank(b))),
            |[x, w, b]| {
                burn::tensor::module::linear(check::rank::<2>(x), check::rank::<2>(w).transpose(), Some(check::rank(b)))
            },
        );
    }
}
