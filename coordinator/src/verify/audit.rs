//! Goes through a range of commits in order, with the schedule of the epoch in hand.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use ballast_common::schedule::{EpochSchedule, Occurrence, Roster, RunSchedule, ScheduleOptions};

use super::VerifyError;
use crate::ledger::{LossRow, StoredCommit, chain, losses_hash};

/// What all ranges are held against.
pub(super) struct Expected<'a> {
    pub(super) run_schedule: &'a RunSchedule,
    pub(super) roster: &'a Roster,
    pub(super) options: &'a ScheduleOptions,
    /// Hash of each epoch's schedule, as the ledger has it.
    pub(super) hashes: &'a BTreeMap<u64, String>,
    /// Generations that have members on record.
    pub(super) generations: &'a BTreeSet<u64>,
}

/// The audit of a range of steps.
pub(super) struct Audit<'a> {
    expected: &'a Expected<'a>,
    epoch: Option<EpochSchedule>,
    /// The step that comes next.
    next_step: u64,
    end: u64,
    /// Hash of the commit before it; empty before the first.
    chain: Vec<u8>,
    pub(super) positions: u64,
    pub(super) skipped: u64,
}

impl<'a> Audit<'a> {
    /// Begins behind a commit whose chain is given.
    pub(super) fn new(expected: &'a Expected<'a>, steps: &Range<u64>, chain: Vec<u8>) -> Self {
        Self { expected, epoch: None, next_step: steps.start, end: steps.end, chain, positions: 0, skipped: 0 }
    }

    /// Checks the next commit.
    pub(super) fn check(&mut self, stored: &StoredCommit) -> Result<(), VerifyError> {
        let (commit, step) = (&stored.commit, self.next_step);
        if commit.step != step {
            return violation(format!("step {step} is missing: the next commit is of step {}", commit.step));
        }
        let Some((epoch, step_in_epoch)) = self.expected.run_schedule.locate(step) else {
            let steps = self.expected.run_schedule.steps();
            return violation(format!("step {step} is committed, the schedule ends at {steps}"));
        };
        if commit.epoch != epoch {
            return violation(format!("step {step} belongs to epoch {epoch}, the ledger says {}", commit.epoch));
        }
        let plan = self.enter_epoch(epoch)?.step(step_in_epoch);
        let scheduled = || plan.slots.iter().flat_map(|slot| &slot.occurrences);
        check_positions(step, scheduled(), &commit.losses)?;
        let count = commit.losses.len() as u64;
        if (commit.first_position, commit.positions) != (plan.first_position, count) {
            return violation(format!("step {step}: the commit's range of positions is not the schedule's"));
        }
        if losses_hash(&commit.losses) != stored.losses_hash {
            return violation(format!("step {step}: its losses were altered"));
        }
        if chain(&self.chain, commit, &stored.losses_hash) != stored.chain {
            return violation(format!("step {step}: the chain of commits is broken (an altered or replaced row)"));
        }
        if !self.expected.generations.contains(&commit.generation) {
            return violation(format!("step {step}: generation {} has no members on record", commit.generation));
        }
        self.chain.clone_from(&stored.chain);
        self.positions += count;
        self.skipped += commit.losses.iter().filter(|row| row.skipped.is_some()).count() as u64;
        self.next_step += 1;
        Ok(())
    }

    /// Checks that nothing is missing at the end.
    pub(super) fn finish(&self) -> Result<(), VerifyError> {
        if self.next_step < self.end {
            return violation(format!("step {} is missing", self.next_step));
        }
        Ok(())
    }

    fn enter_epoch(&mut self, epoch: u64) -> Result<&EpochSchedule, VerifyError> {
        if self.epoch.as_ref().is_none_or(|schedule| schedule.epoch() != epoch) {
            self.epoch = None; // both would take twice the memory
            let schedule = EpochSchedule::of(self.expected.roster, self.expected.options, epoch);
            let (hash, recorded) = (schedule.hash(), self.expected.hashes.get(&epoch));
            if recorded != Some(&hash) {
                let recorded = recorded.map_or("none", String::as_str);
                return violation(format!("epoch {epoch}: the schedule's hash is {hash}, the ledger has {recorded}"));
            }
            self.epoch = Some(schedule);
        }
        Ok(self.epoch.as_ref().expect("set above"))
    }
}

/// Checks that a step's losses are those of its scheduled positions, each once.
fn check_positions<'a>(
    step: u64,
    scheduled: impl Iterator<Item = &'a Occurrence>,
    losses: &[LossRow],
) -> Result<(), VerifyError> {
    let mut found = losses.iter().map(|row| (row.position, row.sample, row.copy));
    let mut scheduled = scheduled.map(|occurrence| (occurrence.position, occurrence.sample, occurrence.copy));
    loop {
        let (expected, found) = (scheduled.next(), found.next());
        if expected != found {
            let word = |entry: Option<(u64, u32, u32)>| match entry {
                Some((position, sample, copy)) => format!("position {position} (sample {sample}, copy {copy})"),
                None => "nothing".to_owned(),
            };
            return violation(format!("step {step}: the schedule has {}, the ledger {}", word(expected), word(found)));
        }
        if expected.is_none() {
            return Ok(());
        }
    }
}

pub(super) fn violation<T>(what: String) -> Result<T, VerifyError> {
    Err(VerifyError::Violation(what))
}
