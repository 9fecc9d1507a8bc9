//! The run's config: one typed tree, read from TOML, the environment and the command line.
//!
//! Two stages. `raw` keeps each value as it was written together with where it was written, so that every
//! complaint can name file and line. [`RunConfig`] is the second: complete, checked, paths absolute. The rest of ballast
//! sees only the second.
//!
//! Later wins: defaults, the file, `BALLAST_SECTION__KEY` variables (two underscores between section and key, as in
//! `BALLAST_OPTIMIZER__LR=2e-6`), then `--set optimizer.lr=2e-6` and the command line's own flags. On an optional key the
//! word `none` takes a value of an earlier layer away.

mod check;
mod checkpoint;
mod cluster;
mod data;
mod data_root;
mod defaults;
mod duration;
mod error;
mod everydream2;
mod keys;
mod lr_schedule;
mod model;
mod objective;
mod optimizer;
mod precision;
mod raw;
mod run;
mod sample;
mod step;
mod telemetry;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use checkpoint::{BackgroundSave, CheckpointConfig};
pub use cluster::{ClusterConfig, CollectiveKind, DeviceKind, Reduction};
pub use data::{DataConfig, Remainder};
pub use data_root::DataRoot;
pub use error::{ConfigError, Problem};
pub use lr_schedule::{LrScheduleConfig, LrScheduleKind};
pub use model::ModelConfig;
pub use objective::ObjectiveConfig;
pub use optimizer::{OptimizerConfig, OptimizerKind};
pub use precision::{ComputePrecision, PrecisionConfig, SavePrecision};
pub use run::RunSettings;
pub use sample::{SampleConfig, SamplerName};
pub use step::StepConfig;
pub use telemetry::TelemetryConfig;

pub(crate) use keys::nearest;

use check::Check;
use raw::RawConfig;

/// Everything a run is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// The run as a whole.
    pub run: RunSettings,
    /// The images and how they are prepared.
    pub data: DataConfig,
    /// The model and which of its parts are trained.
    pub model: ModelConfig,
    /// The shape of an optimizer step.
    pub step: StepConfig,
    /// The loss.
    pub objective: ObjectiveConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub lr_schedule: LrScheduleConfig,
    /// Number formats.
    pub precision: PrecisionConfig,
    /// When checkpoints are written.
    pub checkpoint: CheckpointConfig,
    /// Pictures made during the run.
    pub sample: SampleConfig,
    /// Workers and how they are watched.
    pub cluster: ClusterConfig,
    /// Where traces and metrics go.
    pub telemetry: TelemetryConfig,
}

impl RunConfig {
    /// Reads the config: defaults, then the file, then the environment, then the overrides.
    ///
    /// `overrides` are `("optimizer.lr", "1e-6")` pairs from `--set` and from flags, in the order given. `environment` is
    /// `std::env::vars()`; variables without the `BALLAST_` prefix are left alone. Relative paths in the file are relative to
    /// the file's folder, all others to the current directory.
    ///
    /// # Errors
    /// All problems that were found, not only the first.
    pub fn load(
        path: Option<&Path>,
        overrides: &[(String, String)],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Self::load_with_notes(path, overrides, environment).map(|(config, _)| config)
    }

    /// Reads the config as [`RunConfig::load`] does, and returns what should be known of its translation beside it: the keys of
    /// an EveryDream2 `train.json` that have no equal here, or mean something else.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn load_with_notes(
        path: Option<&Path>,
        overrides: &[(String, String)],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<String>), ConfigError> {
        let mut raw = RawConfig::default();
        if let Some(path) = path {
            raw.add_file(path);
        }
        raw.add_environment(environment);
        raw.add_overrides(overrides);
        let notes = raw.take_notes();
        Ok((Self::resolve(raw)?, notes))
    }

    /// Reads what [`RunConfig::to_toml`] wrote, e.g. from the wire or from a run folder.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut raw = RawConfig::default();
        raw.add_text(text, "config.toml", None);
        Self::resolve(raw)
    }

    /// Writes the complete config, defaults included. Reading it back gives an equal one.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of the config has a TOML form")
    }

    /// Checks that the keys are there that training cannot do without.
    ///
    /// # Errors
    /// Names every missing key.
    pub fn require_training(&self) -> Result<(), ConfigError> {
        let required = [("data.root", self.data.root.is_none()), ("model.path", self.model.path.is_none())];
        let missing = required.iter().filter(|(_, is_missing)| *is_missing).map(|(key, _)| Problem::missing(key));
        ConfigError::from_problems(missing.collect())
    }

    /// Returns the size of the pictures made during the run: `[sample]` width and height, or the training resolution.
    pub fn sample_size(&self) -> (u32, u32) {
        let side = self.data.resolution / 64 * 64;
        (self.sample.width.unwrap_or(side), self.sample.height.unwrap_or(side))
    }

    fn resolve(raw: RawConfig) -> Result<Self, ConfigError> {
        let config: RunConfig = raw.table().try_into().expect("RawConfig tried every value against its type");
        let mut check = Check::new(raw);
        check.section("run", |check| config.run.check(check));
        check.section("data", |check| config.data.check(check));
        check.section("model", |check| config.model.check(check));
        check.section("step", |check| config.step.check(check));
        check.section("objective", |check| config.objective.check(check));
        check.section("optimizer", |check| config.optimizer.check(check));
        check.section("lr_schedule", |check| config.lr_schedule.check(check));
        check.section("checkpoint", |check| config.checkpoint.check(check));
        check.section("sample", |check| config.sample.check(check));
        check.section("cluster", |check| config.cluster.check(check));
        check.section("telemetry", |check| config.telemetry.check(check));
        ConfigError::from_problems(check.into_problems())?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests;
