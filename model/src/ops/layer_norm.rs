//! Layer norm over the last dimension.

use super::cpu::{self, host, on_host};
use super::record::{Any, plain, record};
use crate::layers::as_dtype;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of one task, and of one partial sum.
const ROWS: usize = 64;

/// Normalises every row; statistics in f32.
///
/// `x`: `[batch, rows, width]`; `weight`, `bias`: `[width]` → the shape of `x`
pub(crate) fn layer_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<3> {
    let (plain_x, w, b) = (plain(&x), plain(&weight), plain(&bias));
    if on_host(&plain_x) {
        let (y, stats) = forward(&plain_x, &w, &b, eps);
        let stats = Arc::new(stats);
        return record([x.into(), weight.into(), bias.into()], y, move |gradient, _| {
            backward(&plain_x, &w, &stats, &gradient)
        });
    }
    generic(x, weight, bias, eps)
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

/// The result, and mean and 1/deviation of every row.
fn forward(x: &Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> (Tensor<3>, Vec<[f32; 2]>) {
    let dims = x.dims();
    let width = dims[2];
    let (x, weight, bias) = (host(x), host(weight), host(bias));
    let mut y = vec![0.0; x.values().len()];
    let mut stats = vec![[0.0; 2]; x.values().len() / width];
    let tasks = y.par_chunks_mut(ROWS * width).zip(x.values().par_chunks(ROWS * width)).zip(stats.par_chunks_mut(ROWS));
    tasks.for_each(|((y, x), stats)| {
        for ((y, x), stats) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(stats) {
            let mean = sum(x, |x| x) / width as f32;
            let variance = sum(x, |x| (x - mean) * (x - mean)) / width as f32;
            let inverse = 1.0 / (variance + eps as f32).sqrt();
            *stats = [mean, inverse];
            let values = y.iter_mut().zip(x).zip(weight.values().iter().zip(bias.values()));
            values.for_each(|((y, x), (weight, bias))| *y = (x - mean) * inverse * weight + bias);
        }
    });
    (cpu::tensor(y, dims), stats)
}

/// A sum in eight lanes, as vector instructions want it.
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += of(*value));
    }
    rest.iter().zip(0..).for_each(|(value, lane): (_, usize)| lanes[lane] += of(*value));
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

fn backward(x: &Tensor<3>, weight: &Tensor<1>, stats: &[[f32; 2]], gradient: &Tensor<3>) -> [Option<Any>; 3] {
    let dims = x.dims();
    let width = dims[2];
    let (x, weight, gradient) = (host(x), host(weight), host(gradient));
    let mut dx = vec![0.0; x.values().len()];
    let tasks = dx
        .par_chunks_mut(ROWS * width)
        .zip(x.values().par_chunks(ROWS * width))
        .zip(gradient.values().par_chunks(ROWS * width))
        .zip(stats.par_chunks(ROWS));
    let sums: Vec<[Vec<f64>; 2]> = tasks
        .map(|(((dx, x), gradient), stats)| {
            let mut sums = [vec![0.0f32; width], vec![0.0f32; width]];
            let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gradient.chunks_exact(width));
            for (((dx, x), gradient), stats) in rows.zip(stats) {
                row_gradient(dx, x, gradient, weight.values(), *stats, &mut sums);
            }
            sums.map(|sum| sum.into_iter().map(f64::from).collect())
        })
        .collect();
    let (dweight, dbias): (Vec<_>, Vec<_>) = sums.into_iter().map(|[dweight, dbias]| (dweight, dbias)).unzip();
    [
        Some(cpu::tensor(dx, dims).into()),
        Some(cpu::tensor(cpu::in_order(dweight, width), [width]).into()),
        Some(cpu::tensor(cpu::in_order(dbias, width), [width]).into()),
    ]
}

/// dx = 1/σ · (w·dy − mean(w·dy) − x̂·mean(w·dy·x̂))
fn row_gradient(
    dx: &mut [f32],
    x: &[f32],
    gradient: &[f32],
    weight: &[f32],
    [mean, inverse]: [f32; 2],
    [dweight, dbias]: &mut [Vec<f32>; 2],
) {
    let values = dx.iter_mut().zip(x).zip(gradient.iter().zip(weight)).zip(dweight.iter_mut().zip(dbias.iter_mut()));
    for (((dx, x), (gradient, weight)), (dweight, dbias)) in values {
        *dweight += gradient * ((x - mean) * inverse);
        *dbias += gradient;
        *dx = gradient * weight;
    }
    let width = x.len() as f32;
    let mean_plain = sum(dx, |value| value) / width;
    let mut products = [0.0f32; 8];
    for (dx, x) in dx.chunks(8).zip(x.chunks(8)) {
        products.iter_mut().zip(dx.iter().zip(x)).for_each(|(sum, (dx, x))| *sum += dx * ((x - mean) * inverse));
    }
    let mean_normal = sum(&products, |value| value) / width;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = inverse * (*dx - mean_plain - (x - mean) * inverse * mean_normal);
    }
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
