//! Many pixels: rows of taps for some pixels at a time.

use super::super::matrix::{Mat, Panels, Write, multiply};
use super::super::{math::vectorised, scratch};
use super::{Conv, Geometry};
use rayon::prelude::*;
use std::ops::Range;

/// Pixels of one block.
const PIXELS: usize = 256;
/// Numbers of a block of taps: 1.5 MiB, of a second-level cache of 1 to 2 MiB.
const BLOCK: usize = 384 << 10;
/// Pixels from which on the weight is laid out anew: it is read once for each block of pixels.
const MANY_PIXELS: usize = 4 * PIXELS;
/// Weights up to which a second order of them costs nothing.
const SMALL_WEIGHT: usize = 1 << 16;

pub(super) fn forward(conv: &Conv, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    scratch::with(2 * weight.len(), |memory| {
        let (by_tap, memory) = memory.split_at_mut(weight.len());
        write_by_tap(by_tap, weight, conv.inputs, conv.geometry.taps());
        if conv.batch * conv.pixels() < MANY_PIXELS {
            let multiply = |y: &mut [f32], block: Mat, taps: &Range<usize>, write| {
                let size = [conv.outputs, taps.len() * conv.inputs];
                let weight = Mat::new(&by_tap[taps.start * conv.inputs..], size, [conv.row(), 1]).t();
                multiply(y, conv.outputs, block, weight, write);
            };
            return correlate(conv, x, &whole_rows(conv), multiply, Some(bias));
        }
        let panels = Panels::of_columns(memory, by_tap, [conv.row(), conv.outputs]);
        let multiply = |y: &mut [f32], block: Mat, taps: &Range<usize>, write| {
            panels.multiply(y, conv.outputs, block, taps.start * conv.inputs..taps.end * conv.inputs, write);
        };
        correlate(conv, x, &whole_rows(conv), multiply, Some(bias))
    })
}

/// Kernel rows are taken together as far as their taps fit into a block.
fn whole_rows(conv: &Conv) -> Vec<Range<usize>> {
    let kernel = conv.geometry.kernel;
    let together = (BLOCK / (PIXELS * kernel * conv.inputs)).clamp(1, kernel);
    (0..kernel).step_by(together).map(|ky| ky * kernel..(ky + together).min(kernel) * kernel).collect()
}

/// `[outputs, inputs, taps]` → `[outputs, taps, inputs]`
fn write_by_tap(result: &mut [f32], weight: &[f32], inputs: usize, taps: usize) {
    let outputs = result.par_chunks_mut(inputs * taps).zip(weight.par_chunks(inputs * taps));
    outputs.for_each(|(result, weight)| {
        vectorised!((result: &mut [f32] = result, weight: &[f32] = weight, taps: usize = taps) {
            transpose(result, weight, taps);
        });
    });
}

/// `[·, columns]` → `[columns, ·]`, for few columns.
#[inline(always)]
fn transpose(result: &mut [f32], values: &[f32], columns: usize) {
    let rows = values.len() / columns;
    if columns == 9 {
        // As many loops over neighbours as a 3x3 kernel has taps.
        let (rows_of_nine, _) = values.as_chunks::<9>();
        for (column, result) in result.chunks_exact_mut(rows).enumerate() {
            for (result, row) in result.iter_mut().zip(rows_of_nine) {
                *result = row[column.min(8)];
            }
        }
        return;
    }
    for (column, result) in result.chunks_exact_mut(rows).enumerate() {
        for (result, row) in result.iter_mut().zip(values.chunks_exact(columns)) {
            *result = row[column];
        }
    }
}

/// Σ over taps of the shifted picture times the tap's matrix; `groups` are the taps of one product each, and
/// `product(y, pixels, taps, write)` multiplies some pixels by the weights of some taps, `[taps * inputs, outputs]`.
fn correlate(
    conv: &Conv,
    x: &[f32],
    groups: &[Range<usize>],
    product: impl Fn(&mut [f32], Mat, &Range<usize>, Write) + Sync,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let (pixels, outputs) = (conv.pixels(), conv.outputs);
    let mut y = vec![0.0; conv.batch * pixels * outputs];
    y.par_chunks_mut(PIXELS * outputs).enumerate().for_each(|(i, y)| {
        let first = i * PIXELS;
        let rows = first..first + y.len() / outputs;
        if let Some(bias) = bias {
            for (row, y) in rows.clone().zip(y.chunks_exact_mut(outputs)) {
                y.copy_from_slice(conv.bias_of(bias, row / pixels));
            }
        }
        for (j, taps) in groups.iter().enumerate() {
            let width = taps.len() * conv.inputs;
            scratch::with(rows.len() * width, |block| {
                gather(conv, x, rows.clone(), taps.clone(), 0..conv.inputs, block);
                let write = if j == 0 && bias.is_none() { Write::Set } else { Write::Add };
                product(y, Mat::of_rows(block, rows.len(), width), taps, write);
            });
        }
    });
    y
}

/// Writes some taps of the channels `channels` of the output pixels `rows`, counted through the batch:
/// `[rows, taps, channels]`.
fn gather(conv: &Conv, x: &[f32], rows: Range<usize>, taps: Range<usize>, channels: Range<usize>, block: &mut [f32]) {
    let Geometry { kernel, stride, before, .. } = conv.geometry;
    let (width, pixels) = (channels.len(), conv.pixels());
    for (row, block) in rows.zip(block.chunks_exact_mut(taps.len() * width)) {
        let (sample, pixel) = (row / pixels, row % pixels);
        let (top, left) = (pixel / conv.to_width * stride, pixel % conv.to_width * stride);
        let (down, across) = (conv.inside(top, conv.height), conv.inside(left, conv.width));
        for (tap, block) in taps.clone().zip(block.chunks_exact_mut(width)) {
            let (ky, kx) = (tap / kernel, tap % kernel);
            if down.contains(&ky) && across.contains(&kx) {
                let pixel = (sample * conv.height + top + ky - before) * conv.width + left + kx - before;
                let from = pixel * conv.inputs + channels.start;
                block.copy_from_slice(&x[from..from + width]);
            } else {
                block.fill(0.0);
            }
        }
    }
}

/// The picture's gradient is the output's, convolved with the kernel turned round.
pub(super) fn input_gradient(conv: &Conv, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
    let Geometry { kernel, before, after, .. } = conv.geometry;
    let turned = Conv {
        geometry: Geometry { kernel, stride: 1, before: kernel - 1 - before, after: kernel - 1 - after },
        inputs: conv.outputs,
        outputs: conv.inputs,
        height: conv.to_height,
        width: conv.to_width,
        to_height: conv.height,
        to_width: conv.width,
        batch: conv.batch,
    };
    let (taps, size) = (conv.geometry.taps(), conv.outputs * conv.inputs);
    if weight.len() <= SMALL_WEIGHT {
        // [taps turned round, outputs, inputs]
        let mut matrix = Vec::with_capacity(weight.len());
        for tap in (0..taps).rev() {
            matrix.extend(weight.iter().skip(tap).step_by(taps));
        }
        let product = |dx: &mut [f32], block: Mat, taps: &Range<usize>, write| {
            let of_taps = &matrix[taps.start * size..taps.end * size];
            multiply(dx, conv.inputs, block, Mat::of_rows(of_taps, taps.len() * conv.outputs, conv.inputs), write);
        };
        return correlate(&turned, gradient, &whole_rows(&turned), product, None);
    }
    scratch::with(weight.len(), |by_tap| {
        write_by_tap(by_tap, weight, conv.inputs, taps);
        let single: Vec<Range<usize>> = (0..taps).map(|tap| tap..tap + 1).collect();
        let product = |dx: &mut [f32], block: Mat, range: &Range<usize>, write| {
            let first = (taps - 1 - range.start) * conv.inputs;
            let of_tap = Mat::new(&by_tap[first..], [conv.outputs, conv.inputs], [conv.row(), 1]);
            multiply(dx, conv.inputs, block, of_tap, write);
        };
        correlate(&turned, gradient, &single, product, None)
    })
}

/// Channels are cut into slices, so that each slice's taps of some pixels fit into a core's cache.
pub(super) fn weight_gradient(conv: &Conv, x: &[f32], gradient: &[f32], result: &mut [f32]) {
    let (inputs, outputs, taps) = (conv.inputs, conv.outputs, conv.geometry.taps());
    let rows = conv.batch * conv.pixels();
    let wide = inputs.div_ceil(inputs.div_ceil(64).max(8.min(inputs.div_ceil(16))));
    let slices: Vec<Range<usize>> = (0..inputs).step_by(wide).map(|c| c..(c + wide).min(inputs)).collect();
    let parts: Vec<Vec<f32>> = slices
        .par_iter()
        .map(|channels| {
            let width = taps * channels.len();
            let mut part = vec![0.0; outputs * width]; // [outputs, taps, channels]
            scratch::with(PIXELS * width, |block| {
                for first in (0..rows).step_by(PIXELS) {
                    let count = PIXELS.min(rows - first);
                    let block = &mut block[..count * width];
                    gather(conv, x, first..first + count, 0..taps, channels.clone(), block);
                    let gradient = &gradient[first * outputs..(first + count) * outputs];
                    let gradient = Mat::of_rows(gradient, count, outputs).t();
                    multiply(&mut part, width, gradient, Mat::of_rows(block, count, width), Write::Add);
                }
            });
            part
        })
        .collect();
    result.par_chunks_mut(inputs * taps).enumerate().for_each(|(output, result)| {
        for (channels, part) in slices.iter().zip(&parts) {
            let width = taps * channels.len();
            let part = &part[output * width..(output + 1) * width];
            let result = &mut result[channels.start * taps..channels.end * taps];
            for (tap, part) in part.chunks_exact(channels.len()).enumerate() {
                result[tap..].iter_mut().step_by(taps).zip(part).for_each(|(result, part)| *result = *part);
            }
        }
    });
}
