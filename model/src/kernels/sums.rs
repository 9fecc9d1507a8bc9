//! Sums of columns: f32 within a few rows, f64 beyond.

use super::math::vectorised;
use rayon::prelude::*;

/// Rows that are summed in f32 before the sum goes on in f64.
pub const BLOCK_ROWS: usize = 64;
/// Rows of one task.
const TASK_ROWS: usize = 512;

/// Adds the columns of up to [`BLOCK_ROWS`] rows to `sums`, in f32.
#[inline(always)]
pub fn add_columns(sums: &mut [f32], rows: &[f32]) {
    let width = sums.len();
    let mut fours = rows.chunks_exact(4 * width);
    for four in &mut fours {
        let (ab, cd) = four.split_at(2 * width);
        let ((a, b), (c, d)) = (ab.split_at(width), cd.split_at(width));
        for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *sum += (a + b) + (c + d);
        }
    }
    for row in fours.remainder().chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// Adds f32 sums to f64 totals and sets them to zero.
#[inline(always)]
pub fn flush(totals: &mut [f64], sums: &mut [f32]) {
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total += f64::from(*sum);
        *sum = 0.0;
    }
}

/// Sums of the columns of `rows` (`[·, columns]`).
pub fn of_columns(rows: &[f32], columns: usize) -> Vec<f32> {
    let partial: Vec<Vec<f64>> = rows
        .par_chunks(columns * TASK_ROWS)
        .map(|task| {
            let (mut totals, mut sums) = (vec![0.0f64; columns], vec![0.0f32; columns]);
            vectorised!((task: &[f32] = task, totals: &mut [f64] = &mut totals, sums: &mut [f32] = &mut sums) {
                let columns = sums.len();
                for rows in task.chunks(columns * BLOCK_ROWS) {
                    add_columns(sums, rows);
                    flush(totals, sums);
                }
            });
            totals
        })
        .collect();
    in_order(partial, columns)
}

/// Adds partial sums in order.
pub fn in_order(partial: impl IntoIterator<Item = Vec<f64>>, columns: usize) -> Vec<f32> {
    let mut total = vec![0.0f64; columns];
    for part in partial {
        total.iter_mut().zip(part).for_each(|(total, value)| *total += value);
    }
    total.into_iter().map(|sum| sum as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_sums_are_exact_for_whole_numbers() {
        let rows: Vec<f32> = (0..3009).map(|i| (i % 7) as f32).collect();
        let expected: Vec<f32> = (0..3).map(|c| rows.iter().skip(c).step_by(3).sum()).collect();
        assert_eq!(of_columns(&rows, 3), expected);
    }
}
