//! Few pixels: the matrix of taps has a row per input channel and tap, as the weight has columns, and a column per
//! output pixel of the batch.

use super::super::matrix::{Mat, Panels, Write, multiply, transpose_into, transposed};
use super::super::scratch;
use super::{Conv, Geometry};
use rayon::prelude::*;

/// Outputs, or inputs, of one task.
const CHANNELS: usize = 128;

pub(super) fn forward(conv: &Conv, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let rows = conv.batch * conv.pixels();
    scratch::with((conv.row() + conv.outputs) * rows, |memory| {
        let (taps, y) = memory.split_at_mut(conv.row() * rows); // y: [outputs, pixels]
        gather(conv, x, taps);
        let taps = Mat::of_rows(taps, conv.row(), rows);
        let tasks = y.par_chunks_mut(CHANNELS * rows).zip(weight.par_chunks(CHANNELS * conv.row()));
        tasks.enumerate().for_each(|(i, (y, weight))| {
            for (output, y) in y.chunks_exact_mut(rows).enumerate() {
                for (sample, y) in y.chunks_exact_mut(conv.pixels()).enumerate() {
                    y.fill(conv.bias_of(bias, sample)[i * CHANNELS + output]);
                }
            }
            let outputs = weight.len() / conv.row();
            multiply(y, rows, Mat::of_rows(weight, outputs, conv.row()), taps, Write::Add);
        });
        transposed(y, conv.outputs, rows)
    })
}

/// Writes `[inputs * taps, batch * pixels]`.
fn gather(conv: &Conv, x: &[f32], taps: &mut [f32]) {
    let rows = conv.batch * conv.pixels();
    let from = conv.batch * conv.height * conv.width;
    scratch::with(conv.inputs * from, |planes| {
        transpose_into(planes, x, from, conv.inputs); // [inputs, batch * height * width]
        taps.par_chunks_mut(conv.geometry.taps() * rows).zip(planes.par_chunks(from)).for_each(|(taps, plane)| {
            taps.fill(0.0);
            each_run(conv, |place, count, pixel| {
                let taps = &mut taps[place..place + count];
                if conv.geometry.stride == 1 {
                    taps.copy_from_slice(&plane[pixel..pixel + count]);
                } else {
                    let pixels = plane[pixel..].iter().step_by(conv.geometry.stride);
                    taps.iter_mut().zip(pixels).for_each(|(tap, pixel)| *tap = *pixel);
                }
            });
        });
    });
}

/// Calls `run(place in the taps of a channel, count, pixel)` for every line of taps that lies in the picture; pixels
/// are `stride` apart.
#[inline(always)]
fn each_run(conv: &Conv, mut run: impl FnMut(usize, usize, usize)) {
    let Geometry { kernel, stride, before, .. } = conv.geometry;
    let rows = conv.batch * conv.pixels();
    for tap in 0..kernel * kernel {
        let (ky, kx) = (tap / kernel, tap % kernel);
        // Outputs whose tap lies in the picture: `before <= i * stride + k < size + before`.
        let first = |k: usize| before.saturating_sub(k).div_ceil(stride);
        let last =
            |k: usize, size: usize, outputs: usize| (size + before).saturating_sub(k).div_ceil(stride).min(outputs);
        let (left, right) = (first(kx), last(kx, conv.width, conv.to_width));
        if left >= right {
            continue;
        }
        for sample in 0..conv.batch {
            for i in first(ky)..last(ky, conv.height, conv.to_height) {
                let place = tap * rows + (sample * conv.to_height + i) * conv.to_width + left;
                let pixel =
                    (sample * conv.height + i * stride + ky - before) * conv.width + left * stride + kx - before;
                run(place, right - left, pixel);
            }
        }
    }
}

pub(super) fn input_gradient(conv: &Conv, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
    let rows = conv.batch * conv.pixels();
    let (taps, from) = (conv.geometry.taps(), conv.batch * conv.height * conv.width);
    let gradient = transposed(gradient, rows, conv.outputs); // [outputs, pixels]
    let gradient = Mat::of_rows(&gradient, conv.outputs, rows);
    let mut dx = vec![0.0; conv.inputs * from]; // [inputs, batch * height * width]
    // A thread's products are kept to about two million numbers.
    let channels = ((1 << 21) / (taps * rows)).clamp(1, CHANNELS).min(conv.inputs.div_ceil(8));
    dx.par_chunks_mut(channels * from).enumerate().for_each(|(i, dx)| {
        let count = dx.len() / from * taps;
        let weight = Mat::new(&weight[i * channels * taps..], [conv.outputs, count], [conv.row(), 1]).t();
        scratch::with(count * rows, |products| {
            multiply(products, rows, weight, gradient, Write::Set);
            for (dx, products) in dx.chunks_exact_mut(from).zip(products.chunks_exact(taps * rows)) {
                each_run(conv, |place, count, pixel| {
                    let products = &products[place..place + count];
                    if conv.geometry.stride == 1 {
                        let pixels = dx[pixel..pixel + count].iter_mut();
                        pixels.zip(products).for_each(|(dx, product)| *dx += product);
                    } else {
                        let pixels = dx[pixel..].iter_mut().step_by(conv.geometry.stride);
                        pixels.zip(products).for_each(|(dx, product)| *dx += product);
                    }
                });
            }
        });
    });
    transposed(&dx, conv.inputs, from)
}

pub(super) fn weight_gradient(conv: &Conv, x: &[f32], gradient: &[f32], result: &mut [f32]) {
    let rows = conv.batch * conv.pixels();
    scratch::with((2 * conv.row() + conv.outputs) * rows, |memory| {
        let (taps, memory) = memory.split_at_mut(conv.row() * rows);
        let (panels, by_output) = memory.split_at_mut(conv.row() * rows);
        gather(conv, x, taps);
        let panels = Panels::of_columns(panels, taps, [rows, conv.row()]);
        transpose_into(by_output, gradient, rows, conv.outputs); // [outputs, pixels]
        panels.product_into(result, Mat::of_rows(by_output, conv.outputs, rows), None);
    });
}
