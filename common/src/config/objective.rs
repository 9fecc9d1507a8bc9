//! `[objective]`: the loss.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// The loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// The γ of min-SNR weighting (arXiv:2303.09556). None: every timestep weighs the same.
    pub min_snr_gamma: Option<f64>,
    /// The size of a random offset per channel that is added to the noise. 0: none.
    pub offset_noise: f64,
    /// The first timestep that is drawn.
    pub timestep_start: u32,
    /// The first timestep that is no longer drawn. None: all up to the end.
    pub timestep_end: Option<u32>,
}

impl ObjectiveConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.optional(self.min_snr_gamma, |check, gamma| {
            check.within("min_snr_gamma", gamma, f64::MIN_POSITIVE..f64::INFINITY, "a number above 0");
        });
        check.within("offset_noise", self.offset_noise, 0.0..=1.0, "a number from 0 to 1");
        check.within("timestep_start", self.timestep_start, 0..1000, "a whole number from 0 to 999");
        check.optional(self.timestep_end, |check, end| {
            let first = self.timestep_start.saturating_add(1);
            check.within("timestep_end", end, first..=1000, "a whole number above timestep_start, up to 1000");
        });
    }
}
