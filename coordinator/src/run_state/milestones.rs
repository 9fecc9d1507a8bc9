//! Work between steps: who was asked for it, who has done it, and the end of the run when nothing is left of it.
//!
//! Steps do not wait for it. A checkpoint is written from a copy while the run goes on, so its answer comes steps later; as
//! long as its writer lives, what happens to the others does not touch it.

use std::collections::BTreeSet;

use super::{Action, Ending, Milestone, Phase, RunState, WorkerId};

/// A milestone that is under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pending {
    /// Number of the request; an answer to an earlier one is about files that a lost worker may not have finished.
    request: u64,
    /// Who writes, from a copy of its own.
    writer: WorkerId,
    waiting: BTreeSet<WorkerId>,
    params_hash: Option<String>,
}

impl RunState {
    /// Starts what is due when `done` steps are done and more are to come.
    pub(super) fn start_milestones(&mut self, done: u64, actions: &mut Vec<Action>) {
        if done >= self.config.stop_step {
            return; // closing does it
        }
        let is_due = self.config.checkpoint_at.contains(&done) || self.checkpoint_wanted;
        if is_due && done > self.config.first_step {
            self.checkpoint_wanted = false;
            self.start_checkpoint(actions);
        }
        if self.config.sample_at.contains(&done) {
            self.start_milestone(Milestone::Samples, actions);
        }
    }

    /// Starts a checkpoint, unless the one before it is still being written: then this one is left out, so that a disk that
    /// is slower than the checkpoints come has one to write and no more.
    fn start_checkpoint(&mut self, actions: &mut Vec<Action>) {
        let next_step = self.next_step;
        let is_other =
            |(step, milestone): &&(u64, Milestone)| *milestone == Milestone::Checkpoint && *step != next_step;
        if let Some(&(busy_with, _)) = self.milestones.keys().find(is_other) {
            actions.push(Action::CheckpointSkipped { next_step, busy_with });
            return;
        }
        self.start_milestone(Milestone::Checkpoint, actions);
    }

    pub(super) fn start_milestone(&mut self, milestone: Milestone, actions: &mut Vec<Action>) {
        let key = (self.next_step, milestone);
        if self.milestones.contains_key(&key) || self.done.contains(&milestone) {
            return;
        }
        self.requests += 1;
        let (request, workers) = (self.requests, self.writer_first());
        let waiting = workers.iter().copied().collect();
        self.milestones.insert(key, Pending { request, writer: workers[0], waiting, params_hash: None });
        actions.push(Action::Milestone { milestone, next_step: self.next_step, request, workers });
    }

    /// The group, beginning with the worker that writes: the first one whose last save did not fail.
    fn writer_first(&mut self) -> Vec<WorkerId> {
        let mut workers = self.group.clone();
        if workers.iter().all(|worker| self.failed_writers.contains(worker)) {
            self.failed_writers.clear(); // nobody is better than another
        }
        let writer = workers.iter().position(|worker| !self.failed_writers.contains(worker));
        workers.rotate_left(writer.unwrap_or(0));
        workers
    }

    pub(super) fn on_done(
        &mut self,
        worker: WorkerId,
        (milestone, next_step, request): (Milestone, u64, u64),
        params_hash: Option<String>,
        actions: &mut Vec<Action>,
    ) {
        let Some(pending) = self.milestones.get_mut(&(next_step, milestone)) else { return };
        if pending.request != request {
            return;
        }
        pending.waiting.remove(&worker);
        if let Some(hash) = params_hash {
            let known = pending.params_hash.get_or_insert_with(|| hash.clone());
            if *known != hash {
                let reason = format!("after {next_step} steps worker {worker} holds other parameters than its peers");
                self.end(Ending::Failed { reason }, actions);
                return;
            }
        }
        self.finish_milestones(actions);
        self.try_finish(actions);
    }

    /// A checkpoint could not be written, and the run goes on without it. The next one is written by another worker, if there
    /// is one: the disk may be this one's trouble alone.
    pub(super) fn on_save_failed(
        &mut self,
        worker: WorkerId,
        (milestone, next_step, request): (Milestone, u64, u64),
        actions: &mut Vec<Action>,
    ) {
        let key = (next_step, milestone);
        if self.milestones.get(&key).is_some_and(|pending| pending.request == request) {
            self.milestones.remove(&key);
            self.failed_writers.insert(worker);
            self.try_finish(actions);
        }
    }

    /// Reports the milestones that nobody works on any more.
    fn finish_milestones(&mut self, actions: &mut Vec<Action>) {
        let (done, present) = (&mut self.done, self.next_step);
        self.milestones.retain(|(next_step, milestone), pending| {
            if pending.waiting.is_empty() {
                if *next_step == present {
                    done.insert(*milestone);
                }
                actions.push(Action::MilestoneDone { milestone: *milestone, next_step: *next_step });
            }
            !pending.waiting.is_empty()
        });
    }

    /// The group has lost somebody. What a living worker is writing goes on. Everything else is asked of the new group again
    /// if it is of the present step; a checkpoint of an earlier step, whose state is gone, is made of the present one.
    pub(super) fn repeat_milestones(&mut self, actions: &mut Vec<Action>) {
        let (group, mut is_checkpoint_lost) = (self.group.clone(), false);
        for ((next_step, milestone), mut pending) in std::mem::take(&mut self.milestones) {
            if milestone != Milestone::Samples && group.contains(&pending.writer) {
                pending.waiting.retain(|worker| group.contains(worker));
                self.milestones.insert((next_step, milestone), pending);
            } else if next_step == self.next_step {
                self.start_milestone(milestone, actions);
            } else {
                is_checkpoint_lost |= milestone == Milestone::Checkpoint;
            }
        }
        self.finish_milestones(actions);
        if is_checkpoint_lost && self.phase != Phase::Closing {
            self.start_checkpoint(actions);
        }
    }

    pub(super) fn try_finish(&mut self, actions: &mut Vec<Action>) {
        if self.phase == Phase::Closing && self.milestones.is_empty() {
            let ending = match self.given_up.take() {
                Some(reason) => Ending::Failed { reason },
                None if self.interrupted => Ending::Interrupted { next_step: self.next_step },
                None => Ending::Finished,
            };
            actions.push(Action::Finish { workers: self.membership.all(), reason: "the run is over" });
            self.end(ending, actions);
        }
    }
}
