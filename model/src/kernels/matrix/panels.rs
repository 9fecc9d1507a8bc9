//! A matrix laid out for products that read it many times.
#![expect(unsafe_code, reason = "threads write blocks of one result that do not overlap")]

use super::out::{Out, written};
use super::transpose::{SIDE, turn};
use super::{MAX_BLOCKS, MIN_SIDE, MIN_WORK, Mat, Write};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of a panel: those of the product's innermost tile.
const PANEL: usize = 64;

/// A matrix cut into panels of a few columns, each of them row after row, as a product reads it fastest: another layout is
/// brought to this one again and again, for each block of the left matrix.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Panels<'a> {
    /// Lays out the matrix whose columns are the lines of `values` (`[columns, rows]`), on all threads.
    ///
    /// # Panics
    ///
    /// When `memory` has another size than `values`.
    pub fn of_columns(memory: &'a mut [f32], values: &[f32], [rows, columns]: [usize; 2]) -> Self {
        assert!(memory.len() == values.len() && values.len() == rows * columns, "memory of the size of the matrix");
        if rows > 0 {
            let panels = memory.par_chunks_mut(PANEL * rows).zip(values.par_chunks(PANEL * rows));
            panels.for_each(|(panel, values)| write_panel(panel, values, rows));
        }
        Self { values: memory, rows, columns }
    }

    fn count(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Some rows of a panel.
    fn panel(&self, index: usize, rows: Range<usize>) -> Mat<'a> {
        let width = PANEL.min(self.columns - index * PANEL);
        Mat::of_rows(&self.values[index * PANEL * self.rows + rows.start * width..], rows.len(), width)
    }

    /// `out = left · right` or `out += left · right` for the rows `rows` of this matrix, on this thread, as [`multiply`](super::multiply).
    ///
    /// # Panics
    ///
    /// When the sizes do not fit.
    pub fn multiply(&self, out: &mut [f32], row_stride: usize, left: Mat, rows: Range<usize>, write: Write) {
        let out = Out::new(out, row_stride);
        for index in 0..self.count() {
            // SAFETY: the memory is this thread's alone.
            unsafe { out.multiply([0, index * PANEL], left, self.panel(index, rows.clone()), write) };
        }
    }

    /// `left · right`, or that plus `bias` in every row, on all threads: `[left.rows, columns]`.
    pub fn product(&self, left: Mat, bias: Option<&[f32]>) -> Vec<f32> {
        // SAFETY: a product writes all of its result.
        unsafe { written(left.rows * self.columns, |out| self.grid(Out::new_uninit(out, self.columns), left, bias)) }
    }

    /// Writes what [`product`](Self::product) returns.
    ///
    /// # Panics
    ///
    /// When `out` has another size.
    pub fn product_into(&self, out: &mut [f32], left: Mat, bias: Option<&[f32]>) {
        assert_eq!(out.len(), left.rows * self.columns, "memory of the size of the product");
        self.grid(Out::new(out, self.columns), left, bias);
    }

    /// Writes every element of a product, in blocks.
    fn grid(&self, out: Out, left: Mat, bias: Option<&[f32]>) {
        let (rows, columns) = (left.rows, self.columns);
        if rows == 0 || columns == 0 {
            return;
        }
        // Rows that stay in a core's cache while the panels go by; then as many groups of panels as make enough tasks.
        let down = rows.div_ceil((LEFT_BLOCK / left.columns.max(1)).max(2 * MIN_SIDE));
        let block_rows = rows.div_ceil(down).next_multiple_of(8);
        let down = rows.div_ceil(block_rows);
        let wanted = (rows * columns * left.columns / MIN_WORK).clamp(1, 2 * MAX_BLOCKS);
        let together = self.count().div_ceil(wanted.div_ceil(down));
        let across = self.count().div_ceil(together);
        (0..down * across).into_par_iter().for_each(|i| {
            let row = i / across * block_rows;
            let left = left.rows(row, block_rows.min(rows - row));
            let panels = i % across * together..(i % across * together + together).min(self.count());
            for index in panels {
                let right = self.panel(index, 0..self.rows);
                let column = index * PANEL;
                let bias = bias.map(|bias| &bias[column..column + right.columns]);
                // SAFETY: each thread has its own blocks of the grid.
                unsafe { out.multiply_and_add([row, column], left, right, bias) };
            }
        });
    }
}

/// Numbers of a block of the left matrix that stay in a core's cache: 1 MiB.
const LEFT_BLOCK: usize = 1 << 18;

/// Writes the lines of `values`, `[·, rows]`, as columns: `[rows, ·]`.
fn write_panel(panel: &mut [f32], values: &[f32], rows: usize) {
    /// Rows of which one column of tiles after the other is written: half a second-level cache at most.
    const DEEP: usize = 512;
    let width = values.len() / rows;
    for block in (0..rows).step_by(DEEP) {
        for column in (0..width).step_by(SIDE) {
            let wide = SIDE.min(width - column);
            for row in (block..(block + DEEP).min(rows)).step_by(SIDE) {
                let high = SIDE.min(rows - row);
                let mut tile = [[0.0f32; SIDE]; SIDE];
                for (i, tile) in tile.iter_mut().take(wide).enumerate() {
                    let from = (column + i) * rows + row;
                    tile[..high].copy_from_slice(&values[from..from + high]);
                }
                turn(&mut tile);
                for (i, tile) in tile.iter().take(high).enumerate() {
                    let to = (row + i) * width + column;
                    panel[to..to + wide].copy_from_slice(&tile[..wide]);
                }
            }
        }
    }
}
