//! The optimizer as the config asks for it, and the clipping of the gradient by its global norm.
//!
//! Both are `ballast_model`'s: the gradient is multiplied by the factor that brings its norm down while the optimizer reads it.

use ballast_common::config::OptimizerConfig;
use ballast_model::adamw::{AdamW, AdamWSettings};
pub(crate) use ballast_model::norm::{all_finite, clip_factor, global_norm};

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
    use ballast_model::adamw::{Group, Scaled};

    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) as f32 / 4e9 - 0.5) * 10_f32.powi(i as i32 % 7 - 3))
            .collect()
    }

    #[test]
    fn threads_change_no_bit() {
        let count = (3 << 16) + 17;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let gradient = values(count);
                let norm = global_norm(&gradient);
                let scaled = Scaled { gradient: &gradient, factor: clip_factor(norm, 1.0) };
                let (mut params, mut optimizer) = (values(count), adamw(&OptimizerConfig::default(), count));
                optimizer.step_part_scaled(0, &mut params, scaled, 1, &[Group { range: 0..count, lr: 0.1 }]);
                (norm.to_bits(), params, optimizer)
            })
        };
        assert!(run(1) == run(2) && run(1) == run(5));
    }
}
