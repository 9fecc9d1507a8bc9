//! Workers arrive: they join, load the model and are counted. The first ones start the run, later ones wait for a commit.

use std::time::Duration;

use super::{Action, Ending, Phase, RunState, WorkerId};
use crate::membership::WorkerState;

impl RunState {
    pub(super) fn on_joined(&mut self, worker: WorkerId, now: Duration, actions: &mut Vec<Action>) {
        let places = 2 * self.config.slots.max(self.config.workers);
        if self.membership.get(worker).is_some() {
            return;
        }
        if self.membership.len() >= places {
            let reason = format!(
                "the run has {} workers already: {} can share its {} slots, the others wait as spares",
                self.membership.len(),
                self.config.slots,
                self.config.slots
            );
            actions.push(Action::Refuse { worker, reason });
            return;
        }
        self.membership.join(worker, now);
        let catch_up = !matches!(self.phase, Phase::Gathering { .. });
        actions.push(Action::Welcome { worker, catch_up });
    }

    pub(super) fn on_ready(
        &mut self,
        worker: WorkerId,
        next_step: u64,
        hash: String,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        if self.membership.get(worker).is_none() || self.group.contains(&worker) {
            return;
        }
        if !matches!(self.phase, Phase::Gathering { .. }) {
            // What it holds does not matter: it is sent everything.
            self.membership.ready(worker, hash);
            self.start_transfers(actions);
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
            // Whoever is still loading, or has no slot, joins later.
            self.form_group(ready.into_iter().take(self.config.slots).collect(), actions);
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
