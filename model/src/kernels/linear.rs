//! `y = x Wᵀ + b` with PyTorch's layout of the weight.

use super::matrix::{Mat, Panels, product, product_into};
use super::{scratch, sums};

/// Rows from which on the forward pass lays the weight out anew: it is read once for each block of some hundred rows.
const MANY_ROWS: usize = 1024;

/// Rows, and widths of the input and output.
#[derive(Clone, Copy, Debug)]
pub struct LinearShape {
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Columns of `x`.
    pub inputs: usize,
    /// Columns of `y`.
    pub outputs: usize,
}

impl LinearShape {
    /// `x`: `[rows, inputs]`; `weight`: `[outputs, inputs]`; `bias`: `[outputs]` → `[rows, outputs]`
    pub fn forward(self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        let x = Mat::of_rows(x, rows, inputs);
        if rows < MANY_ROWS {
            return product(x, Mat::of_rows(weight, outputs, inputs).t(), bias);
        }
        scratch::with(weight.len(), |memory| Panels::of_columns(memory, weight, [inputs, outputs]).product(x, bias))
    }

    /// Gradient of `x` for that of `y` (`[rows, outputs]`): `[rows, inputs]`.
    pub fn input_gradient(self, gradient: &[f32], weight: &[f32]) -> Vec<f32> {
        let Self { rows, inputs, outputs } = self;
        product(Mat::of_rows(gradient, rows, outputs), Mat::of_rows(weight, outputs, inputs), None)
    }

    /// Writes the gradient of the weight: `[outputs, inputs]`.
    pub fn weight_gradient_into(self, gradient: &[f32], x: &[f32], to: &mut [f32]) {
        let Self { rows, inputs, outputs } = self;
        product_into(to, Mat::of_rows(gradient, rows, outputs).t(), Mat::of_rows(x, rows, inputs), None);
    }

    /// Gradient of the bias: `[outputs]`.
    pub fn bias_gradient(self, gradient: &[f32]) -> Vec<f32> {
        sums::of_columns(gradient, self.outputs)
    }
}
