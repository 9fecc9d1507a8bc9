//! Proves from the ledger and the schedule that every position counts once.
//!
//! The schedule is computed anew from the config and the data; nothing of it is taken from the ledger but its hash.

use std::fmt;
use std::path::{Path, PathBuf};

use ballast_common::checkpoint;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::{EpochSchedule, RunSchedule, ScheduleOptions};
use serde::Serialize;

use crate::error::RunError;
use crate::ledger::{Ledger, LedgerError, StoredCommit, chain, losses_hash};
use crate::run::{LEDGER_FILE, read_config};

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
    /// Checkpoints whose files and hashes are sound, by steps done.
    pub checkpoints: Vec<u64>,
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

/// Checks the ledger of a run folder against the schedule, and its checkpoints against the ledger.
///
/// # Errors
/// The first violation that is found, or why the run cannot be read.
pub fn verify(run_folder: &Path) -> Result<VerifyReport, VerifyError> {
    if !run_folder.join(LEDGER_FILE).exists() {
        let path = run_folder.to_owned();
        return Err(RunError::NoRun { path, missing: LEDGER_FILE }.into());
    }
    let config = read_config(run_folder)?;
    config.require_training().map_err(RunError::from)?;
    let ledger = Ledger::open(&run_folder.join(LEDGER_FILE))?;
    let dataset = Dataset::scan(&config.data)?;
    let expected = ledger.fact("fingerprint")?.unwrap_or_default();
    if expected != dataset.fingerprint {
        let roots = dataset.roots.clone();
        return Err(RunError::DataChanged { roots, found: dataset.fingerprint, expected }.into());
    }
    let options = ScheduleOptions::from(&config);
    let schedule = |epoch| EpochSchedule::compute(&dataset, &options, epoch);
    let mut audit = Audit {
        run_schedule: RunSchedule::compute(&dataset, &options, config.run.epochs),
        hashes: ledger.schedule_hashes()?,
        schedule: &schedule,
        epoch: None,
        next_step: 0,
        positions: 0,
        skipped: 0,
        chain: Vec::new(),
    };
    ledger.for_each_commit(|stored| audit.check(&stored))?;
    let checkpoints = check_checkpoints(run_folder, &ledger, audit.next_step)?;
    Ok(VerifyReport {
        run_folder: run_folder.to_owned(),
        committed_steps: audit.next_step,
        total_steps: audit.run_schedule.steps(),
        positions: audit.positions,
        complete_epochs: audit.complete_epochs(),
        skipped: audit.skipped,
        rollbacks: ledger.rollbacks()?,
        checkpoints,
    })
}

/// Goes through the commits in order, with the schedule of the epoch in hand.
struct Audit<'a> {
    run_schedule: RunSchedule,
    hashes: Vec<(u64, String)>,
    schedule: &'a dyn Fn(u64) -> EpochSchedule,
    epoch: Option<(u64, EpochSchedule)>,
    next_step: u64,
    positions: u64,
    skipped: u64,
    chain: Vec<u8>,
}

impl Audit<'_> {
    fn check(&mut self, stored: &StoredCommit) -> Result<(), VerifyError> {
        let commit = &stored.commit;
        let step = self.next_step;
        if commit.step != step {
            return violation(format!("step {step} is missing: the next commit is of step {}", commit.step));
        }
        let Some((epoch, step_in_epoch)) = self.run_schedule.locate(step) else {
            return violation(format!("step {step} is committed, the schedule ends at {}", self.run_schedule.steps()));
        };
        if commit.epoch != epoch {
            return violation(format!("step {step} belongs to epoch {epoch}, the ledger says {}", commit.epoch));
        }
        self.enter_epoch(epoch)?;
        let (_, schedule) = self.epoch.as_ref().expect("enter_epoch() sets it");
        let plan = schedule.step(step_in_epoch);
        let mut expected: Vec<_> =
            plan.slots.iter().flat_map(|slot| &slot.occurrences).map(|o| (o.position, o.sample, o.copy)).collect();
        expected.sort_unstable();
        let found: Vec<_> = commit.losses.iter().map(|row| (row.position, row.sample, row.copy)).collect();
        if let Some(index) =
            (0..expected.len().max(found.len())).find(|index| expected.get(*index) != found.get(*index))
        {
            let word = |entry: Option<&(u64, u32, u32)>| match entry {
                Some((position, sample, copy)) => format!("position {position} (sample {sample}, copy {copy})"),
                None => "nothing".to_owned(),
            };
            let (expected, found) = (word(expected.get(index)), word(found.get(index)));
            return violation(format!("step {step}: the schedule has {expected}, the ledger {found}"));
        }
        if (commit.first_position, commit.positions) != (plan.first_position, expected.len() as u64) {
            return violation(format!("step {step}: the commit's range of positions is not the schedule's"));
        }
        if losses_hash(&commit.losses) != stored.losses_hash {
            return violation(format!("step {step}: its losses were altered"));
        }
        if chain(&self.chain, commit, &stored.losses_hash) != stored.chain {
            return violation(format!("step {step}: the chain of commits is broken (an altered or replaced row)"));
        }
        self.chain.clone_from(&stored.chain);
        self.positions += expected.len() as u64;
        self.skipped += commit.losses.iter().filter(|row| row.skipped.is_some()).count() as u64;
        self.next_step += 1;
        Ok(())
    }

    fn enter_epoch(&mut self, epoch: u64) -> Result<(), VerifyError> {
        if self.epoch.as_ref().is_some_and(|(current, _)| *current == epoch) {
            return Ok(());
        }
        let schedule = (self.schedule)(epoch);
        let hash = schedule.hash();
        let recorded = self.hashes.iter().find(|(recorded, _)| *recorded == epoch).map(|(_, hash)| hash.as_str());
        if recorded != Some(hash.as_str()) {
            let recorded = recorded.unwrap_or("none");
            return violation(format!("epoch {epoch}: the schedule's hash is {hash}, the ledger has {recorded}"));
        }
        self.epoch = Some((epoch, schedule));
        Ok(())
    }

    fn complete_epochs(&self) -> u64 {
        self.run_schedule.locate(self.next_step).map_or(self.run_schedule.epochs(), |(epoch, _)| epoch)
    }
}

fn check_checkpoints(run_folder: &Path, ledger: &Ledger, committed: u64) -> Result<Vec<u64>, VerifyError> {
    let mut sound = Vec::new();
    for (next_step, relative, params_hash) in ledger.checkpoints()? {
        if next_step > committed {
            return violation(format!("{relative} is after the last committed step"));
        }
        let state = checkpoint::verify(&run_folder.join(&relative))
            .map_err(|error| VerifyError::Violation(ballast_common::error_chain(&error)))?;
        if (state.next_step, state.params_hash.as_str()) != (next_step, params_hash.as_str()) {
            return violation(format!("{relative} is not the checkpoint that the ledger names"));
        }
        sound.push(next_step);
    }
    Ok(sound)
}

fn violation<T>(what: String) -> Result<T, VerifyError> {
    Err(VerifyError::Violation(what))
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
