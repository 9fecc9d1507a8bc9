//! The coordinator's core: a pure state machine, `on(event, now) -> actions`, without I/O and without a clock.
//!
//! A generation is a fixed set of workers. Within one, a step goes: plan → every worker's vote on the reduced gradient →
//! a durable commit → apply. When a member is lost before the commit, the generation ends and the survivors are dealt
//! the same step anew; after it they simply apply. So a step happens on every worker or on none.
//!
//! `events` is the language, `gathering` the start, `steps` a step, `losses` a change of the worker set, `milestones` the
//! work between steps and the end.

mod events;
mod gathering;
mod losses;
mod milestones;
mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::membership::{Membership, WorkerId};

pub(crate) use events::{Action, CoreConfig, Ending, Event, Milestone};
use milestones::Pending;

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    /// Waiting for enough workers.
    Gathering {
        since: Duration,
    },
    /// Computing `next_step`; `votes` are the hashes of those who hold its reduced gradient.
    Stepping {
        votes: BTreeMap<WorkerId, String>,
    },
    /// `next_step` is being written to the ledger.
    Committing {
        gradient_hash: String,
    },
    /// All steps are done; the last milestones are under way.
    Closing,
    Ended,
}

/// The state of a run.
#[derive(Debug, Clone)]
pub(crate) struct RunState {
    config: CoreConfig,
    phase: Phase,
    membership: Membership,
    generation: u64,
    /// The workers of the generation, by rank.
    group: Vec<WorkerId>,
    /// Steps committed, hence the next one to commit.
    next_step: u64,
    /// One past the last step planned in this generation.
    planned: u64,
    /// Milestones under way, and who has not done them yet, with the parameter hashes reported so far.
    milestones: BTreeMap<(u64, Milestone), Pending>,
    interrupted: bool,
    /// Members lost while a commit was being written.
    lost_in_commit: Vec<String>,
    /// How often in a row the votes on `next_step` differed.
    disagreements: u32,
}

impl RunState {
    /// Starts a run at `now`, with no workers.
    pub(crate) fn new(config: CoreConfig, now: Duration) -> Self {
        Self {
            next_step: config.first_step,
            planned: config.first_step,
            config,
            phase: Phase::Gathering { since: now },
            membership: Membership::default(),
            generation: 0,
            group: Vec::new(),
            milestones: BTreeMap::new(),
            interrupted: false,
            lost_in_commit: Vec::new(),
            disagreements: 0,
        }
    }

    /// Steps committed so far, counted from the start of the run.
    pub(crate) fn next_step(&self) -> u64 {
        self.next_step
    }

    /// Takes in an event and decides what is to be done.
    pub(crate) fn on(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Ended {
            return actions;
        }
        match event {
            Event::Joined { worker } => self.on_joined(worker, now, &mut actions),
            Event::Ready { worker, next_step, params_hash } => {
                self.membership.seen(worker, now);
                self.on_ready(worker, next_step, params_hash, now, &mut actions);
            }
            Event::Heard { worker } => {
                self.membership.seen(worker, now);
            }
            Event::Left { worker, reason } => self.lose(worker, reason, &mut actions),
            Event::Reduced { worker, generation, step, gradient_hash } => {
                self.membership.seen(worker, now);
                self.on_reduced(worker, generation, step, gradient_hash, &mut actions);
            }
            Event::CollectiveFailed { worker, generation, step, reason } => {
                self.membership.seen(worker, now);
                if generation == self.generation
                    && step == self.next_step
                    && matches!(self.phase, Phase::Stepping { .. })
                {
                    let reason = format!("the collective failed on worker {worker}: {reason}");
                    self.regroup(&reason, &mut actions);
                }
            }
            Event::Committed { step } => self.on_committed(step, &mut actions),
            Event::Done { worker, milestone, next_step, params_hash } => {
                self.membership.seen(worker, now);
                self.on_done(worker, milestone, next_step, params_hash, &mut actions);
            }
            Event::StopRequested => self.on_stop(&mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
        }
        actions
    }

    fn end(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        actions.push(Action::Ended(ending));
    }
}

#[cfg(test)]
#[path = "run_state_tests.rs"]
mod tests;
