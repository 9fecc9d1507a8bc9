//! The core's language: what it is told at the start, what happens, and what is to be done about it.

use std::collections::BTreeSet;
use std::time::Duration;

use ballast_common::config::CollectiveKind;

use super::{NcclAbility, NcclId, WorkerId};

/// What the core needs to know of the run; everything else about it is the shell's business.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// First step to compute: 0, or where the checkpoint stands.
    pub first_step: u64,
    /// One past the last step to compute.
    pub stop_step: u64,
    /// Numbers of done steps after which to save a checkpoint.
    pub checkpoint_at: BTreeSet<u64>,
    /// Numbers of done steps after which to draw samples.
    pub sample_at: BTreeSet<u64>,
    /// Workers to wait for before the first step.
    pub workers: usize,
    /// Workers to be content with once `join_timeout` is over.
    pub min_workers: usize,
    /// How long to wait for more than these.
    pub join_timeout: Duration,
    /// Silence after which a worker counts as lost.
    pub lease: Duration,
    /// Slots of a step, hence the most workers that can share one. Workers beyond it wait as spares.
    pub slots: usize,
    /// What gradients may travel over.
    pub collective: CollectiveKind,
    /// How long the run waits between two steps for joiners to be sent the state.
    pub catch_up_timeout: Duration,
    /// Steps that are planned beyond the one being computed, so that pictures are ready in time.
    pub plan_ahead: u64,
    /// Generations of earlier starts of the run: this one counts on.
    pub last_generation: u64,
    /// Chain of the ledger after `first_step` steps; empty before the first.
    pub chain: String,
    /// Most steps that were ever taken back: a worker that was away may have made so many.
    pub rolled_back_from: u64,
    /// Workers outlive their connection and may come back with the state. Without it the loss of all ends the run.
    pub may_return: bool,
    /// How long to wait for workers that hold the state before going on with those who came, or from a checkpoint.
    pub rejoin_timeout: Duration,
    /// How long to wait for `min_workers` before saving and ending.
    pub max_wait: Duration,
    /// What was left by a coordinator that was cut short; none: every worker loads the state of `first_step`.
    pub reunion: Option<LeftBehind>,
}

/// What a coordinator finds that was started again: a ledger, and workers out there that hold its state.
#[derive(Debug, Clone)]
pub struct LeftBehind {
    /// The last commit; its state is the one to go on from.
    pub head: Head,
    /// Numbers of the workers of the last generation.
    pub members: BTreeSet<WorkerId>,
    /// A checkpoint holds the very state: whoever is new can load it.
    pub is_saved: bool,
    /// All steps are done and the finished model is there: only the workers have to be told.
    pub is_complete: bool,
}

/// The last commit of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The step.
    pub step: u64,
    /// The generation that computed it.
    pub generation: u64,
    /// Hash of its reduced gradient, as in the votes.
    pub gradient_hash: String,
    /// Chain of the ledger before it; empty before the first.
    pub previous_chain: String,
}

/// What a worker that is ready holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Steps that its state has made.
    pub next_step: u64,
    /// Hash of its parameters.
    pub params_hash: String,
    /// Chain of the ledger that the state is of; empty where it is of no commit.
    pub chain: String,
    /// A vote that still waits for its commit: the step and the hash of its reduced gradient.
    pub pending: Option<(u64, String)>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields are described where they are decided, in `Action`")]
pub enum Event {
    /// A worker has connected. One that comes back names the number that it had.
    Joined { worker: WorkerId, former: Option<WorkerId> },
    /// A worker has loaded its model, or has come back with the state that it had. Who joins a run that has started holds
    /// the model's shape alone.
    Ready { worker: WorkerId, held: Held },
    /// A sign of life.
    Heard { worker: WorkerId },
    /// A worker's connection has ended.
    Left { worker: WorkerId, reason: String },
    /// A vote: the worker holds the whole step's reduced gradient.
    Reduced { worker: WorkerId, generation: u64, step: u64, gradient_hash: String },
    /// A worker could not reduce the step's gradient with its peers. `peer_closed`: the one of that rank has hung up, for a
    /// reason of its own.
    CollectiveFailed {
        worker: WorkerId,
        generation: u64,
        step: u64,
        peer_rank: Option<u32>,
        peer_closed: bool,
        reason: String,
    },
    /// The step that was to be committed is in the ledger, which has this chain by now.
    Committed { step: u64, chain: String },
    /// The ledger was taken back to a checkpoint, or to the start.
    RolledBack { next_step: u64, chain: String },
    /// A worker has done what `Action::Milestone` of this request asked for.
    Done { worker: WorkerId, milestone: Milestone, next_step: u64, request: u64, params_hash: Option<String> },
    /// A worker could not write the checkpoint of this request. It goes on without.
    SaveFailed { worker: WorkerId, milestone: Milestone, next_step: u64, request: u64 },
    /// It is time for a checkpoint, after the step in hand.
    CheckpointDue,
    /// The source of a transfer names the hash of the state that it holds ready.
    Offered { worker: WorkerId, transfer: u64, state_hash: String },
    /// The joiner of a transfer holds the state, whole, with this hash.
    CaughtUp { worker: WorkerId, transfer: u64, state_hash: String },
    /// The joiner of a transfer did not get it all from its source. It keeps what it has.
    FetchFailed { worker: WorkerId, transfer: u64, reason: String },
    /// A worker that has just joined says what it can do with NCCL.
    NcclAbility { worker: WorkerId, ability: NcclAbility },
    /// Rank 0 of a generation that uses NCCL has made its id.
    NcclId { worker: WorkerId, generation: u64, id: NcclId },
    /// Rank 0 of a generation that uses NCCL cannot make an id.
    NcclUnusable { worker: WorkerId, generation: u64, reason: String },
    /// Somebody wants the run to end early.
    StopRequested,
    /// Time has passed.
    Tick,
}

impl Event {
    /// Returns the worker that is heard by this event.
    pub(super) fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Ready { worker, .. }
            | Self::Heard { worker }
            | Self::Reduced { worker, .. }
            | Self::CollectiveFailed { worker, .. }
            | Self::Done { worker, .. }
            | Self::SaveFailed { worker, .. }
            | Self::Offered { worker, .. }
            | Self::CaughtUp { worker, .. }
            | Self::NcclAbility { worker, .. }
            | Self::NcclId { worker, .. }
            | Self::NcclUnusable { worker, .. }
            | Self::FetchFailed { worker, .. } => Some(*worker),
            Self::Joined { .. }
            | Self::Left { .. }
            | Self::Committed { .. }
            | Self::RolledBack { .. }
            | Self::CheckpointDue
            | Self::StopRequested
            | Self::Tick => None,
        }
    }
}

/// Work between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Milestone {
    /// Everything that is needed to go on.
    Checkpoint,
    /// Pictures.
    Samples,
    /// The finished model.
    Final,
}

/// What is to be done about it, in this order.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "each variant says what its fields are for")]
pub enum Action {
    /// Turns a worker away that was not taken.
    Refuse { worker: WorkerId, reason: String },
    /// Takes a worker. With `catch_up` the run has started: it loads the model's shape and is sent the state later.
    Welcome { worker: WorkerId, catch_up: bool },
    /// The gradients of the generation that comes next go over NCCL: its rank 0 makes an id.
    UseNccl { generation: u64, workers: Vec<WorkerId> },
    /// Hands the id of a generation to its members other than rank 0.
    ShareNcclId { generation: u64, id: NcclId, workers: Vec<WorkerId> },
    /// Tells the person why gradients do not go over NCCL, although somebody expects them to.
    WithoutNccl { reason: String },
    /// Sends the worker set to each of its members, by rank.
    Group { generation: u64, workers: Vec<WorkerId> },
    /// Deals a step to the workers of a generation, by rank.
    Plan { generation: u64, step: u64, workers: Vec<WorkerId> },
    /// Writes the step to the ledger, durably, then reports `Event::Committed`.
    Commit { generation: u64, step: u64, gradient_hash: String, workers: Vec<WorkerId> },
    /// Tells the workers that the step counts.
    Apply { generation: u64, step: u64, gradient_hash: String, workers: Vec<WorkerId> },
    /// Ends a generation: what it has not committed is dropped.
    Abort { generation: u64, reason: String, workers: Vec<WorkerId> },
    /// `worker` is left out of the group, because it and one of the `peers` could not reach each other, so many times in a row.
    LeaveOut { worker: WorkerId, peers: Vec<WorkerId>, attempts: u32 },
    /// Asks a worker to hold its state after `next_step` steps ready for `joiner`, and to name its hash.
    Offer { source: WorkerId, joiner: WorkerId, transfer: u64, next_step: u64 },
    /// Tells `joiner` to fetch that state from `source`. What it has already of a state of this hash it keeps.
    Fetch { joiner: WorkerId, source: WorkerId, transfer: u64, next_step: u64, state_hash: String },
    /// Asks each worker for its part of a milestone; the first of them writes. Answers carry `request`; that of a checkpoint's
    /// writer may come steps later.
    Milestone { milestone: Milestone, next_step: u64, request: u64, workers: Vec<WorkerId> },
    /// A checkpoint was due and is left out: the one of `busy_with` steps is still being written.
    CheckpointSkipped { next_step: u64, busy_with: u64 },
    /// All workers have done it.
    MilestoneDone { milestone: Milestone, next_step: u64 },
    /// The worker is out: drop its connection. One that was merely silent may join anew when it wakes up.
    Evict { worker: WorkerId, rank: Option<u32>, reason: String, may_return: bool },
    /// What these workers hold is of no use any more: they are to join anew, as new ones.
    StartOver { workers: Vec<WorkerId>, reason: String },
    /// Takes the ledger back to the newest whole checkpoint, with a record, then reports `Event::RolledBack`.
    RollBack { reason: String },
    /// Tells the person what the run waits for, and what ends the wait.
    Wait { message: String },
    /// Tells the workers that the run is over.
    Finish { workers: Vec<WorkerId>, reason: &'static str },
    /// The run has ended.
    Ended(Ending),
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// All steps are done, and what comes after them.
    Finished,
    /// It was asked to stop, and has saved its state.
    Interrupted {
        /// Steps done.
        next_step: u64,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}
