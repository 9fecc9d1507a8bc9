//! Layer norm of every row.

use super::math::vectorised;
use super::sums;
use rayon::prelude::*;

/// Rows of one task, and of one partial sum.
const ROWS: usize = 64;
/// Lanes of a sum.
const LANES: usize = 16;

/// `x`: `[rows, width]`; `weight`, `bias`: `[width]` → the result, and mean and 1/deviation of every row.
pub fn forward(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> (Vec<f32>, Vec<[f32; 2]>) {
    let width = weight.len();
    let mut y = vec![0.0; x.len()];
    let mut stats = vec![[0.0; 2]; x.len() / width];
    let tasks = y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * width)).zip(stats.par_chunks_mut(ROWS));
    tasks.for_each(|((y, x), stats)| {
        type Rows<'a> = (&'a mut [f32], &'a [f32], &'a mut [[f32; 2]]);
        type Affine<'a> = (&'a [f32], &'a [f32], f32);
        vectorised!((rows: Rows<'_> = (y, x, stats), affine: Affine<'_> = (weight, bias, eps)) {
            let ((y, x, stats), (weight, bias, eps)) = (rows, affine);
            let width = weight.len();
            for ((y, x), stats) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(stats) {
                let mean = sum(x) / width as f32;
                let variance = sum_of_products(x, x, mean, mean) / width as f32;
                let inverse = 1.0 / (variance + eps).sqrt();
                *stats = [mean, inverse];
                for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                    *y = (x - mean) * inverse * weight + bias;
                }
            }
        });
    });
    (y, stats)
}

/// The gradients of `x`, `weight` and `bias` for that of the result.
pub fn backward(x: &[f32], weight: &[f32], stats: &[[f32; 2]], gradient: &[f32]) -> [Vec<f32>; 3] {
    let width = weight.len();
    let mut dx = vec![0.0; x.len()];
    let tasks = dx
        .par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width))
        .zip(gradient.par_chunks(ROWS * width))
        .zip(stats.par_chunks(ROWS));
    let sums: Vec<[Vec<f64>; 2]> = tasks
        .map(|(((dx, x), gradient), stats)| {
            let mut sums = [vec![0.0f32; width], vec![0.0f32; width]];
            type Rows<'a> = (&'a mut [f32], &'a [f32], &'a [f32], &'a [[f32; 2]]);
            let rows = (dx, x, gradient, stats);
            vectorised!((rows: Rows<'_> = rows, weight: &[f32] = weight, sums: &mut [Vec<f32>; 2] = &mut sums) {
                let ((dx, x, gradient, stats), width) = (rows, weight.len());
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gradient.chunks_exact(width));
                for (((dx, x), gradient), stats) in rows.zip(stats) {
                    row_gradient(dx, x, gradient, weight, *stats, sums);
                }
            });
            sums.map(|sum| sum.into_iter().map(f64::from).collect())
        })
        .collect();
    let (dweight, dbias): (Vec<_>, Vec<_>) = sums.into_iter().map(|[dweight, dbias]| (dweight, dbias)).unzip();
    [dx, sums::in_order(dweight, width), sums::in_order(dbias, width)]
}

/// dx = 1/σ · (w·dy − mean(w·dy) − x̂·mean(w·dy·x̂))
#[inline(always)]
fn row_gradient(
    dx: &mut [f32],
    x: &[f32],
    gradient: &[f32],
    weight: &[f32],
    [mean, inverse]: [f32; 2],
    [dweight, dbias]: &mut [Vec<f32>; 2],
) {
    let values = dx.iter_mut().zip(x).zip(gradient).zip(weight).zip(dweight.iter_mut()).zip(dbias.iter_mut());
    for (((((dx, x), gradient), weight), dweight), dbias) in values {
        *dweight += gradient * ((x - mean) * inverse);
        *dbias += gradient;
        *dx = gradient * weight;
    }
    let width = x.len() as f32;
    let mean_plain = sum(dx) / width;
    let mean_normal = sum_of_products(dx, x, 0.0, mean) * inverse / width;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = inverse * (*dx - mean_plain - (x - mean) * inverse * mean_normal);
    }
}

/// A sum in lanes, as vector instructions want it.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += value;
    }
    of_lanes(lanes)
}

/// Σ (a − minus_a) · (b − minus_b)
#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32], minus_a: f32, minus_b: f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += (a - minus_a) * (b - minus_b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += (a - minus_a) * (b - minus_b);
    }
    of_lanes(lanes)
}

/// Adds one half of the lanes to the other until one is left.
#[inline(always)]
fn of_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (left, right) = lanes.split_at_mut(half);
        for (left, right) in left.iter_mut().zip(right) {
            *left += *right;
        }
        half /= 2;
    }
    lanes[0]
}
