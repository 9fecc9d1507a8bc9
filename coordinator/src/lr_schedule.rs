//! The learning rate as a pure function of the step.

use ballast_common::config::{LrScheduleConfig, LrScheduleKind};

/// Returns the factor that the base learning rate is multiplied with at `step` of a run of `total_steps`.
///
/// Warm-up is linear from `1 / warmup_steps` to 1. What follows decays over the remaining steps from 1 to `final_ratio`:
/// not at all, linearly, or along half a cosine (Loshchilov & Hutter, arXiv:1608.03983, eq. 5 without restarts).
pub(crate) fn lr_factor(config: &LrScheduleConfig, step: u64, total_steps: u64) -> f64 {
    if step < config.warmup_steps {
        return (step + 1) as f64 / config.warmup_steps as f64;
    }
    let decay_steps = total_steps.saturating_sub(config.warmup_steps).max(1);
    let progress = ((step - config.warmup_steps) as f64 / decay_steps as f64).min(1.0);
    let remaining = match config.kind {
        LrScheduleKind::Constant => return 1.0,
        LrScheduleKind::Linear => 1.0 - progress,
        LrScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
    };
    config.final_ratio + (1.0 - config.final_ratio) * remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(kind: LrScheduleKind, warmup_steps: u64, final_ratio: f64, steps: &[u64]) -> Vec<f64> {
        let config = LrScheduleConfig { kind, warmup_steps, final_ratio };
        steps.iter().map(|step| lr_factor(&config, *step, 12)).collect()
    }

    #[test]
    fn warm_up_ends_at_the_full_rate() {
        assert_eq!(factors(LrScheduleKind::Constant, 4, 0.0, &[0, 1, 3, 4, 11]), [0.25, 0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn decays_reach_the_final_ratio_with_the_last_step() {
        assert_eq!(factors(LrScheduleKind::Linear, 2, 0.5, &[2, 7, 12, 99]), [1.0, 0.75, 0.5, 0.5]);
        let cosine = factors(LrScheduleKind::Cosine, 2, 0.0, &[2, 7, 12]);
        assert!((cosine[0] - 1.0).abs() < 1e-12 && (cosine[1] - 0.5).abs() < 1e-12 && cosine[2].abs() < 1e-12);
    }
}
