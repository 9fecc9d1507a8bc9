//! Workers arrive: they join, load the model and are counted. The first ones start the run, later ones wait for a commit.

use std::time::Duration;

use super::reunion::Standing;
use super::{Action, Ending, Held, Phase, RunState, WorkerId};
use crate::membership::WorkerState;

impl RunState {
    pub(super) fn on_joined(&mut self, worker: WorkerId, former: Option<WorkerId>, actions: &mut Vec<Action>) {
        let places = 2 * self.config.slots.max(self.config.workers);
        if self.membership.get(worker).is_some() {
            return;
        }
        if let Some(former) = former.filter(|former| self.membership.get(*former).is_some()) {
            // Its old connection is dead, even if nobody has noticed yet.
            self.lose(former, format!("it has connected anew, as worker {worker}"), actions);
            if self.phase == Phase::Ended {
                return;
            }
        }
        if self.phase == Phase::RollingBack {
            let reason = "the run is going back to a checkpoint".to_owned();
            actions.push(Action::StartOver { workers: vec![worker], reason });
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
        self.membership.join(worker, self.now);
        self.reunion.note_former(worker, former);
        let catch_up = match self.phase {
            Phase::Gathering { .. } => false,
            Phase::Reuniting { .. } => !self.reunion.is_saved,
            _ => true,
        };
        actions.push(Action::Welcome { worker, catch_up });
    }

    pub(super) fn on_ready(&mut self, worker: WorkerId, held: Held, actions: &mut Vec<Action>) {
        // It says so once; what comes a second time is late, and may have been true once.
        if !self.membership.get(worker).is_some_and(|member| member.state == WorkerState::Loading) {
            return;
        }
        let standing = self.standing(&held);
        if standing == Standing::Ahead {
            let reason = format!(
                "it has made {} steps, the ledger holds {}: the ledger is not the one that it worked for, or is an older copy",
                held.next_step, self.next_step
            );
            self.membership.remove(worker);
            actions.push(Action::Refuse { worker, reason });
            return;
        }
        self.reunion.note_held(worker, &held);
        match self.phase {
            Phase::Gathering { .. } => self.take_in(worker, held, standing, actions),
            Phase::Reuniting { .. } => self.welcome_back(worker, held, standing, actions),
            _ => {
                // What it holds does not matter: it is sent everything.
                self.membership.ready(worker, held.params_hash);
                self.start_transfers(actions);
            }
        }
    }

    /// Takes in a worker before the first step of this start: it must hold what all others hold.
    fn take_in(&mut self, worker: WorkerId, held: Held, standing: Standing, actions: &mut Vec<Action>) {
        if standing != Standing::AtHead {
            let reason = format!(
                "it holds the state after {} steps of another history, the run stands at {}",
                held.next_step, self.next_step
            );
            self.membership.remove(worker);
            actions.push(Action::StartOver { workers: vec![worker], reason });
            return;
        }
        let hash = held.params_hash;
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
        self.try_start(self.now, actions);
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
