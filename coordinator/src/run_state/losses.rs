//! The worker set shrinks: somebody is lost, the generation ends, the survivors go on.

use std::time::Duration;

use super::{Action, Ending, Phase, RunState, WorkerId};

impl RunState {
    pub(super) fn on_tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        // A coordinator that did not run itself (stopped, or on a machine that slept) could hear nobody.
        let slept = now.saturating_sub(std::mem::replace(&mut self.last_tick, now));
        if slept > self.config.lease / 2 {
            self.membership.excuse(now);
            if let Phase::Reuniting { since } | Phase::CatchingUp { since } = &mut self.phase {
                // What began since then has not been slept through.
                *since = (*since + slept).min(now);
            }
        }
        let reason = format!("silent for more than {} s", self.config.lease.as_secs_f64());
        let expired = self.membership.expired(now, self.config.lease);
        self.lose_all(expired, &reason, true, actions);
        self.links.forgive(now);
        self.try_start(now, actions);
        self.try_reunite(actions);
        self.give_up_slow_joiners(now, actions);
    }

    pub(super) fn evict(&mut self, worker: WorkerId, reason: String, may_return: bool, actions: &mut Vec<Action>) {
        let rank = self.group.iter().position(|member| *member == worker).map(|rank| rank as u32);
        self.membership.remove(worker);
        self.nccl.forget(worker);
        actions.push(Action::Evict { worker, rank, reason, may_return });
    }

    /// A worker is gone: its slots go to the survivors.
    pub(super) fn lose(&mut self, worker: WorkerId, reason: String, actions: &mut Vec<Action>) {
        self.lose_all(vec![worker], &reason, false, actions);
    }

    /// Workers are gone, for one reason: their slots go to the survivors. All of them before anything else is decided.
    fn lose_all(&mut self, lost: Vec<WorkerId>, reason: &str, may_return: bool, actions: &mut Vec<Action>) {
        if self.phase == Phase::Ended {
            return;
        }
        let (mut members, mut joiners, mut holders) = (Vec::new(), Vec::new(), Vec::new());
        for worker in lost.into_iter().filter(|worker| self.membership.get(*worker).is_some()).collect::<Vec<_>>() {
            self.evict(worker, reason.to_owned(), may_return, actions);
            self.links.forget(worker);
            let was_holder = self.reunion.forget(worker);
            if self.transfers.remove(&worker).is_some() {
                joiners.push(worker);
            } else if self.group.contains(&worker) {
                members.push(worker);
            } else if was_holder {
                holders.push(worker);
            }
        }
        self.group.retain(|member| !members.contains(member));
        self.settle_losses(&members, reason, actions);
        if matches!(self.phase, Phase::Reuniting { .. }) {
            self.lose_in_reunion(&holders, reason, actions);
        }
        for joiner in joiners {
            self.replace_source(joiner, actions);
        }
    }

    /// Decides what becomes of the generation without these members, which have left it.
    fn settle_losses(&mut self, members: &[WorkerId], why: &str, actions: &mut Vec<Action>) {
        let Some(reason) = lost_words(members, why) else { return };
        match self.phase {
            // The ledger decides: the survivors apply what it holds, then regroup.
            Phase::Committing { .. } => self.lost_in_commit.push(reason),
            // More may be gone for the same reason, which ends one generation and not one for each.
            Phase::Stepping { .. } | Phase::Settling(_) => self.note_losses(members, why, actions),
            // Nothing is computed any more: what is left to be done needs no generation.
            Phase::Closing if self.too_few_are_left() => self.reunite(&reason, actions),
            Phase::Closing => {
                self.repeat_milestones(actions);
                self.try_finish(actions);
            }
            Phase::CatchingUp { .. } => self.lose_in_catch_up(members, &reason, actions),
            Phase::Gathering { .. } | Phase::Reuniting { .. } | Phase::RollingBack | Phase::Ended => {}
        }
    }

    /// Ends the generation and deals the step in hand anew to the workers of the group that are left.
    pub(super) fn regroup(&mut self, reason: &str, actions: &mut Vec<Action>) {
        if self.too_few_are_left() {
            self.reunite(reason, actions);
            return;
        }
        self.form_group_of_survivors(reason, actions);
        self.advance(actions);
    }

    pub(super) fn form_group(&mut self, workers: Vec<WorkerId>, actions: &mut Vec<Action>) {
        self.generation += 1;
        self.formed.clone_from(&workers);
        self.group = workers;
        self.planned = self.next_step;
        self.choose_transport(actions);
        actions.push(Action::Group { generation: self.generation, workers: self.group.clone() });
    }

    pub(super) fn form_group_of_survivors(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let workers = std::mem::take(&mut self.group);
        actions.push(Action::Abort {
            generation: self.generation,
            reason: reason.to_owned(),
            workers: workers.clone(),
        });
        self.form_group(workers, actions);
        self.repeat_milestones(actions);
    }

    pub(super) fn fail_without_workers(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let reason = format!("no worker is left after {} steps ({reason})", self.next_step);
        self.end(Ending::Failed { reason }, actions);
    }
}

/// Says who was lost, and why the first of them was; none when nobody was.
pub(super) fn lost_words(lost: &[WorkerId], why: &str) -> Option<String> {
    match lost {
        [] => None,
        [worker] => Some(format!("worker {worker} was lost: {why}")),
        [worker, others @ ..] => Some(format!("worker {worker} and {} more were lost: {why}", others.len())),
    }
}
