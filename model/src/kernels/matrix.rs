//! Products of matrices in slices.
#![expect(unsafe_code, reason = "threads write blocks of one result that do not overlap")]

mod out;
mod panels;
mod transpose;

use out::{Out, written};
pub use panels::Panels;
use rayon::prelude::*;
pub use transpose::{transpose_into, transposed};

/// A matrix somewhere in a slice.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// From one row to the next.
    row_stride: usize,
    /// From one column to the next.
    column_stride: usize,
}

impl<'a> Mat<'a> {
    /// A matrix whose element `(i, j)` is `values[i * row_stride + j * column_stride]`.
    ///
    /// # Panics
    ///
    /// When the last element is not in the slice.
    pub fn new(values: &'a [f32], [rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> Self {
        assert!(extent([rows, columns], [row_stride, column_stride]) <= values.len(), "the matrix lies in the slice");
        Self { values, rows, columns, row_stride, column_stride }
    }

    /// `rows x columns`, row after row.
    pub fn of_rows(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::new(values, [rows, columns], [columns, 1])
    }

    /// The transposed matrix.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn rows(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows of the matrix");
        Self { values: &self.values[first * self.row_stride..], rows: count, ..self }
    }

    fn columns(self, first: usize, count: usize) -> Self {
        self.t().rows(first, count).t()
    }
}

/// Elements of a slice that a matrix reaches.
fn extent([rows, columns]: [usize; 2], [row_stride, column_stride]: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((columns - 1).checked_mul(column_stride));
    let last = last.and_then(|(row, column)| row.checked_add(column)).and_then(|last| last.checked_add(1));
    last.expect("a matrix in memory")
}

/// What a product does to what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Replaces it.
    Set,
    /// Is added to it.
    Add,
}

/// `out = left · right` or `out += left · right`, on this thread; `out`: `left.rows x right.columns`, a row every
/// `row_stride` elements.
///
/// # Panics
///
/// When the sizes do not fit.
pub fn multiply(out: &mut [f32], row_stride: usize, left: Mat, right: Mat, write: Write) {
    // SAFETY: the memory is this thread's alone.
    unsafe { Out::new(out, row_stride).multiply([0, 0], left, right, write) };
}

/// Rows or columns below which a block is not cut further: packing its operands would cost too much.
const MIN_SIDE: usize = 128;
/// Multiplications that one block should have at least: a tenth of a millisecond.
const MIN_WORK: usize = 1 << 23;
/// Blocks of one product at most.
const MAX_BLOCKS: usize = 16;

/// `left · right`, or that plus `bias` in every row, on all threads: `left.rows x right.columns`.
pub fn product(left: Mat, right: Mat, bias: Option<&[f32]>) -> Vec<f32> {
    // SAFETY: a product writes all of its result.
    unsafe { written(left.rows * right.columns, |out| grid(Out::new_uninit(out, right.columns), left, right, bias)) }
}

/// Writes what [`product`] returns.
///
/// # Panics
///
/// When `out` has another size.
pub fn product_into(out: &mut [f32], left: Mat, right: Mat, bias: Option<&[f32]>) {
    assert_eq!(out.len(), left.rows * right.columns, "memory of the size of the product");
    grid(Out::new(out, right.columns), left, right, bias);
}

/// Writes every element of a product, in blocks.
fn grid(out: Out, left: Mat, right: Mat, bias: Option<&[f32]>) {
    let (rows, columns) = (left.rows, right.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    let [block_rows, block_columns] = blocks(left, right);
    let across = columns.div_ceil(block_columns);
    (0..rows.div_ceil(block_rows) * across).into_par_iter().for_each(|i| {
        let (row, column) = (i / across * block_rows, i % across * block_columns);
        let (rows, columns) = (block_rows.min(rows - row), block_columns.min(columns - column));
        let bias = bias.map(|bias| &bias[column..column + columns]);
        // SAFETY: each thread has its own blocks of the grid.
        unsafe { out.multiply_and_add([row, column], left.rows(row, rows), right.columns(column, columns), bias) };
    });
}

/// Sides of the blocks that a product is cut into.
fn blocks(left: Mat, right: Mat) -> [usize; 2] {
    /// Rows up to which a right matrix whose columns are lines of memory is not gathered twice.
    const FEW_ROWS: usize = 512;
    let (rows, columns) = (left.rows, right.columns);
    let wanted = (rows * columns * left.columns / MIN_WORK).clamp(1, MAX_BLOCKS);
    let is_gathered = right.row_stride == 1 && right.column_stride > 1;
    let down = if is_gathered && rows <= FEW_ROWS { 1 } else { wanted.min((rows / MIN_SIDE).max(1)) };
    let across = wanted.div_ceil(down).min((columns / MIN_SIDE).max(1));
    let side = |whole: usize, parts: usize, unit: usize| {
        if parts == 1 { whole } else { whole.div_ceil(parts).next_multiple_of(unit).min(whole) }
    };
    // The product's innermost tile is 64 columns by 8 rows at most.
    [side(rows, down, 8), side(columns, across, 64)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole_numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn blocks_make_up_the_product() {
        for (rows, columns, inner) in [(3, 5, 4), (1000, 300, 40), (64, 700, 500), (300, 200, 700)] {
            let (left, right) = (whole_numbers(rows * inner), whole_numbers(columns * inner));
            let bias = whole_numbers(columns);
            let (a, b) = (Mat::of_rows(&left, rows, inner), Mat::of_rows(&right, columns, inner).t());
            let found = product(a, b, Some(&bias));
            let mut memory = vec![f32::NAN; right.len()];
            let panels = Panels::of_columns(&mut memory, &right, [inner, columns]);
            let mut by_panels = vec![f32::NAN; rows * columns];
            panels.product_into(&mut by_panels, a, Some(&bias));
            let mut exact = Vec::new();
            for row in left.chunks(inner) {
                let columns = right.chunks(inner).zip(&bias);
                exact.extend(columns.map(|(column, bias)| {
                    row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>() + bias // whole numbers: any order
                }));
            }
            assert_eq!(found, exact, "{rows} x {columns}, {inner}");
            assert_eq!(by_panels, exact, "{rows} x {columns}, {inner}, panels");
            // The first rows of the right matrix, then the others.
            let (mut sum, first) = (vec![f32::NAN; rows * columns], inner / 3);
            for (part, write) in [(0..first, Write::Set), (first..inner, Write::Add)] {
                let left = Mat::new(&left[part.start..], [rows, part.len()], [inner, 1]);
                panels.multiply(&mut sum, columns, left, part, write);
            }
            let without_bias: Vec<f32> = exact.iter().zip(bias.iter().cycle()).map(|(sum, bias)| sum - bias).collect();
            assert_eq!(sum, without_bias, "{rows} x {columns}, {inner}, panels in two parts");
        }
    }

    #[test]
    fn transposition() {
        for (rows, columns) in [(1, 7), (16, 16), (33, 20)] {
            let values = whole_numbers(rows * columns);
            let result = transposed(&values, rows, columns);
            for i in 0..rows * columns {
                assert_eq!(result[i % columns * rows + i / columns], values[i]);
            }
        }
    }

    #[test]
    #[should_panic(expected = "lies in the slice")]
    fn matrices_stay_in_their_slices() {
        Mat::new(&[0.0; 11], [3, 4], [4, 1]);
    }
}
