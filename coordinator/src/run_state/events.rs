//! The core's language: what it is told at the start, what happens, and what is to be done about it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::membership::WorkerId;

/// What the core needs to know of the run; everything else about it is the shell's business.
#[derive(Debug, Clone)]
pub(crate) struct CoreConfig {
    /// First step to compute: 0, or where the checkpoint stands.
    pub(crate) first_step: u64,
    /// One past the last step to compute.
    pub(crate) stop_step: u64,
    /// Numbers of done steps after which to save (checkpoint) and to draw samples; sorted by the set.
    pub(crate) checkpoint_at: BTreeSet<u64>,
    pub(crate) sample_at: BTreeSet<u64>,
    /// Workers to wait for before the first step.
    pub(crate) workers: usize,
    /// Workers to be content with once `join_timeout` is over.
    pub(crate) min_workers: usize,
    pub(crate) join_timeout: Duration,
    /// Silence after which a worker counts as lost.
    pub(crate) lease: Duration,
    /// Steps that are planned beyond the one being computed, so that pictures are ready in time.
    pub(crate) plan_ahead: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Joined { worker: WorkerId },
    Ready { worker: WorkerId, next_step: u64, params_hash: String },
    Heard { worker: WorkerId },
    Left { worker: WorkerId, reason: String },
    Reduced { worker: WorkerId, generation: u64, step: u64, gradient_hash: String },
    CollectiveFailed { worker: WorkerId, generation: u64, step: u64, reason: String },
    Committed { step: u64 },
    Done { worker: WorkerId, milestone: Milestone, next_step: u64, params_hash: Option<String> },
    StopRequested,
    Tick,
}

/// Work between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Milestone {
    Checkpoint,
    Samples,
    Final,
}

/// What is to be done about it, in this order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    Refuse {
        worker: WorkerId,
        reason: String,
    },
    Welcome {
        worker: WorkerId,
    },
    /// Sends the worker set to each of its members, by rank.
    Group {
        generation: u64,
        workers: Vec<WorkerId>,
    },
    Plan {
        generation: u64,
        step: u64,
        workers: Vec<WorkerId>,
    },
    /// Writes the step to the ledger, durably, then reports `Event::Committed`.
    Commit {
        generation: u64,
        step: u64,
        gradient_hash: String,
        workers: Vec<WorkerId>,
    },
    Apply {
        generation: u64,
        step: u64,
        gradient_hash: String,
        workers: Vec<WorkerId>,
    },
    Abort {
        generation: u64,
        reason: String,
        workers: Vec<WorkerId>,
    },
    Milestone {
        milestone: Milestone,
        next_step: u64,
        workers: Vec<WorkerId>,
    },
    /// All workers have done it.
    MilestoneDone {
        milestone: Milestone,
        next_step: u64,
    },
    /// The worker is out: drop its connection.
    Evict {
        worker: WorkerId,
        rank: Option<u32>,
        reason: String,
    },
    Finish {
        workers: Vec<WorkerId>,
        reason: &'static str,
    },
    /// The run has ended.
    Ended(Ending),
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Finished,
    Interrupted { next_step: u64 },
    Failed { reason: String },
}
