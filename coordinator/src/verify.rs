//! Proves from the ledger and the schedule that every position counts once.
//!
//! The schedule is computed anew from the config and the data; nothing of it is taken from the ledger but its hash.

mod audit;
mod ranges;

use std::fmt;
use std::path::{Path, PathBuf};

use ballast_common::dataset::Dataset;
use ballast_common::schedule::{Roster, RunSchedule, ScheduleOptions};
use serde::Serialize;

use crate::checkpoints;
use crate::error::RunError;
use crate::ledger::{Ledger, LedgerError};
use crate::run::{LEDGER_FILE, read_config};
use audit::{Expected, violation};

/// What a sound ledger proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// The run folder.
    pub run_folder: PathBuf,
    /// Steps committed, each once and in order.
    pub committed_steps: u64,
    /// Steps of all epochs of the config.
    pub total_steps: u64,
    /// Schedule positions that these steps cover, each exactly once.
    pub positions: u64,
    /// Epochs that are covered whole.
    pub complete_epochs: u64,
    /// Pictures that were skipped because they could not be decoded.
    pub skipped: u64,
    /// Steps taken back and computed again, as (from step, to step).
    pub rollbacks: Vec<(u64, u64)>,
    /// Checkpoints of the ledger, by steps done: each is sound and belongs to these commits.
    pub checkpoints: Vec<u64>,
    /// Folders that are named like a checkpoint of these steps and that the ledger does not name.
    pub strangers: Vec<String>,
}

/// Why a run cannot be vouched for.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The run folder, its config or its data cannot be read.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The data root cannot be scanned.
    #[error(transparent)]
    Dataset(#[from] ballast_common::dataset::DatasetError),
    /// The ledger contradicts the schedule or itself.
    #[error("{0}")]
    Violation(String),
}

impl From<LedgerError> for VerifyError {
    fn from(error: LedgerError) -> Self {
        Self::Run(error.into())
    }
}

/// What is being checked, for whoever waits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress<'a> {
    /// Committed steps.
    Steps {
        /// So many of them are checked.
        done: u64,
        /// Of so many.
        of: u64,
    },
    /// A checkpoint is being read, byte for byte.
    Checkpoint {
        /// Its folder within the run folder.
        path: &'a str,
    },
}

/// Checks the ledger of a run folder against the schedule, and its checkpoints against the ledger. Changes nothing.
///
/// # Errors
/// The first violation that is found, or why the run cannot be read.
pub fn verify(run_folder: &Path) -> Result<VerifyReport, VerifyError> {
    verify_with(run_folder, &|_| {})
}

/// As [`verify`], and tells what it is doing: a long run takes seconds, large checkpoints minutes.
///
/// # Errors
/// As [`verify`].
pub fn verify_with(run_folder: &Path, progress: &(dyn Fn(Progress<'_>) + Sync)) -> Result<VerifyReport, VerifyError> {
    let ledger_path = run_folder.join(LEDGER_FILE);
    if !ledger_path.exists() {
        let path = run_folder.to_owned();
        return Err(RunError::NoRun { path, missing: LEDGER_FILE }.into());
    }
    let config = read_config(run_folder)?;
    config.require_training().map_err(RunError::from)?;
    let ledger = Ledger::open_to_read(&ledger_path)?;
    let dataset = Dataset::scan(&config.data)?;
    let expected = ledger.fact("fingerprint")?.unwrap_or_default();
    if expected != dataset.fingerprint {
        let roots = dataset.roots.clone();
        return Err(RunError::DataChanged { roots, found: dataset.fingerprint, expected }.into());
    }
    let (options, roster) = (ScheduleOptions::from(&config), Roster::of(&dataset));
    let run_schedule = RunSchedule::of(&roster, &options, config.run.epochs);
    let expected = Expected {
        run_schedule: &run_schedule,
        roster: &roster,
        options: &options,
        hashes: &ledger.schedule_hashes()?.into_iter().collect(),
        generations: &ledger.generations()?,
    };
    let committed = ledger.next_step()?;
    let totals = ranges::check_commits(&ledger_path, &expected, committed, progress)?;
    if let Some((step, table)) = ledger.stray_row(committed)? {
        return violation(format!(
            "step {step} has a row in `{table}` and is not among the {committed} committed steps"
        ));
    }
    let checkpoints = check_checkpoints(run_folder, &ledger, committed, progress)?;
    let strangers = checkpoints::strangers(run_folder, &ledger)?.into_iter().map(|(_, relative)| relative);
    Ok(VerifyReport {
        run_folder: run_folder.to_owned(),
        committed_steps: committed,
        total_steps: run_schedule.steps(),
        positions: totals.positions,
        complete_epochs: run_schedule.locate(committed).map_or(run_schedule.epochs(), |(epoch, _)| epoch),
        skipped: totals.skipped,
        rollbacks: ledger.rollbacks()?,
        checkpoints,
        strangers: strangers.collect(),
    })
}

/// Checks every checkpoint that the ledger names, oldest first, and returns their steps.
fn check_checkpoints(
    run_folder: &Path,
    ledger: &Ledger,
    committed: u64,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<u64>, VerifyError> {
    let mut sound = Vec::new();
    for (next_step, relative, params_hash) in ledger.checkpoints()? {
        if next_step > committed {
            return violation(format!("{relative} is after the last committed step"));
        }
        progress(Progress::Checkpoint { path: &relative });
        let checked = checkpoints::check(&run_folder.join(&relative), next_step, Some(&params_hash), ledger)?;
        if let Err(problem) = checked {
            return violation(format!("{relative} is damaged: {problem}"));
        }
        sound.push(next_step);
    }
    Ok(sound)
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { committed_steps, total_steps, positions, complete_epochs, .. } = self;
        writeln!(f, "{}: sound", self.run_folder.display())?;
        writeln!(
            f,
            "  {committed_steps} of {total_steps} steps committed, each once and in order, the chain is whole"
        )?;
        writeln!(
            f,
            "  {positions} schedule positions covered, each exactly once; {complete_epochs} complete epoch(s)"
        )?;
        for (from, to) in &self.rollbacks {
            writeln!(f, "  rolled back from {from} to {to} steps and computed again")?;
        }
        if self.skipped > 0 {
            writeln!(f, "  {} use(s) of pictures that could not be decoded counted with weight 0", self.skipped)?;
        }
        let checkpoints: Vec<_> = self.checkpoints.iter().map(ToString::to_string).collect();
        write!(f, "  sound checkpoints after steps: {}", checkpoints.join(", "))
    }
}
