//! Work between steps: who was asked for it, who has done it, and the end of the run when nothing is left of it.

use std::collections::BTreeSet;

use super::{Action, Ending, Milestone, Phase, RunState, WorkerId};

/// A milestone that is under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Pending {
    /// Number of the request; an answer to an earlier one is about files that a lost worker may not have finished.
    request: u64,
    waiting: BTreeSet<WorkerId>,
    params_hash: Option<String>,
}

impl RunState {
    /// Starts what is due when `done` steps are done and more are to come.
    pub(super) fn start_milestones(&mut self, done: u64, actions: &mut Vec<Action>) {
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

    pub(super) fn start_milestone(&mut self, milestone: Milestone, actions: &mut Vec<Action>) {
        let key = (self.next_step, milestone);
        if self.milestones.contains_key(&key) || self.done.contains(&milestone) {
            return;
        }
        self.requests += 1;
        let (request, workers) = (self.requests, self.group.clone());
        let pending = Pending { request, waiting: workers.iter().copied().collect(), params_hash: None };
        self.milestones.insert(key, pending);
        actions.push(Action::Milestone { milestone, next_step: self.next_step, request, workers });
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
        if pending.waiting.is_empty() {
            self.milestones.remove(&(next_step, milestone));
            if next_step == self.next_step {
                self.done.insert(milestone);
            }
            actions.push(Action::MilestoneDone { milestone, next_step });
        }
        self.try_finish(actions);
    }

    /// Asks the new group for the milestones of the present step again, and forgets those of earlier ones: the
    /// parameters they needed are gone.
    pub(super) fn repeat_milestones(&mut self, actions: &mut Vec<Action>) {
        let pending = std::mem::take(&mut self.milestones);
        for (next_step, milestone) in pending.into_keys() {
            if next_step == self.next_step {
                self.start_milestone(milestone, actions);
            }
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
