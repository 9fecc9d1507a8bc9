//! The coordinator's core: a pure state machine, `on(event, now) -> actions`, without I/O and without a clock.
//!
//! A generation is a fixed set of workers. Within one, a step goes: plan → every worker's vote on the reduced gradient →
//! a durable commit → apply. When a member is lost before the commit, the generation ends and the survivors are dealt
//! the same step anew; after it they simply apply. So a step happens on every worker or on none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::membership::{Membership, WorkerId, WorkerState};

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

#[derive(Debug, Clone, Default, PartialEq)]
struct Pending {
    waiting: BTreeSet<WorkerId>,
    params_hash: Option<String>,
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

    fn on_joined(&mut self, worker: WorkerId, now: Duration, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::Gathering { .. }) {
            let reason = "the run has started; this version takes no workers into a running run".to_owned();
            actions.push(Action::Refuse { worker, reason });
        } else if self.membership.len() >= self.config.workers {
            let reason = format!("the run waits for {} worker(s) and has them", self.config.workers);
            actions.push(Action::Refuse { worker, reason });
        } else {
            self.membership.join(worker, now);
            actions.push(Action::Welcome { worker });
        }
    }

    fn on_ready(&mut self, worker: WorkerId, next_step: u64, hash: String, now: Duration, actions: &mut Vec<Action>) {
        if self.membership.get(worker).is_none() {
            return;
        }
        if next_step != self.next_step {
            let reason = format!("worker {worker} is ready for step {next_step}, the run stands at {}", self.next_step);
            self.evict(worker, reason, actions);
            return;
        }
        let differs = self.membership.ready_workers().into_iter().find(|other| {
            let state = &self.membership.get(*other).expect("listed as a member").state;
            *state != WorkerState::Ready { params_hash: hash.clone() }
        });
        if let Some(other) = differs {
            let reason = format!(
                "workers {other} and {worker} loaded different parameters: is it the same model folder on both?"
            );
            self.end(Ending::Failed { reason }, actions);
            return;
        }
        self.membership.ready(worker, hash);
        self.try_start(now, actions);
    }

    /// Starts the first generation when enough workers are ready.
    fn try_start(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Phase::Gathering { since } = self.phase else { return };
        let ready = self.membership.ready_workers();
        let timed_out = now.saturating_sub(since) >= self.config.join_timeout;
        if ready.len() >= self.config.workers || (timed_out && ready.len() >= self.config.min_workers.max(1)) {
            for worker in self.membership.all() {
                if !ready.contains(&worker) {
                    self.evict(worker, "it was not ready in time".to_owned(), actions);
                }
            }
            self.form_group(ready, actions);
            self.start_milestones(self.next_step, actions);
            self.advance(actions);
        } else if timed_out && self.membership.len() < self.config.min_workers.max(1) {
            let reason = format!(
                "{} of {} worker(s) joined within {} s",
                self.membership.len(),
                self.config.min_workers.max(1),
                self.config.join_timeout.as_secs_f64()
            );
            self.end(Ending::Failed { reason }, actions);
        }
    }

    fn form_group(&mut self, workers: Vec<WorkerId>, actions: &mut Vec<Action>) {
        self.generation += 1;
        self.group = workers;
        self.planned = self.next_step;
        actions.push(Action::Group { generation: self.generation, workers: self.group.clone() });
    }

    /// Goes on with the next step, or closes the run when all are done.
    fn advance(&mut self, actions: &mut Vec<Action>) {
        if self.next_step < self.config.stop_step {
            self.phase = Phase::Stepping { votes: BTreeMap::new() };
            let horizon = (self.next_step + 1 + self.config.plan_ahead).min(self.config.stop_step);
            for step in self.planned.max(self.next_step)..horizon {
                actions.push(Action::Plan { generation: self.generation, step, workers: self.group.clone() });
            }
            self.planned = self.planned.max(horizon);
            return;
        }
        if self.phase != Phase::Closing {
            self.phase = Phase::Closing;
            if self.planned > self.next_step {
                let reason = "the run is stopping".to_owned();
                actions.push(Action::Abort { generation: self.generation, reason, workers: self.group.clone() });
                self.planned = self.next_step;
            }
            self.start_milestone(Milestone::Checkpoint, actions);
            if !self.interrupted {
                self.start_milestone(Milestone::Samples, actions);
                self.start_milestone(Milestone::Final, actions);
            }
        }
        self.try_finish(actions);
    }

    /// Starts what is due when `done` steps are done and more are to come.
    fn start_milestones(&mut self, done: u64, actions: &mut Vec<Action>) {
        if done >= self.config.stop_step {
            return; // closing does it
        }
        if self.config.checkpoint_at.contains(&done) && done > self.config.first_step {
            self.start_milestone(Milestone::Checkpoint, actions);
        }
        if self.config.sample_at.contains(&done) {
            self.start_milestone(Milestone::Samples, actions);
        }
    }

    fn start_milestone(&mut self, milestone: Milestone, actions: &mut Vec<Action>) {
        let key = (self.next_step, milestone);
        if self.milestones.contains_key(&key) {
            return;
        }
        let pending = Pending { waiting: self.group.iter().copied().collect(), params_hash: None };
        self.milestones.insert(key, pending);
        actions.push(Action::Milestone { milestone, next_step: self.next_step, workers: self.group.clone() });
    }

    fn try_finish(&mut self, actions: &mut Vec<Action>) {
        if self.phase == Phase::Closing && self.milestones.is_empty() {
            let ending =
                if self.interrupted { Ending::Interrupted { next_step: self.next_step } } else { Ending::Finished };
            actions.push(Action::Finish { workers: self.membership.all(), reason: "the run is over" });
            self.end(ending, actions);
        }
    }

    fn on_reduced(&mut self, worker: WorkerId, generation: u64, step: u64, hash: String, actions: &mut Vec<Action>) {
        let current = generation == self.generation && step == self.next_step && self.group.contains(&worker);
        let Phase::Stepping { votes } = &mut self.phase else { return };
        if !current {
            return; // a stale vote: its generation has ended
        }
        votes.insert(worker, hash);
        if votes.len() < self.group.len() {
            return;
        }
        let gradient_hash = votes.values().next().expect("a group has members").clone();
        let dissenters: Vec<_> = votes.iter().filter(|(_, hash)| **hash != gradient_hash).map(|(id, _)| *id).collect();
        if dissenters.is_empty() {
            self.disagreements = 0;
            self.phase = Phase::Committing { gradient_hash: gradient_hash.clone() };
            actions.push(Action::Commit { generation, step, gradient_hash, workers: self.group.clone() });
            return;
        }
        self.disagreements += 1;
        let reason = format!(
            "the reduced gradients of step {step} differ: workers {dissenters:?} against worker {}",
            self.group[0]
        );
        if self.disagreements > 1 {
            self.end(Ending::Failed { reason: format!("{reason}, twice in a row") }, actions);
        } else {
            self.regroup(&reason, actions);
        }
    }

    fn on_committed(&mut self, step: u64, actions: &mut Vec<Action>) {
        let Phase::Committing { gradient_hash } = &self.phase else { return };
        assert_eq!(step, self.next_step, "one step is committed at a time");
        let gradient_hash = gradient_hash.clone();
        let workers = self.group.clone();
        actions.push(Action::Apply { generation: self.generation, step, gradient_hash, workers });
        self.next_step += 1;
        if self.interrupted {
            self.config.stop_step = self.next_step;
        }
        let lost = std::mem::take(&mut self.lost_in_commit);
        if lost.is_empty() {
            self.start_milestones(self.next_step, actions);
            self.advance(actions);
        } else if self.group.is_empty() {
            self.fail_without_workers(&lost.join("; "), actions);
        } else {
            self.form_group_of_survivors(&lost.join("; "), actions);
            self.start_milestones(self.next_step, actions);
            self.advance(actions);
        }
    }

    fn on_done(
        &mut self,
        worker: WorkerId,
        milestone: Milestone,
        next_step: u64,
        params_hash: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let Some(pending) = self.milestones.get_mut(&(next_step, milestone)) else { return };
        pending.waiting.remove(&worker);
        if let Some(hash) = params_hash {
            let known = pending.params_hash.get_or_insert_with(|| hash.clone());
            if *known != hash {
                let reason = format!("after {next_step} steps worker {worker} holds other parameters than its peers");
                self.end(Ending::Failed { reason }, actions);
                return;
            }
        }
        if pending.waiting.is_empty() {
            self.milestones.remove(&(next_step, milestone));
            actions.push(Action::MilestoneDone { milestone, next_step });
        }
        self.try_finish(actions);
    }

    fn on_stop(&mut self, actions: &mut Vec<Action>) {
        if self.interrupted {
            return;
        }
        match self.phase {
            // Nothing was computed: there is nothing to save.
            Phase::Gathering { .. } => {
                actions.push(Action::Finish { workers: self.membership.all(), reason: "the run was interrupted" });
                self.end(Ending::Interrupted { next_step: self.next_step }, actions);
            }
            // Finish the step in hand, then close.
            Phase::Stepping { .. } | Phase::Committing { .. } => {
                self.interrupted = true;
                self.config.stop_step = self.next_step + 1;
            }
            // It is being closed anyway: let it finish.
            Phase::Closing | Phase::Ended => {}
        }
    }

    fn on_tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for worker in self.membership.expired(now, self.config.lease) {
            let reason = format!("silent for more than {} s", self.config.lease.as_secs_f64());
            self.lose(worker, reason, actions);
        }
        self.try_start(now, actions);
    }

    fn evict(&mut self, worker: WorkerId, reason: String, actions: &mut Vec<Action>) {
        let rank = self.group.iter().position(|member| *member == worker).map(|rank| rank as u32);
        self.membership.remove(worker);
        actions.push(Action::Evict { worker, rank, reason });
    }

    /// A worker is gone: its slots go to the survivors.
    fn lose(&mut self, worker: WorkerId, reason: String, actions: &mut Vec<Action>) {
        if self.phase == Phase::Ended || self.membership.get(worker).is_none() {
            return;
        }
        self.evict(worker, reason.clone(), actions);
        if !self.group.contains(&worker) {
            return;
        }
        self.group.retain(|member| *member != worker);
        let reason = format!("worker {worker} was lost: {reason}");
        match self.phase {
            // The ledger decides: the survivors apply what it holds, then regroup.
            Phase::Committing { .. } => self.lost_in_commit.push(reason),
            Phase::Stepping { .. } | Phase::Closing => self.regroup(&reason, actions),
            Phase::Gathering { .. } | Phase::Ended => {}
        }
    }

    /// Ends the generation and deals the step in hand anew to the workers of the group that are left.
    fn regroup(&mut self, reason: &str, actions: &mut Vec<Action>) {
        if self.group.is_empty() {
            self.fail_without_workers(reason, actions);
            return;
        }
        self.form_group_of_survivors(reason, actions);
        if self.phase == Phase::Closing {
            self.try_finish(actions);
        } else {
            self.advance(actions);
        }
    }

    fn form_group_of_survivors(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let workers = std::mem::take(&mut self.group);
        actions.push(Action::Abort {
            generation: self.generation,
            reason: reason.to_owned(),
            workers: workers.clone(),
        });
        self.form_group(workers, actions);
        self.repeat_milestones(actions);
    }

    /// Asks the new group for the milestones of the present step again, and forgets those of earlier ones: the
    /// parameters they needed are gone.
    fn repeat_milestones(&mut self, actions: &mut Vec<Action>) {
        let pending = std::mem::take(&mut self.milestones);
        for (next_step, milestone) in pending.into_keys() {
            if next_step == self.next_step {
                self.start_milestone(milestone, actions);
            }
        }
    }

    fn fail_without_workers(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let reason = format!("no worker is left after {} steps ({reason})", self.next_step);
        self.end(Ending::Failed { reason }, actions);
    }

    fn end(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        self.phase = Phase::Ended;
        actions.push(Action::Ended(ending));
    }
}

#[cfg(test)]
#[path = "run_state_tests.rs"]
mod tests;
