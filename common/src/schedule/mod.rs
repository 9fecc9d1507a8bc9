//! The schedule: which images are trained, how often, in which order and in which company, decided before an epoch starts.
//!
//! A pure function of dataset, options and epoch. It goes in stages, a file each: `counts` says how often each image is used
//! this epoch, `order` brings the uses into a random order within their bucket, `apart` keeps copies of one image out of the
//! same step, and [`EpochSchedule`] gives out the result step by step.

mod apart;
mod arrangement;
mod bins;
mod bits;
mod counts;
mod deck;
mod doubles;
mod epoch;
mod goal;
mod ids;
mod numbers;
mod order;
mod places;
mod report;
mod roster;
mod run;
mod threads;
mod write;

pub use epoch::{EpochSchedule, Occurrence, SlotPlan, SlotRef, StepPlan};
pub use goal::{BalanceReport, BalanceRow, BeforeAfter, EpochSize, Goal, GoalError, Proposal, Weigh};
pub use report::{
    Advice, AdviceKind, BucketReport, Changes, DatasetSummary, DuplicateReport, EpochReport, Epochs, FolderReport,
    PlanReport, Planned, RunReport, SampleReport, TextOptions,
};
pub use roster::{Roster, RosterBuilder, RosterError, RosterSample};
pub use run::RunSchedule;

use crate::config::{Remainder, RunConfig};

/// Everything beside the dataset and the epoch's number that the schedule depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScheduleOptions {
    /// The run's seed.
    pub seed: u64,
    /// Occurrences in a full micro-batch.
    pub micro_batch_size: u32,
    /// Micro-batches in a full step.
    pub slots: u32,
    /// How the images are chosen that the fraction of a multiplier asks for.
    pub remainder: Remainder,
}

impl From<&RunConfig> for ScheduleOptions {
    fn from(config: &RunConfig) -> Self {
        Self {
            seed: config.run.seed,
            micro_batch_size: config.step.micro_batch_size,
            slots: config.step.slots,
            remainder: config.data.remainder,
        }
    }
}

#[cfg(test)]
mod tests;
