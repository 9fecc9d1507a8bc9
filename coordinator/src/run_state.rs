//! The coordinator's core: a pure state machine, `on(event, now) -> actions`, without I/O and without a clock.
//!
//! A generation is a fixed set of workers. Within one, a step goes: plan → every worker's vote on the reduced gradient →
//! a durable commit → apply. When a member is lost before the commit, the generation ends and the survivors are dealt
//! the same step anew; after it they simply apply. So a step happens on every worker or on none.
//!
//! Who comes later, or comes back, waits for the next commit. Then the generation ends between two steps, a member sends
//! the newcomer its state, and the next generation begins with both.
//!
//! When nobody is connected that holds the state, because the coordinator was started again or all links broke, the
//! run waits for those who had it to come back; a checkpoint is the last resort.
//!
//! `events` is the language, `gathering` the arrival of workers, `reunion` their return, `steps` a step, `disagreement` what
//! differing votes lead to, `settling` what is gathered when a generation breaks, `links` who cannot be grouped with whom,
//! `nccl` what the gradients travel over, `catch_up` how joiners are sent the state, `losses` how the worker set shrinks,
//! `milestones` the work between steps and the end.
//!
//! It is public so that the simulation of `ballast-tests` drives the very code that runs.

mod catch_up;
mod disagreement;
mod events;
mod gathering;
mod links;
mod losses;
mod milestones;
mod nccl;
mod reunion;
mod settling;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::membership::Membership;

pub use crate::membership::WorkerId;
use catch_up::Transfer;
pub use events::{Action, CoreConfig, Ending, Event, Head, Held, LeftBehind, Milestone};
use links::Links;
use milestones::Pending;
use nccl::Nccl;
pub use nccl::{NCCL_ID_BYTES, NcclAbility, NcclId};
use reunion::Reunion;
use settling::{Report, Settling};

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
    /// `next_step` cannot be computed by this generation. Why, and who goes on, is decided in a moment.
    Settling(Settling),
    /// `next_step` is being written to the ledger.
    Committing {
        gradient_hash: String,
    },
    /// Between two steps: `transfers` are under way, the group waits.
    CatchingUp {
        since: Duration,
    },
    /// Nobody computes: too few hold the state. `RunState::reunion` says who is waited for.
    Reuniting {
        since: Duration,
    },
    /// The ledger is being taken back to a checkpoint.
    RollingBack,
    /// All steps are done; the last milestones are under way.
    Closing,
    Ended,
}

/// The state of a run.
#[derive(Debug, Clone)]
pub struct RunState {
    config: CoreConfig,
    phase: Phase,
    membership: Membership,
    generation: u64,
    /// The workers of the generation, by rank, that are left of it.
    group: Vec<WorkerId>,
    /// The workers of the generation as it was formed.
    formed: Vec<WorkerId>,
    /// Who is waited for in `Phase::Reuniting`.
    reunion: Reunion,
    /// The last commit, when its workers may come back without having heard of it.
    head: Option<Head>,
    /// Which workers cannot reach each other.
    links: Links,
    /// What the gradients travel over.
    nccl: Nccl,
    /// Chain of the ledger after `next_step` steps.
    chain: String,
    /// Steps committed, hence the next one to commit.
    next_step: u64,
    /// One past the last step planned in this generation.
    planned: u64,
    /// Milestones under way, and who has not done them yet, with the parameter hashes reported so far.
    milestones: BTreeMap<(u64, Milestone), Pending>,
    /// Milestones of the present step that are done.
    done: BTreeSet<Milestone>,
    /// Requests for milestones so far.
    requests: u64,
    /// A checkpoint is to be made after the step in hand.
    checkpoint_wanted: bool,
    /// Workers whose last save failed.
    failed_writers: BTreeSet<WorkerId>,
    /// Joiners that are being sent the state; empty outside `Phase::CatchingUp`.
    transfers: BTreeMap<WorkerId, Transfer>,
    /// Transfers so far.
    transfer_count: u64,
    /// Hash of the state between these two steps, in the words of the first source.
    state_hash: Option<String>,
    interrupted: bool,
    /// Why the run is being closed although nobody asked for it.
    given_up: Option<String>,
    /// Members lost while a commit was being written.
    lost_in_commit: Vec<String>,
    /// How often in a row the votes on `next_step` differed.
    disagreements: u32,
    /// Who differed the last time.
    suspects: BTreeSet<WorkerId>,
    /// When the core last looked at the clock.
    last_tick: Duration,
    /// When the event in hand came.
    now: Duration,
}

impl RunState {
    /// Starts a run at `now`, with no workers.
    pub fn new(mut config: CoreConfig, now: Duration) -> Self {
        let left_behind = config.reunion.take();
        let done = left_behind.iter().filter(|left| left.is_saved).map(|_| Milestone::Checkpoint).collect();
        Self {
            next_step: config.first_step,
            planned: config.first_step,
            phase: match left_behind {
                Some(_) => Phase::Reuniting { since: now },
                None => Phase::Gathering { since: now },
            },
            membership: Membership::default(),
            generation: config.last_generation,
            group: Vec::new(),
            formed: Vec::new(),
            links: Links::default(),
            nccl: Nccl::default(),
            head: left_behind.as_ref().map(|left| left.head.clone()),
            reunion: left_behind.map(Reunion::after_restart).unwrap_or_default(),
            chain: config.chain.clone(),
            done,
            milestones: BTreeMap::new(),
            // Above all numbers of earlier starts, so that a late answer to one of those is known as such.
            requests: config.last_generation << 32,
            checkpoint_wanted: false,
            failed_writers: BTreeSet::new(),
            transfers: BTreeMap::new(),
            transfer_count: config.last_generation << 32,
            config,
            state_hash: None,
            interrupted: false,
            given_up: None,
            lost_in_commit: Vec::new(),
            disagreements: 0,
            suspects: BTreeSet::new(),
            last_tick: now,
            now,
        }
    }

    /// Steps committed so far, counted from the start of the run.
    pub fn next_step(&self) -> u64 {
        self.next_step
    }

    /// Chain of the ledger after so many steps.
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// Says whether all steps are done, so that what is saved now is the last.
    pub fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Ended)
    }

    /// Takes in an event and decides what is to be done.
    pub fn on(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        self.now = now;
        if self.phase == Phase::Ended {
            return actions;
        }
        if let Some(worker) = event.worker() {
            self.membership.seen(worker, now);
        }
        match event {
            Event::Joined { worker, former } => self.on_joined(worker, former, &mut actions),
            Event::Ready { worker, held } => self.on_ready(worker, held, &mut actions),
            Event::Heard { .. } => {}
            Event::Left { worker, reason } => self.lose(worker, reason, &mut actions),
            Event::Reduced { worker, generation, step, gradient_hash } => {
                self.on_reduced(worker, generation, step, gradient_hash, &mut actions);
            }
            Event::CollectiveFailed { worker, generation, step, peer_rank, peer_closed, reason } => {
                let peer = peer_rank.and_then(|rank| self.formed.get(rank as usize)).copied();
                let report = Report { peer: peer.filter(|peer| *peer != worker), peer_closed, reason };
                self.on_collective_failed(worker, (generation, step), report);
            }
            Event::Committed { step, chain } => self.on_committed(step, chain, &mut actions),
            Event::RolledBack { next_step, chain } => self.on_rolled_back(next_step, chain),
            Event::Done { worker, milestone, next_step, request, params_hash } => {
                self.on_done(worker, (milestone, next_step, request), params_hash, &mut actions);
            }
            Event::SaveFailed { worker, milestone, next_step, request } => {
                self.on_save_failed(worker, (milestone, next_step, request), &mut actions);
            }
            Event::CheckpointDue => self.checkpoint_wanted = true,
            Event::Offered { worker, transfer, state_hash } => {
                self.on_offered(worker, transfer, state_hash, &mut actions)
            }
            Event::CaughtUp { worker, transfer, state_hash } => {
                self.on_caught_up(worker, transfer, &state_hash, &mut actions);
            }
            Event::FetchFailed { worker, transfer, reason } => {
                self.on_fetch_failed(worker, transfer, &reason, &mut actions)
            }
            Event::NcclAbility { worker, ability } => self.on_nccl_ability(worker, ability),
            Event::NcclId { worker, generation, id } => self.on_nccl_id(worker, generation, id, &mut actions),
            Event::NcclUnusable { worker, generation, reason } => {
                self.on_nccl_unusable(worker, generation, reason, &mut actions);
            }
            Event::StopRequested => self.on_stop(&mut actions),
            Event::Tick => self.on_tick(now, &mut actions),
        }
        self.try_settle(&mut actions);
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
