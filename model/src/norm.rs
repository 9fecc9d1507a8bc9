//! The norm of a gradient, and what brings it down.
//!
//! Every worker moves its own copy of the parameters by the same reduced gradient, so the one sum over all elements is
//! taken in fixed pieces and a fixed order: the same bits on any number of threads and on any processor.

use crate::kernels::math::vectorised;
use rayon::prelude::*;

/// Elements of one piece of the sum; changing it changes bits.
const CHUNK: usize = 1 << 16;

/// Sums that are taken side by side: enough for the widest vector registers. Fixed, so that every processor adds alike.
const LANES: usize = 8;

/// Returns the L2 norm, in `f64`.
pub fn global_norm(gradient: &[f32]) -> f64 {
    let chunks: Vec<f64> = gradient.par_chunks(CHUNK).map(sum_of_squares).collect();
    chunks.into_iter().sum::<f64>().sqrt()
}

fn sum_of_squares(chunk: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    vectorised!((chunk: &[f32] = chunk, lanes: &mut [f64; LANES] = &mut lanes) {
        let (rows, rest) = chunk.as_chunks::<LANES>();
        let mut sums = [0.0f64; LANES]; // here, to stay in a register
        for row in rows {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum += f64::from(*value) * f64::from(*value);
        }
        *lanes = sums;
    });
    lanes.into_iter().sum()
}

/// Returns what a gradient has to be multiplied by for a norm of at most `norm_max`, as `torch.nn.utils.clip_grad_norm_`
/// does it: 1 where it is small enough, and where `norm_max` is 0.
pub fn clip_factor(norm: f64, norm_max: f64) -> f32 {
    // PyTorch's guard against a norm of 0.
    let factor = norm_max / (norm + 1e-6);
    if norm_max > 0.0 && factor < 1.0 { factor as f32 } else { 1.0 }
}

/// Whether every value is a number and none infinite.
pub fn all_finite(values: &[f32]) -> bool {
    values.par_chunks(CHUNK).all(|chunk| {
        // The largest exponent marks infinities and what is no number; a maximum over a chunk is vector instructions.
        let mut largest = 0;
        vectorised!((chunk: &[f32] = chunk, largest: &mut u32 = &mut largest) {
            let mut found = 0;
            for value in chunk {
                found = found.max(value.to_bits() & 0x7f80_0000);
            }
            *largest = found;
        });
        largest < 0x7f80_0000
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_eight_lanes_in_each_piece() {
        let values: Vec<f32> = (0..2 * CHUNK + 13).map(|i| ((i * 7919) % 1013) as f32 * 1e-3 - 0.5).collect();
        let mut sum = 0.0;
        for chunk in values.chunks(CHUNK) {
            let mut lanes = [0.0f64; 8];
            for (i, value) in chunk.iter().enumerate() {
                lanes[i % 8] += f64::from(*value) * f64::from(*value);
            }
            sum += lanes.iter().sum::<f64>();
        }
        assert_eq!(global_norm(&values).to_bits(), sum.sqrt().to_bits());
    }

    #[test]
    fn the_norm_is_clipped_only_from_above() {
        assert_eq!(global_norm(&[3.0, 4.0]), 5.0);
        assert_eq!([clip_factor(5.0, 10.0), clip_factor(5.0, 0.0)], [1.0, 1.0]);
        assert!((clip_factor(5.0, 1.0) - 0.2).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_finite_is_found_wherever_it_is() {
        for count in [1, 1000, CHUNK + 3] {
            let mut values = vec![f32::MAX; count];
            assert!(all_finite(&values));
            for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                values[count - 1] = wrong;
                assert!(!all_finite(&values), "{wrong} at the end of {count}");
            }
        }
    }
}
