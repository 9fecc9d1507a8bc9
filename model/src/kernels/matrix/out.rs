//! Where a product is written: the one place that hands pointers to the crate `gemm`.
#![expect(unsafe_code, reason = "the crate `gemm` takes pointers; `Out` checks what they may reach")]

use super::{Mat, Write, extent};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// The memory of a result, of which threads write blocks that do not overlap.
pub(super) struct Out<'a> {
    first: *mut f32,
    len: usize,
    /// From one row to the next.
    row_stride: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: what is shared is the right to write to memory that `Out` has borrowed exclusively; threads that do so promise
// that their blocks do not overlap.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    pub(super) fn new(memory: &'a mut [f32], row_stride: usize) -> Self {
        Self { first: memory.as_mut_ptr(), len: memory.len(), row_stride, memory: PhantomData }
    }

    /// Memory that nothing has been written to.
    pub(super) fn new_uninit(memory: &'a mut [MaybeUninit<f32>], row_stride: usize) -> Self {
        Self { first: memory.as_mut_ptr().cast(), len: memory.len(), row_stride, memory: PhantomData }
    }

    /// Writes the block that begins at `[row, column]` and is as large as the product.
    ///
    /// # Safety
    ///
    /// No other thread may write to the block meanwhile.
    pub(super) unsafe fn multiply(&self, [row, column]: [usize; 2], left: Mat, right: Mat, write: Write) {
        let (rows, columns, inner) = (left.rows, right.columns, left.columns);
        assert_eq!(inner, right.rows, "columns of the left matrix are rows of the right");
        assert!(self.row_stride >= column + columns, "rows of the result do not overlap");
        if rows == 0 || columns == 0 {
            return;
        }
        let first = row * self.row_stride + column;
        assert!(first + extent([rows, columns], [self.row_stride, 1]) <= self.len, "the result lies in the slice");
        // SAFETY: `Mat::new` and the assertions above keep every element that the strides reach within its slice; the
        // memory of the result is borrowed exclusively, so that it overlaps neither operand, and nobody else writes to this
        // block; `row_stride >= columns` gives every element of the result a place of its own.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                inner,
                self.first.add(first),
                1,
                self.row_stride as isize,
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

    /// Writes a block that begins at `[row, column]`: the bias, where there is one, plus the product.
    ///
    /// # Safety
    ///
    /// No other thread may write to the block meanwhile.
    pub(super) unsafe fn multiply_and_add(&self, at: [usize; 2], left: Mat, right: Mat, bias: Option<&[f32]>) {
        let write = if bias.is_some() { Write::Add } else { Write::Set };
        // SAFETY: nobody else writes to the block.
        unsafe {
            if let Some(bias) = bias {
                assert_eq!(bias.len(), right.columns, "a bias for each column");
                self.fill(at, left.rows, bias);
            }
            self.multiply(at, left, right, write);
        }
    }

    /// Writes `bias` to each of some rows, from `[row, column]` on.
    ///
    /// # Safety
    ///
    /// No other thread may write to them meanwhile.
    unsafe fn fill(&self, [row, column]: [usize; 2], rows: usize, bias: &[f32]) {
        for row in row..row + rows {
            let first = row * self.row_stride + column;
            assert!(first + bias.len() <= self.len, "the result lies in the slice");
            // SAFETY: the elements lie in memory that is borrowed exclusively, and nobody else writes to them.
            unsafe { self.first.add(first).copy_from_nonoverlapping(bias.as_ptr(), bias.len()) };
        }
    }
}

/// Returns a vector of which `write` writes every element: clearing it before would be one thread's work.
///
/// # Safety
///
/// `write` writes all of it.
pub(super) unsafe fn written(count: usize, write: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut values = Vec::with_capacity(count);
    write(&mut values.spare_capacity_mut()[..count]);
    // SAFETY: they have been written.
    unsafe { values.set_len(count) };
    values
}
