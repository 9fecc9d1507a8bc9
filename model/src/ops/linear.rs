//! `y = x Wᵀ + b` with PyTorch's layout of the weight.

use super::cpu::{self, host, on_host};
use super::record::{Any, plain, record};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 64;

/// `x`: `[rows, inputs]`; `weight`: `[outputs, inputs]`; `bias`: `[outputs]` → `[rows, outputs]`
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let (plain_x, w) = (plain(&x), plain(&weight));
    let y = plain_x.clone().matmul(w.clone().transpose());
    let gradients = move |gradient: Tensor<2>, wanted: [bool; 2]| {
        let dx = wanted[0].then(|| Any::from(gradient.clone().matmul(w.clone())));
        let dweight = wanted[1].then(|| Any::from(gradient.transpose().matmul(plain_x.clone())));
        [dx, dweight]
    };
    let Some(bias) = bias else {
        return record([x.into(), weight.into()], y, gradients);
    };
    let y = add_to_rows(y, plain(&bias));
    record([x.into(), weight.into(), bias.into()], y, move |gradient, [x, weight, bias]| {
        let dbias = bias.then(|| Any::from(sum_rows(&gradient)));
        let [dx, dweight] = gradients(gradient, [x, weight]);
        [dx, dweight, dbias]
    })
}

/// Adds `row` (`[columns]`) to every row of `x` (`[rows, columns]`).
pub(crate) fn add_to_rows(x: Tensor<2>, row: Tensor<1>) -> Tensor<2> {
    if !on_host(&x) {
        return x + row.unsqueeze();
    }
    let row = host(&row);
    cpu::change(x, |values| {
        let width = row.values().len();
        values.par_chunks_mut(ROWS * width).for_each(|rows| {
            for values in rows.chunks_exact_mut(width) {
                values.iter_mut().zip(row.values()).for_each(|(value, add)| *value += add);
            }
        });
    })
}

/// `[rows, columns]` → `[columns]`
pub(crate) fn sum_rows(x: &Tensor<2>) -> Tensor<1> {
    let columns = x.dims()[1];
    if on_host(x) {
        cpu::tensor(cpu::column_sums(host(x).values(), columns), [columns])
    } else {
        x.clone().sum_dim(0).reshape([columns])
    }
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
