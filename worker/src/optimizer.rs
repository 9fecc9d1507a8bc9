//! The optimizer as the config asks for it, and the clipping of the gradient by its global norm.
//!
//! Every worker moves its own copy of the parameters by the same reduced gradient, so the arithmetic has to give the same
//! bits whatever the number of threads: the one sum (the norm) is taken in fixed pieces, and in `ballast_model::adamw`
//! elements are independent of each other.

use ballast_common::config::OptimizerConfig;
use ballast_model::adamw::{AdamW, AdamWSettings};
use rayon::prelude::*;

/// Elements that one thread handles at a time; also the pieces of the norm, so changing it changes bits.
const CHUNK: usize = 1 << 16;

/// Sums that are taken side by side: enough for the widest vector registers. Fixed, so that every processor adds alike.
const LANES: usize = 8;

/// Returns the L2 norm of a gradient, in `f64` and in a fixed order.
pub(crate) fn global_norm(gradient: &[f32]) -> f64 {
    let chunks: Vec<f64> = gradient.par_chunks(CHUNK).map(sum_of_squares).collect();
    chunks.into_iter().sum::<f64>().sqrt()
}

fn sum_of_squares(chunk: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    for values in chunk.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    lanes.into_iter().sum()
}

/// Brings the gradient's norm down to `norm_max`, as `torch.nn.utils.clip_grad_norm_` does; 0 turns it off.
pub(crate) fn clip_by_norm(gradient: &mut [f32], norm: f64, norm_max: f64) {
    // PyTorch's guard against a norm of 0.
    let factor = norm_max / (norm + 1e-6);
    if norm_max > 0.0 && factor < 1.0 {
        let factor = factor as f32;
        gradient.par_chunks_mut(CHUNK).for_each(|chunk| chunk.iter_mut().for_each(|value| *value *= factor));
    }
}

/// Starts the config's optimizer for `elements` parameters.
pub(crate) fn adamw(config: &OptimizerConfig, elements: usize) -> AdamW {
    AdamW::new(settings(config), elements)
}

/// What the config tells the optimizer.
pub(crate) fn settings(config: &OptimizerConfig) -> AdamWSettings {
    let OptimizerConfig { beta1, beta2, eps, weight_decay, .. } = *config;
    AdamWSettings { beta1, beta2, eps, weight_decay }
}

#[cfg(test)]
mod tests {
    use ballast_model::adamw::Group;

    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4e9 - 0.5) * 10_f32.powi(i as i32 % 7 - 3))
            .collect()
    }

    #[test]
    fn threads_change_no_bit() {
        let count = 3 * CHUNK + 17;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut gradient = values(count);
                let norm = global_norm(&gradient);
                clip_by_norm(&mut gradient, norm, 1.0);
                let (mut params, mut optimizer) = (values(count), adamw(&OptimizerConfig::default(), count));
                optimizer.step(&mut params, &gradient, 1, &[Group { range: 0..count, lr: 0.1 }]);
                (norm.to_bits(), params, optimizer)
            })
        };
        assert!(run(1) == run(2) && run(1) == run(5));
    }

    #[test]
    fn the_norm_is_clipped_only_from_above() {
        let mut gradient = vec![3.0, 4.0];
        assert_eq!(global_norm(&gradient), 5.0);
        clip_by_norm(&mut gradient, 5.0, 10.0);
        clip_by_norm(&mut gradient, 5.0, 0.0);
        assert_eq!(gradient, [3.0, 4.0]);
        clip_by_norm(&mut gradient, 5.0, 1.0);
        assert!((global_norm(&gradient) - 1.0).abs() < 1e-6);
    }
}
