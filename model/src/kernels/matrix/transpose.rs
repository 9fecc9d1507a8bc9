//! Transposition, in tiles that fit into registers.

use rayon::prelude::*;

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
    result.par_chunks_mut(SIDE * rows).enumerate().for_each(|(i, result)| {
        let first = i * SIDE;
        let width = result.len() / rows;
        for start in (0..rows).step_by(SIDE) {
            let height = SIDE.min(rows - start);
            let mut tile = [[0.0f32; SIDE]; SIDE];
            for (tile, row) in tile.iter_mut().zip(values[start * columns..].chunks(columns)).take(height) {
                tile[..width].copy_from_slice(&row[first..first + width]);
            }
            turn(&mut tile);
            for (tile, result) in tile.iter().zip(result.chunks_exact_mut(rows)) {
                result[start..start + height].copy_from_slice(&tile[..height]);
            }
        }
    });
}

/// Side of a tile that is transposed in registers.
pub(super) const SIDE: usize = 16;

/// Transposes a tile: four times, the first half of its lines is shuffled into the second.
#[inline(always)]
pub(super) fn turn(tile: &mut [[f32; SIDE]; SIDE]) {
    for _ in 0..SIDE.ilog2() {
        let before = *tile;
        for i in 0..SIDE / 2 {
            [tile[2 * i], tile[2 * i + 1]] = shuffled(&before[i], &before[i + SIDE / 2]);
        }
    }
}

/// `a₀ b₀ a₁ b₁ ..`, spelt out, for the compiler to make vector instructions of it.
#[inline(always)]
fn shuffled(a: &[f32; SIDE], b: &[f32; SIDE]) -> [[f32; SIDE]; 2] {
    [
        [a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3], a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]],
        [a[8], b[8], a[9], b[9], a[10], b[10], a[11], b[11], a[12], b[12], a[13], b[13], a[14], b[14], a[15], b[15]],
    ]
}
