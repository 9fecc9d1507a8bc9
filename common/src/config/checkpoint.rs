//! `[checkpoint]`: when checkpoints are written, and which are kept. One at the end and one on Ctrl-C are written always.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// When checkpoints are written, and which are kept. Where several keys say when, each of them counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// After every so many steps. 0: never.
    pub every_steps: u64,
    /// After every so many epochs. 0: never.
    pub every_epochs: u64,
    /// After so many minutes, at the end of the step in hand. 0: never.
    pub every_minutes: f64,
    /// `every_epochs` counts from this many epochs on; earlier ones write none.
    pub from_epochs: u64,
    /// How many of the newest are kept.
    pub keep_last: u32,
    /// Keeps for good the first checkpoint at or after each multiple of so many steps. 0: none.
    pub keep_every_steps: u64,
    /// Keeps for good the first checkpoint at or after the end of every so many epochs. 0: none.
    pub keep_every_epochs: u64,
    /// Whether training goes on while a checkpoint is written.
    pub background: BackgroundSave,
}

/// Whether training goes on while a checkpoint is written. It then is written from a copy, so that it is what it would
/// have been; the copy takes memory on the one worker that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackgroundSave {
    /// Where memory for the copy is free.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl CheckpointConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.within("keep_last", self.keep_last, 1.., "a whole number above 0");
        check.within("every_minutes", self.every_minutes, 0.0..=1e6, "a number of minutes, 0 or more");
    }
}
