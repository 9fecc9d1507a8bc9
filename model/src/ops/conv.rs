//! Two-dimensional convolution over `[batch, height, width, channels]`.
//!
//! On the CPU every output pixel's neighbourhood is copied to a row, and the convolution is one product of matrices;
//! the backward pass makes the rows again rather than keeping them. Elsewhere it is burn's convolution.

use super::cpu::{self, host, on_host};
use super::record::{Any, plain, record};
use burn::tensor::Tensor;
use burn::tensor::ops::ConvOptions;
use rayon::prelude::*;

/// Samples are taken together until they have this many output pixels, so that the products are not too small.
const MIN_ROWS: usize = 256;

/// How a kernel moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// Side of the square kernel.
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows above and columns to the left.
    pub(crate) before: usize,
    /// Rows below and columns to the right.
    pub(crate) after: usize,
}

impl Geometry {
    fn output(&self, size: usize) -> usize {
        (size + self.before + self.after - self.kernel) / self.stride + 1
    }
}

/// `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, inputs, kernel, kernel]`; `bias`: `[1, outputs]`, or
/// `[batch, outputs]` for a shift of each sample's own → `[batch, height', width', outputs]`
pub(crate) fn conv2d(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<2>, geometry: Geometry) -> Tensor<4> {
    let plain_x = plain(&x);
    if !on_host(&plain_x) {
        return generic(x, weight, bias, geometry);
    }
    let taps = Taps::new(plain_x.dims(), weight.dims()[0], geometry);
    let plain_weight = plain(&weight);
    let shifts = bias.dims()[0];
    let y = taps.forward(&plain_x, &taps.to_matrix(&plain_weight), &plain(&bias));
    record([x.into(), weight.into(), bias.into()], y, move |gradient, wanted| {
        // Made again: the matrices of all convolutions are as large as the model.
        taps.backward(&plain_x, &taps.to_matrix(&plain_weight), &gradient, shifts, wanted)
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

/// The rows of neighbourhoods of one input shape: a row holds `kernel * kernel` taps of `inputs` channels.
#[derive(Clone, Copy)]
struct Taps {
    geometry: Geometry,
    /// Of the input.
    batch: usize,
    height: usize,
    width: usize,
    inputs: usize,
    /// Of the output.
    to_height: usize,
    to_width: usize,
    outputs: usize,
}

impl Taps {
    fn new([batch, height, width, inputs]: [usize; 4], outputs: usize, geometry: Geometry) -> Self {
        let (to_height, to_width) = (geometry.output(height), geometry.output(width));
        Self { geometry, batch, height, width, inputs, to_height, to_width, outputs }
    }

    fn pixels(&self) -> usize {
        self.to_height * self.to_width
    }

    /// Elements of a row.
    fn row(&self) -> usize {
        self.geometry.kernel.pow(2) * self.inputs
    }

    /// Samples of one product.
    fn together(&self) -> usize {
        MIN_ROWS.div_ceil(self.pixels()).min(self.batch)
    }

    /// `[outputs, inputs, kernel, kernel]` → `[outputs, kernel * kernel * inputs]`
    fn to_matrix(self, weight: &Tensor<4>) -> Tensor<2> {
        let taps = self.geometry.kernel.pow(2);
        let weight = host(weight);
        cpu::tensor(transposed(weight.values(), self.inputs, taps), [self.outputs, self.row()])
    }

    /// The inverse of [`to_matrix`](Self::to_matrix).
    fn to_weight(self, matrix: &[f32]) -> Tensor<4> {
        let kernel = self.geometry.kernel;
        cpu::tensor(transposed(matrix, kernel.pow(2), self.inputs), [self.outputs, self.inputs, kernel, kernel])
    }

    fn forward(&self, x: &Tensor<4>, matrix: &Tensor<2>, bias: &Tensor<2>) -> Tensor<4> {
        let (x, bias) = (host(x), host(bias));
        let matrix = matrix.clone().transpose();
        let shifts = bias.values().len() / self.outputs;
        let size = self.pixels() * self.outputs;
        let together = self.together();
        let mut y = vec![0.0; self.batch * size];
        y.par_chunks_mut(together * size).enumerate().for_each(|(i, y)| {
            let product = host(&self.rows(x.values(), i * together, y.len() / size).matmul(matrix.clone()));
            let samples = y.chunks_exact_mut(size).zip(product.values().chunks_exact(size)).enumerate();
            for (j, (y, product)) in samples {
                let shift = (i * together + j) % shifts * self.outputs;
                let bias = &bias.values()[shift..shift + self.outputs];
                for (y, product) in y.chunks_exact_mut(self.outputs).zip(product.chunks_exact(self.outputs)) {
                    y.iter_mut().zip(product.iter().zip(bias)).for_each(|(y, (product, bias))| *y = product + bias);
                }
            }
        });
        cpu::tensor(y, [self.batch, self.to_height, self.to_width, self.outputs])
    }

    fn backward(
        &self,
        x: &Tensor<4>,
        matrix: &Tensor<2>,
        gradient: &Tensor<4>,
        shifts: usize,
        [want_x, want_weight, want_bias]: [bool; 3],
    ) -> [Option<Any>; 3] {
        let gradient = gradient.clone().reshape([self.batch * self.pixels(), self.outputs]);
        let x = host(x);
        let size = self.height * self.width * self.inputs;
        let together = self.together();
        let mut dx = vec![0.0; if want_x { self.batch * size } else { self.batch }];
        let chunk = if want_x { together * size } else { together };
        let partial: Vec<Option<Tensor<2>>> = dx
            .par_chunks_mut(chunk)
            .enumerate()
            .map(|(i, dx)| {
                let samples = dx.len() * together / chunk;
                let gradient = gradient.clone().narrow(0, i * together * self.pixels(), samples * self.pixels());
                if want_x {
                    let drows = gradient.clone().matmul(matrix.clone());
                    self.scatter(host(&drows).values(), dx);
                }
                want_weight.then(|| gradient.transpose().matmul(self.rows(x.values(), i * together, samples)))
            })
            .collect();
        let dweight = partial.into_iter().flatten().reduce(|sum, part| sum + part);
        let dbias = want_bias.then(|| {
            let outputs = self.outputs;
            let sums = |values: &[f32]| cpu::column_sums(values, outputs);
            let gradient = host(&gradient);
            let per_shift = gradient.values().chunks(gradient.values().len() / shifts).flat_map(sums).collect();
            Any::from(cpu::tensor(per_shift, [shifts, outputs]))
        });
        [
            want_x.then(|| cpu::tensor(dx, [self.batch, self.height, self.width, self.inputs]).into()),
            dweight.map(|matrix| self.to_weight(host(&matrix).values()).into()),
            dbias,
        ]
    }

    /// The rows of `count` samples from `first`: `[count * pixels, row]`.
    fn rows(&self, x: &[f32], first: usize, count: usize) -> Tensor<2> {
        let size = self.height * self.width * self.inputs;
        let x = &x[first * size..(first + count) * size];
        let mut rows = vec![0.0; count * self.pixels() * self.row()];
        let samples = rows.chunks_exact_mut(self.pixels() * self.row()).zip(x.chunks_exact(size));
        for (rows, x) in samples {
            self.each_run(|row, pixel, length| rows[row..row + length].copy_from_slice(&x[pixel..pixel + length]));
        }
        cpu::tensor(rows, [count * self.pixels(), self.row()])
    }

    /// Adds rows back to where they were taken from.
    fn scatter(&self, rows: &[f32], x: &mut [f32]) {
        let size = self.height * self.width * self.inputs;
        for (rows, x) in rows.chunks_exact(self.pixels() * self.row()).zip(x.chunks_exact_mut(size)) {
            self.each_run(|row, pixel, length| {
                let values = x[pixel..pixel + length].iter_mut().zip(&rows[row..row + length]);
                values.for_each(|(x, row)| *x += row);
            });
        }
    }

    /// Calls `run(place in the rows, place in the sample, length)` for every run of taps that lies in the picture.
    fn each_run(&self, mut run: impl FnMut(usize, usize, usize)) {
        let Geometry { kernel, stride, before, .. } = self.geometry;
        for (oy, ox) in (0..self.to_height).flat_map(|oy| (0..self.to_width).map(move |ox| (oy, ox))) {
            let row = (oy * self.to_width + ox) * self.row();
            // Columns first..last of the kernel lie in the picture, and are neighbours in memory.
            let left = ox * stride;
            let first = before.saturating_sub(left);
            let last = kernel.min(self.width + before - left);
            for ky in 0..kernel {
                let y = oy * stride + ky;
                if y < before || y >= self.height + before {
                    continue;
                }
                let pixel = (y - before) * self.width + left + first - before;
                let place = row + (ky * kernel + first) * self.inputs;
                run(place, pixel * self.inputs, (last - first) * self.inputs);
            }
        }
    }
}

/// Transposes each `rows x columns` matrix of `values`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    if rows == 1 || columns == 1 {
        return values.to_vec();
    }
    let mut result = vec![0.0; values.len()];
    let matrices = result.par_chunks_mut(rows * columns).zip(values.par_chunks(rows * columns));
    matrices.for_each(|(result, values)| {
        for (i, row) in values.chunks_exact(columns).enumerate() {
            row.iter().enumerate().for_each(|(j, value)| result[j * rows + i] = *value);
        }
    });
    result
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
