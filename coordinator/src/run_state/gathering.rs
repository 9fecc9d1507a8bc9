//! Before the first step: workers join, load the model, and are counted.

use std::time::Duration;

use super::{Action, Ending, Phase, RunState};
use crate::membership::{WorkerId, WorkerState};

impl RunState {
    pub(super) fn on_joined(&mut self, worker: WorkerId, now: Duration, actions: &mut Vec<Action>) {
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

    pub(super) fn on_ready(
        &mut self,
        worker: WorkerId,
        next_step: u64,
        hash: String,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
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
    pub(super) fn try_start(&mut self, now: Duration, actions: &mut Vec<Action>) {
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
}
