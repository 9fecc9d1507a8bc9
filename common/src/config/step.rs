//! `[step]`: the shape of an optimizer step. How many workers share it is not said here: that changes only the speed.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// The shape of an optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StepConfig {
    /// Occurrences that go through the model in one forward pass.
    pub micro_batch_size: u32,
    /// Micro-batches in a step, whoever computes them.
    pub slots: u32,
}

impl StepConfig {
    /// Returns how many occurrences a full step has: what every step's gradient is divided by.
    pub fn global_batch_size(&self) -> u64 {
        u64::from(self.micro_batch_size) * u64::from(self.slots)
    }

    pub(super) fn check(&self, check: &mut Check) {
        check.within("micro_batch_size", self.micro_batch_size, 1..=4096, "a whole number from 1 to 4096");
        check.within("slots", self.slots, 1..=4096, "a whole number from 1 to 4096");
    }
}
