//! A simulated worker: what it holds, and what it is doing. Like a real one it handles messages in order, computes the next
//! planned step when none is left, and lets go of a generation's work as soon as it hears of its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::truth;
use ballast_coordinator::run_state::{Action, Event, Held, WorkerId};

/// The chain of a state that is none of the run's, or half another one's.
pub(super) const NO_CHAIN: &str = "partial";

/// What a worker is doing. Each takes time, and may be cut short.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Activity {
    Idle,
    Loading,
    /// Computes its slots of a step.
    Computing {
        generation: u64,
        step: u64,
    },
    /// Waits for the sum over all workers of the generation.
    Reducing {
        generation: u64,
        step: u64,
    },
    /// Works on a milestone.
    Milestone(Action),
    /// Fetches the state from a peer.
    Fetching(Action),
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    /// The machine that runs it; faults between two workers are faults between two machines.
    pub(super) machine: usize,
    pub(super) activity: Activity,
    /// Changes with each activity, so that the end of one that was cut short is known as such.
    pub(super) activity_number: u64,
    pub(super) inbox: VecDeque<Action>,
    pub(super) state: u64,
    /// Steps that the state has made. None: it has no state of the run yet.
    pub(super) next_step: Option<u64>,
    /// Chain of the ledger that the state is of.
    pub(super) chain: String,
    /// How often steps had been taken back when it last took part, or was welcomed for the first time.
    pub(super) history: u64,
    /// When its connection broke, if it has none.
    pub(super) away_since: Option<u64>,
    /// Whether it has begun to load, and so has something to come back with.
    pub(super) is_welcomed: bool,
    /// When the coordinator heard what it holds, over the present connection.
    pub(super) ready_since: u64,
    /// What it said last: over a new connection that is stale.
    pub(super) last_said: Option<Event>,
    pub(super) generation: u64,
    pub(super) group: Vec<WorkerId>,
    pub(super) plans: BTreeMap<u64, u64>,
    /// The vote that waits for its commit: generation, step, gradient.
    pub(super) pending: Option<(u64, u64, u64)>,
    /// The newest generation that uses NCCL, and its id once that is there.
    pub(super) nccl: Option<(u64, Option<Vec<u8>>)>,
    /// Transfers that may read its state.
    pub(super) offers: BTreeSet<u64>,
    /// Stands still until then (SIGSTOP, a machine that swaps).
    pub(super) paused_until: u64,
    /// Its votes are wrong until then.
    pub(super) corrupt_until: u64,
}

impl Worker {
    pub(super) fn new(machine: usize) -> Self {
        Self {
            machine,
            activity: Activity::Idle,
            activity_number: 0,
            inbox: VecDeque::new(),
            state: 0,
            next_step: None,
            chain: String::new(),
            history: 0,
            away_since: None,
            is_welcomed: false,
            ready_since: u64::MAX,
            last_said: None,
            generation: 0,
            group: Vec::new(),
            plans: BTreeMap::new(),
            pending: None,
            nccl: None,
            offers: BTreeSet::new(),
            paused_until: 0,
            corrupt_until: 0,
        }
    }

    /// Takes in a message. What ends the work in hand does so at once, as in a real worker's session.
    pub(super) fn receive(&mut self, message: Action) {
        let is_work = matches!(self.activity, Activity::Computing { .. } | Activity::Reducing { .. });
        let ends_work = match &message {
            Action::Abort { generation, .. } => *generation == self.generation && is_work,
            Action::Group { .. } => is_work,
            Action::Fetch { .. } => matches!(self.activity, Activity::Fetching(_)),
            _ => false,
        };
        if ends_work {
            self.begin(Activity::Idle);
        }
        self.inbox.push_back(message);
    }

    pub(super) fn begin(&mut self, activity: Activity) {
        self.activity = activity;
        self.activity_number += 1;
    }

    pub(super) fn end_generation(&mut self) {
        self.pending = None;
        self.plans.clear();
        self.group.clear();
        self.offers.clear();
    }

    /// What it says of itself when it is ready.
    pub(super) fn held(&self) -> Held {
        Held {
            next_step: self.next_step.unwrap_or(0),
            params_hash: truth::hash(self.state),
            chain: self.chain.clone(),
            pending: self.pending.map(|(_, step, gradient)| (step, truth::hash(gradient))),
        }
    }

    /// Takes the plan to compute now, unless a vote still waits for its commit.
    pub(super) fn next_plan(&mut self) -> Option<u64> {
        if self.group.is_empty() || self.pending.is_some() {
            return None;
        }
        let next_step = self.next_step?;
        let is_current = self.plans.remove(&next_step) == Some(self.generation);
        is_current.then_some(next_step)
    }
}
