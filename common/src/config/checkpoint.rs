//! `[checkpoint]`: when checkpoints are written. One at the end and one on Ctrl-C are written always.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// When checkpoints are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// After every so many steps. 0: never.
    pub every_steps: u64,
    /// After every so many epochs. 0: never.
    pub every_epochs: u64,
    /// How many of the newest are kept.
    pub keep_last: u32,
}

impl CheckpointConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.within("keep_last", self.keep_last, 1.., "a whole number above 0");
    }
}
