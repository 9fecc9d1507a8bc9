//! `[run]`: the run as a whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Check;

/// The run as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSettings {
    /// The seed of every random stream: schedule, noise, timesteps, crops.
    pub seed: u64,
    /// How many epochs the run has.
    pub epochs: u64,
    /// Stop, save and finish after so many steps in all. Learning-rate schedules keep their length.
    pub max_steps: Option<u64>,
    /// The name of the run's folder. None: the config file's name and the time.
    pub name: Option<String>,
    /// The folder that holds the runs.
    pub out: PathBuf,
}

impl RunSettings {
    pub(super) fn check(&self, check: &mut Check) {
        check.within(
            "seed",
            self.seed,
            ..=i64::MAX as u64,
            "a whole number from 0 to 9223372036854775807 (TOML's largest)",
        );
        check.within("epochs", self.epochs, 1..=1_000_000, "a whole number from 1 to 1000000");
        check.optional(self.max_steps, |check, steps| check.within("max_steps", steps, 1.., "a whole number above 0"));
        if let Some(name) = &self.name {
            let is_good = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
            check.that(
                "name",
                format_args!("{name:?}"),
                is_good,
                "the name of a folder, without / and no dot in front",
            );
        }
        let is_good = !self.out.as_os_str().is_empty();
        check.that("out", "empty", is_good, "the path of a folder");
    }
}
