//! Products of matrices in slices.
#![expect(unsafe_code, reason = "the crate `gemm` takes pointers; `multiply` checks what they may reach")]

use rayon::prelude::*;

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
    let (rows, columns, inner) = (left.rows, right.columns, left.columns);
    assert_eq!(inner, right.rows, "columns of the left matrix are rows of the right");
    assert!(row_stride >= columns, "rows of the result do not overlap");
    assert!(extent([rows, columns], [row_stride, 1]) <= out.len(), "the result lies in the slice");
    if rows == 0 || columns == 0 {
        return;
    }
    // SAFETY: `Mat::new` and the assertions above keep every element that the strides reach within its slice; `out` is
    // borrowed exclusively, so that it overlaps neither operand; `row_stride >= columns` gives every element of the
    // result a place of its own.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            write == Write::Add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Rows or columns below which a block is not cut further: packing its operands would cost too much.
const MIN_SIDE: usize = 128;
/// Multiplications that one block should have at least: a tenth of a millisecond.
const MIN_WORK: usize = 1 << 23;
/// Blocks of one product at most.
const MAX_BLOCKS: usize = 16;

/// `left · right`, or that plus `bias` in every row, on all threads: `left.rows x right.columns`.
pub fn product(left: Mat, right: Mat, bias: Option<&[f32]>) -> Vec<f32> {
    let (rows, columns) = (left.rows, right.columns);
    let mut out = vec![0.0; rows * columns];
    if rows == 0 || columns == 0 {
        return out;
    }
    let [block_rows, block_columns] = blocks(rows, columns, left.columns);
    if block_columns == columns {
        out.par_chunks_mut(block_rows * columns).enumerate().for_each(|(i, out)| {
            let rows = out.len() / columns;
            with_bias(out, left.rows(i * block_rows, rows), right, bias);
        });
        return out;
    }
    let across = columns.div_ceil(block_columns);
    let parts: Vec<Vec<f32>> = (0..rows.div_ceil(block_rows) * across)
        .into_par_iter()
        .map(|i| {
            let (row, column) = (i / across * block_rows, i % across * block_columns);
            let (rows, columns) = (block_rows.min(rows - row), block_columns.min(columns - column));
            let mut part = vec![0.0; rows * columns];
            let bias = bias.map(|bias| &bias[column..column + columns]);
            with_bias(&mut part, left.rows(row, rows), right.columns(column, columns), bias);
            part
        })
        .collect();
    out.par_chunks_mut(block_rows * columns).zip(parts.par_chunks(across)).for_each(|(out, parts)| {
        for (i, out) in out.chunks_exact_mut(columns).enumerate() {
            for (out, part) in out.chunks_mut(block_columns).zip(parts) {
                out.copy_from_slice(&part[i * out.len()..(i + 1) * out.len()]);
            }
        }
    });
    out
}

fn with_bias(out: &mut [f32], left: Mat, right: Mat, bias: Option<&[f32]>) {
    if let Some(bias) = bias {
        out.chunks_exact_mut(bias.len()).for_each(|row| row.copy_from_slice(bias));
    }
    multiply(out, right.columns, left, right, if bias.is_some() { Write::Add } else { Write::Set });
}

/// Sides of the blocks that a product is cut into.
fn blocks(rows: usize, columns: usize, inner: usize) -> [usize; 2] {
    let wanted = (rows * columns * inner / MIN_WORK).clamp(1, MAX_BLOCKS);
    let down = wanted.min((rows / MIN_SIDE).max(1));
    let across = wanted.div_ceil(down).min((columns / MIN_SIDE).max(1));
    let side = |whole: usize, parts: usize, unit: usize| {
        if parts == 1 { whole } else { whole.div_ceil(parts).next_multiple_of(unit).min(whole) }
    };
    // The product's innermost tile is 64 columns by 8 rows at most.
    [side(rows, down, 8), side(columns, across, 64)]
}

/// The transposed matrix, row after row, on all threads.
pub fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut result = vec![0.0; rows * columns];
    transpose_into(&mut result, values, rows, columns);
    result
}

/// Writes the transposed matrix to `result`: `columns x rows`, row after row, on all threads.
pub fn transpose_into(result: &mut [f32], values: &[f32], rows: usize, columns: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    const SIDE: usize = 16;
    result.par_chunks_mut(SIDE * rows).enumerate().for_each(|(i, result)| {
        let first = i * SIDE;
        let width = result.len() / rows;
        for start in (0..rows).step_by(SIDE) {
            let height = SIDE.min(rows - start);
            let mut tile = [[0.0f32; SIDE]; SIDE];
            for (tile, row) in tile.iter_mut().zip(values[start * columns..].chunks(columns)).take(height) {
                tile[..width].copy_from_slice(&row[first..first + width]);
            }
            for (j, result) in result.chunks_exact_mut(rows).enumerate() {
                let column = tile.map(|row| row[j]);
                result[start..start + height].copy_from_slice(&column[..height]);
            }
        }
    });
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
            let mut exact = Vec::new();
            for row in left.chunks(inner) {
                let columns = right.chunks(inner).zip(&bias);
                exact.extend(columns.map(|(column, bias)| {
                    row.iter().zip(column).map(|(a, b)| a * b).sum::<f32>() + bias // whole numbers: any order
                }));
            }
            assert_eq!(found, exact, "{rows} x {columns}, {inner}");
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
