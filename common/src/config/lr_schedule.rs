//! `[lr_schedule]`: the learning rate over time. Its length is the number of steps in all the config's epochs.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// The learning rate over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LrScheduleConfig {
    /// The shape after the warm-up.
    pub kind: LrScheduleKind,
    /// Steps in which the rate climbs from 0 in a straight line.
    pub warmup_steps: u64,
    /// The rate at the end, as a fraction of the full one.
    pub final_ratio: f64,
}

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduleKind {
    /// Stays.
    Constant,
    /// Falls in a straight line to the final ratio.
    Linear,
    /// Falls along half a cosine to the final ratio.
    Cosine,
}

impl LrScheduleConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.within("final_ratio", self.final_ratio, 0.0..=1.0, "a number from 0 to 1");
    }
}
