//! Two-dimensional convolution over `[batch, height, width, channels]` as products of matrices.
//!
//! Every output pixel's neighbourhood, one tap per place of the kernel, is copied to a row; the convolution is that
//! matrix times the weight. Which way depends on what there is more of:
//!
//! - **Many pixels**, small weight (`blocks`): rows exist for some pixels at a time, in a core's cache, with the
//!   channels of a tap next to each other as they are in the picture; the weight is brought to the same order.
//! - **Few pixels**, large weight (`planes`): the weight stays as it is, `[outputs, inputs, kernel, kernel]`, and the
//!   pixels of the whole batch are laid out as `[inputs * kernel * kernel, pixels]`.

mod blocks;
mod planes;

use super::sums;
use std::ops::Range;

/// How a kernel moves.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Pixels from one output to the next.
    pub stride: usize,
    /// Rows above and columns to the left.
    pub before: usize,
    /// Rows below and columns to the right.
    pub after: usize,
}

impl Geometry {
    fn output(&self, size: usize) -> usize {
        (size + self.before + self.after - self.kernel) / self.stride + 1
    }

    fn taps(&self) -> usize {
        self.kernel * self.kernel
    }
}

/// A convolution of one input shape.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    geometry: Geometry,
    batch: usize,
    /// Of the input.
    height: usize,
    width: usize,
    inputs: usize,
    /// Of the output.
    to_height: usize,
    to_width: usize,
    outputs: usize,
}

impl Conv {
    /// `[batch, height, width, inputs]`, and the channels of the output.
    pub fn new([batch, height, width, inputs]: [usize; 4], outputs: usize, geometry: Geometry) -> Self {
        let (to_height, to_width) = (geometry.output(height), geometry.output(width));
        Self { geometry, batch, height, width, inputs, to_height, to_width, outputs }
    }

    /// `[batch, height', width', outputs]`
    pub fn output(&self) -> [usize; 4] {
        [self.batch, self.to_height, self.to_width, self.outputs]
    }

    /// Output pixels of a sample.
    fn pixels(&self) -> usize {
        self.to_height * self.to_width
    }

    /// Elements of a row of taps.
    fn row(&self) -> usize {
        self.geometry.taps() * self.inputs
    }

    /// Whether the weight is larger than the matrix of taps.
    fn few_pixels(&self) -> bool {
        self.batch * self.pixels() < self.outputs
    }

    /// `x`: `[batch, height, width, inputs]`; `weight`: `[outputs, inputs, kernel, kernel]`; `bias`: `[outputs]`, or
    /// `[batch, outputs]` for a shift of each sample's own → [`output`](Self::output)
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        if self.few_pixels() { planes::forward(self, x, weight, bias) } else { blocks::forward(self, x, weight, bias) }
    }

    /// The gradient of the input for that of the output: `[batch, height, width, inputs]`.
    pub fn input_gradient(&self, weight: &[f32], gradient: &[f32]) -> Vec<f32> {
        // The picture's gradient as a convolution of the output's is for kernels that move by one pixel.
        let Geometry { kernel, stride, before, after } = self.geometry;
        if self.few_pixels() || stride > 1 || before >= kernel || after >= kernel {
            planes::input_gradient(self, weight, gradient)
        } else {
            blocks::input_gradient(self, weight, gradient)
        }
    }

    /// Writes the gradient of the weight: `[outputs, inputs, kernel, kernel]`.
    ///
    /// # Panics
    ///
    /// When `to` has another size.
    pub fn weight_gradient_into(&self, x: &[f32], gradient: &[f32], to: &mut [f32]) {
        assert_eq!(to.len(), self.outputs * self.row(), "memory of the size of the weight");
        if self.few_pixels() {
            planes::weight_gradient(self, x, gradient, to);
        } else {
            blocks::weight_gradient(self, x, gradient, to);
        }
    }

    /// The gradient of the bias, which has `shifts` rows: `[shifts, outputs]`.
    pub fn bias_gradient(&self, gradient: &[f32], shifts: usize) -> Vec<f32> {
        gradient.chunks(gradient.len() / shifts).flat_map(|rows| sums::of_columns(rows, self.outputs)).collect()
    }

    /// The bias of a sample.
    fn bias_of<'a>(&self, bias: &'a [f32], sample: usize) -> &'a [f32] {
        let shift = sample * self.outputs % bias.len();
        &bias[shift..shift + self.outputs]
    }

    /// The places of a kernel that starts at `start` which lie in `0..size` of the picture.
    fn inside(&self, start: usize, size: usize) -> Range<usize> {
        let Geometry { kernel, before, .. } = self.geometry;
        let first = before.saturating_sub(start);
        first..kernel.min((size + before).saturating_sub(start)).max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition, in f64.
    fn naive(conv: &Conv, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f64> {
        let Geometry { kernel, stride, before, .. } = conv.geometry;
        let mut y = Vec::new();
        for sample in 0..conv.batch {
            for (i, j) in (0..conv.to_height).flat_map(|i| (0..conv.to_width).map(move |j| (i, j))) {
                for o in 0..conv.outputs {
                    let mut sum = f64::from(conv.bias_of(bias, sample)[o]);
                    for (ki, kj) in (0..kernel).flat_map(|i| (0..kernel).map(move |j| (i, j))) {
                        let (from_i, from_j) = (i * stride + ki, j * stride + kj);
                        let inside = |from, size| (before..before + size).contains(&from);
                        if !inside(from_i, conv.height) || !inside(from_j, conv.width) {
                            continue;
                        }
                        let pixel = (sample * conv.height + from_i - before) * conv.width + from_j - before;
                        for c in 0..conv.inputs {
                            let weight = weight[((o * conv.inputs + c) * kernel + ki) * kernel + kj];
                            sum += f64::from(x[pixel * conv.inputs + c]) * f64::from(weight);
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0).collect()
    }

    /// Both ways for all geometries; the gradients by their definition: ⟨dy, y(x + d) − y(x)⟩ of a linear map.
    #[test]
    fn both_ways_agree_with_the_definition() {
        let geometries = [(3, 1, 1, 1), (3, 2, 1, 1), (3, 2, 0, 1), (1, 1, 0, 0), (3, 1, 0, 2), (1, 2, 0, 0)];
        for (kernel, stride, before, after) in geometries {
            for outputs in [5, 300] {
                let conv = Conv::new([2, 9, 6, 4], outputs, Geometry { kernel, stride, before, after });
                assert_eq!(conv.few_pixels(), outputs == 300);
                let (x, weight) = (values(2 * 9 * 6 * 4, 1), values(outputs * conv.row(), 2));
                let (bias, zero) = (values(2 * outputs, 3), vec![0.0; outputs]);
                let y = conv.forward(&x, &weight, &bias);
                let exact = naive(&conv, &x, &weight, &bias);
                assert!(y.iter().zip(&exact).all(|(y, exact)| (f64::from(*y) - exact).abs() < 1e-4));
                let gradient = values(y.len(), 4);
                let found_x = conv.input_gradient(&weight, &gradient);
                let mut found_weight = vec![f32::NAN; weight.len()]; // of whatever content
                conv.weight_gradient_into(&x, &gradient, &mut found_weight);
                let dot = |a: &[f32], b: &[f64]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * b).sum::<f64>();
                for seed in 5..8 {
                    let (dx, dweight) = (values(x.len(), seed), values(weight.len(), seed));
                    let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                    let pairs = [
                        (dot(&found_x, &wide(&dx)), dot(&gradient, &naive(&conv, &dx, &weight, &zero))),
                        (dot(&found_weight, &wide(&dweight)), dot(&gradient, &naive(&conv, &x, &dweight, &zero))),
                    ];
                    for (found, exact) in pairs {
                        assert!((found - exact).abs() < 1e-2, "{kernel} {stride} {before}: {found} is not {exact}");
                    }
                }
                let sums = gradient.chunks(gradient.len() / 2).flat_map(|rows| {
                    (0..outputs).map(|o| rows.iter().skip(o).step_by(outputs).sum::<f32>()).collect::<Vec<_>>()
                });
                let found = conv.bias_gradient(&gradient, 2);
                assert!(found.iter().zip(sums).all(|(found, exact)| (found - exact).abs() < 1e-4));
            }
        }
    }

    /// A weight that is laid out anew: two panels, one of them narrow.
    #[test]
    fn many_pixels_agree_with_the_definition() {
        for (kernel, stride, height) in [(3, 1, 40), (3, 2, 80), (1, 1, 40)] {
            let geometry = Geometry { kernel, stride, before: kernel / 2, after: kernel / 2 };
            let conv = Conv::new([2, height, 30 * stride, 5], 70, geometry);
            assert!(2 * conv.pixels() > 2048);
            let x = values(2 * height * 30 * stride * 5, 1);
            let (weight, bias) = (values(70 * conv.row(), 2), values(2 * 70, 3));
            let y = conv.forward(&x, &weight, &bias);
            let exact = naive(&conv, &x, &weight, &bias);
            assert!(y.iter().zip(&exact).all(|(y, exact)| (f64::from(*y) - exact).abs() < 1e-4), "{geometry:?}");
        }
    }
}
