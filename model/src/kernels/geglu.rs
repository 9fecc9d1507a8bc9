//! GEGLU (arXiv:2002.05202): the first half of the columns times the GELU of the second.

use super::math::{erf, exp, vectorised};
use rayon::prelude::*;
use std::f32::consts::FRAC_1_SQRT_2;

/// Rows of one task.
const ROWS: usize = 32;

/// `x`: `[rows, 2 * width]` → `[rows, width]`
pub fn forward(x: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / 2];
    y.par_chunks_mut(ROWS * width).zip(x.par_chunks(ROWS * 2 * width)).for_each(|(y, x)| {
        vectorised!((y: &mut [f32] = y, x: &[f32] = x, width: usize = width) {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (hidden, gate) = x.split_at(width);
                for ((y, hidden), gate) in y.iter_mut().zip(hidden).zip(gate) {
                    *y = hidden * (gate * normal_cdf(*gate));
                }
            }
        });
    });
    y
}

/// Gradient of `x` for that of the result (`[rows, width]`): `[rows, 2 * width]`.
pub fn backward(x: &[f32], gradient: &[f32], width: usize) -> Vec<f32> {
    let mut dx = vec![0.0; x.len()];
    let tasks =
        dx.par_chunks_mut(ROWS * 2 * width).zip(x.par_chunks(ROWS * 2 * width)).zip(gradient.par_chunks(ROWS * width));
    tasks.for_each(|((dx, x), gradient)| {
        vectorised!((dx: &mut [f32] = dx, x: &[f32] = x, gradient: &[f32] = gradient, width: usize = width) {
            let rows = dx.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width)).zip(gradient.chunks_exact(width));
            for ((dx, x), gradient) in rows {
                let (dhidden, dgate) = dx.split_at_mut(width);
                let (hidden, gate) = x.split_at(width);
                // Loops with one output each: the compiler turns only these into vector instructions.
                for ((dhidden, gate), gradient) in dhidden.iter_mut().zip(gate).zip(gradient) {
                    *dhidden = gate * normal_cdf(*gate) * gradient;
                }
                for (dgate, gate) in dgate.iter_mut().zip(gate) {
                    let density = 0.398_942_3 * exp(-0.5 * gate * gate);
                    *dgate = normal_cdf(*gate) + gate * density;
                }
                for ((dgate, hidden), gradient) in dgate.iter_mut().zip(hidden).zip(gradient) {
                    *dgate *= gradient * hidden;
                }
            }
        });
    });
    dx
}

/// Φ(x) = ½ (1 + erf(x/√2))
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * FRAC_1_SQRT_2)
}
