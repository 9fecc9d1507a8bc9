//! What a run delivered, from its ledger alone: exposures, weights and losses, per folder, per image and over time.
//!
//! Only committed steps count: what was rolled back is not there. The pictures may be gone and the run may be going on: the
//! ledger is opened for reading, and one state of it is seen.

mod assemble;
mod intended;
mod statistics;
mod tally;

use std::path::{Path, PathBuf};

use ballast_common::dataset::Decimal;
use serde::Serialize;

use crate::error::RunError;
use crate::ledger::Ledger;
use crate::run::LEDGER_FILE;

/// What the report shows of single images.
#[derive(Debug, Clone, Copy)]
pub struct ReportOptions {
    /// How many images the lists of the highest and the most erratic losses have.
    pub top: usize,
    /// Whether every image is listed.
    pub every_image: bool,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self { top: 10, every_image: false }
    }
}

/// What a run delivered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Which run, and how far it is.
    pub run: RunFacts,
    /// All folders together.
    pub total: Totals,
    /// Every folder, in the order of their paths.
    pub folders: Vec<FolderReport>,
    /// The loss by the quarter of the timesteps.
    pub timestep_quarters: Vec<QuarterReport>,
    /// How many bands of equal width the timesteps were divided into to adjust the losses.
    pub timestep_bands: usize,
    /// How many images came up how often, fewest exposures first.
    pub exposures_per_image: Vec<ExposureCount>,
    /// Images that came up less often are in neither of the two lists that follow.
    pub ranked_from_exposures: u64,
    /// The images with the highest adjusted loss, highest first.
    pub highest_loss: Vec<ImageReport>,
    /// The images whose adjusted loss varies most, most first.
    pub most_erratic: Vec<ImageReport>,
    /// Every image, in the order of their paths, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<ImageReport>>,
    /// What a reader of the numbers has to know.
    pub notes: Vec<String>,
    /// Some of the losses, evenly spread over the uses: (step, loss).
    #[serde(skip)]
    pub scatter: Vec<(u64, f64)>,
}

/// Which run, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunFacts {
    /// The run's folder.
    pub folder: PathBuf,
    /// The run's name.
    pub id: String,
    /// Steps that count.
    pub committed_steps: u64,
    /// Steps of all epochs of the config. None in a ledger of format 1.
    pub total_steps: Option<u64>,
    /// Epochs that are covered whole.
    pub complete_epochs: u64,
    /// Epochs of the config. None in a ledger of format 1.
    pub epochs: Option<u64>,
    /// Steps that were taken back, to be computed again; they are in no number of this report.
    pub steps_taken_back: u64,
    /// Each time that steps were taken back.
    pub rollbacks: Vec<Rollback>,
}

/// Steps that were taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rollback {
    /// Steps committed before.
    pub from_step: u64,
    /// Steps committed after.
    pub to_step: u64,
}

/// What was delivered of what was intended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Exposures {
    /// Uses of images that entered the gradient.
    pub delivered: u64,
    /// Uses that the schedule has in the committed steps. None in a ledger of format 1.
    pub intended: Option<u64>,
    /// Uses whose picture could not be read: they counted with weight 0.
    pub skipped: u64,
    /// Uses whose loss is no finite number.
    pub not_finite: u64,
    /// Σ weight, as it entered the gradient: the loss scale, and whatever else the objective weighs by.
    pub weight: f64,
    /// Σ loss scale of the scheduled uses. None in a ledger of format 1.
    pub intended_weight: Option<f64>,
}

/// All folders together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Images of the run.
    pub images: u64,
    /// Images that were used at least once.
    pub images_used: u64,
    /// What was delivered.
    #[serde(flatten)]
    pub exposures: Exposures,
    /// The losses.
    pub loss: LossReport,
}

/// What a folder got.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FolderReport {
    /// Relative to the data root; `.` for the root itself.
    pub path: String,
    /// Images of the run in it.
    pub images: u64,
    /// Images that were used at least once.
    pub images_used: u64,
    /// The multiplier of its images. None where they have several.
    pub multiply: Option<Decimal>,
    /// The loss scale of its images. None where they have several.
    pub loss_scale: Option<f64>,
    /// What was delivered.
    #[serde(flatten)]
    pub exposures: Exposures,
    /// Its part of all delivered uses.
    pub share: f64,
    /// Its part of all weight. Of a negative weight negative; the sizes add up to 1.
    pub effective_share: f64,
    /// The effective share that was intended.
    pub intended_effective_share: Option<f64>,
    /// How often its images were used.
    pub exposures_per_image: Spread,
    /// The losses.
    pub loss: LossReport,
}

/// Least, mean and most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Least.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Most.
    pub max: u64,
}

/// The losses of some uses.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LossReport {
    /// Mean squared error, unweighted, over all these uses.
    pub mean: Option<f64>,
    /// The mean of the losses, each divided by the run's mean in its band of timesteps.
    pub adjusted: Option<f64>,
    /// Both in the first tenth of the committed steps.
    pub first_tenth: LossPair,
    /// Both in the last tenth.
    pub last_tenth: LossPair,
    /// The adjusted loss of the last tenth over that of the first, less 1: −0.1 is a tenth less.
    pub change: Option<f64>,
    /// The committed steps in equal parts; those without a use of these images are absent.
    pub over_time: Vec<LossPart>,
}

/// A loss as it is, and adjusted for its timesteps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LossPair {
    /// Mean squared error, unweighted.
    pub mean: Option<f64>,
    /// Divided by the run's mean in its band of timesteps.
    pub adjusted: Option<f64>,
}

/// The losses of a part of the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LossPart {
    /// First step of the part.
    pub from_step: u64,
    /// One past its last step.
    pub to_step: u64,
    /// How many losses.
    pub losses: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation. 0 of one.
    pub deviation: f64,
    /// The mean of the adjusted ones.
    pub adjusted: f64,
    /// The standard deviation of the adjusted ones. 0 of one.
    pub adjusted_deviation: f64,
}

/// The losses of a quarter of the timesteps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuarterReport {
    /// First timestep.
    pub from_timestep: u32,
    /// One past the last.
    pub to_timestep: u32,
    /// Losses that fell into it.
    pub losses: u64,
    /// What they were.
    pub loss: LossReport,
}

/// How many images came up so often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExposureCount {
    /// So often.
    pub exposures: u64,
    /// So many images.
    pub images: u64,
}

/// What an image got.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageReport {
    /// Relative to the data root.
    pub path: String,
    /// Uses that entered the gradient.
    pub delivered: u64,
    /// Uses in which it could not be read.
    pub skipped: u64,
    /// Σ weight, as it entered the gradient.
    pub weight: f64,
    /// Its mean loss.
    pub mean: Option<f64>,
    /// The standard deviation of its losses.
    pub deviation: Option<f64>,
    /// Its mean adjusted loss.
    pub adjusted: Option<f64>,
    /// The standard deviation of its adjusted losses.
    pub adjusted_deviation: Option<f64>,
    /// Its last loss.
    pub last: Option<f64>,
    /// Its last adjusted loss.
    pub last_adjusted: Option<f64>,
}

/// Reports what a run has delivered so far.
///
/// # Errors
/// When there is no ledger or it cannot be read.
pub fn report(run_folder: &Path, options: &ReportOptions) -> Result<RunReport, RunError> {
    let path = run_folder.join(LEDGER_FILE);
    if !path.exists() {
        return Err(RunError::NoRun { path: run_folder.to_owned(), missing: LEDGER_FILE });
    }
    Ok(assemble::assemble(run_folder, &Ledger::open_to_read(&path)?, options)?)
}

#[cfg(test)]
mod tests;
