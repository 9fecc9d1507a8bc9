//! GEGLU (arXiv:2002.05202): the first half of the channels times the GELU of the second.

use super::cpu::{self, erf, exp, host, on_host};
use super::record::{Any, plain, record};
use burn::tensor::{Tensor, activation};
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// Rows of one task.
const ROWS: usize = 64;

/// `[batch, rows, 2 * width]` → `[batch, rows, width]`
pub(crate) fn geglu(x: Tensor<3>) -> Tensor<3> {
    let plain_x = plain(&x);
    if on_host(&plain_x) {
        let y = forward(&plain_x);
        return record([x.into()], y, move |gradient, _| backward(&plain_x, &gradient));
    }
    generic(x)
}

/// From burn's operations.
fn generic(x: Tensor<3>) -> Tensor<3> {
    let width = x.dims()[2] / 2;
    let hidden = x.clone().narrow(2, 0, width);
    hidden * activation::gelu(x.narrow(2, width, width))
}

fn forward(x: &Tensor<3>) -> Tensor<3> {
    let [batch, rows, double] = x.dims();
    let width = double / 2;
    let x = host(x);
    let mut y = vec![0.0; batch * rows * width];
    let tasks = y.par_chunks_mut(ROWS * width).zip(x.values().par_chunks(ROWS * double));
    tasks.for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(double)) {
            let (hidden, gate) = x.split_at(width);
            let values = y.iter_mut().zip(hidden.iter().zip(gate));
            values.for_each(|(y, (hidden, gate))| *y = hidden * (gate * normal_cdf(*gate)));
        }
    });
    cpu::tensor(y, [batch, rows, width])
}

fn backward(x: &Tensor<3>, gradient: &Tensor<3>) -> [Option<Any>; 1] {
    let dims = x.dims();
    let (double, width) = (dims[2], dims[2] / 2);
    let (x, gradient) = (host(x), host(gradient));
    let mut dx = vec![0.0; x.values().len()];
    let tasks = dx
        .par_chunks_mut(ROWS * double)
        .zip(x.values().par_chunks(ROWS * double))
        .zip(gradient.values().par_chunks(ROWS * width));
    tasks.for_each(|((dx, x), gradient)| {
        let rows = dx.chunks_exact_mut(double).zip(x.chunks_exact(double)).zip(gradient.chunks_exact(width));
        for ((dx, x), gradient) in rows {
            let (dhidden, dgate) = dx.split_at_mut(width);
            let (hidden, gate) = x.split_at(width);
            let values = dhidden.iter_mut().zip(dgate).zip(hidden.iter().zip(gate)).zip(gradient);
            for (((dhidden, dgate), (hidden, gate)), gradient) in values {
                let cdf = normal_cdf(*gate);
                let density = 0.398_942_3 * exp(-0.5 * gate * gate);
                *dhidden = gradient * (gate * cdf);
                *dgate = gradient * hidden * (cdf + gate * density);
            }
        }
    });
    [Some(cpu::tensor(dx, dims).into())]
}

/// Φ(x) = ½ (1 + erf(x/√2))
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * FRAC_1_SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn slices_agree_with_burn() {
        check::agree([vec![2, 70, 24]], |[x]| geglu(check::rank(x) * 3.0), |[x]| generic(check::rank(x) * 3.0));
    }
}
