//! A step: plan, votes, commit, apply; and the stop between two of them.

use std::collections::BTreeMap;

use super::{Action, Ending, Head, Milestone, Phase, RunState, WorkerId};

impl RunState {
    /// Goes on with the next step, or closes the run when all are done.
    pub(super) fn advance(&mut self, actions: &mut Vec<Action>) {
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

    pub(super) fn on_reduced(
        &mut self,
        worker: WorkerId,
        generation: u64,
        step: u64,
        hash: String,
        actions: &mut Vec<Action>,
    ) {
        let current = generation == self.generation && step == self.next_step && self.group.contains(&worker);
        let Phase::Stepping { votes } = &mut self.phase else { return };
        if !current {
            return; // a stale vote: its generation has ended
        }
        votes.insert(worker, hash);
        if votes.len() < self.group.len() {
            return;
        }
        let votes = std::mem::take(votes);
        let gradient_hash = votes.values().next().expect("a group has members").clone();
        if votes.values().any(|hash| *hash != gradient_hash) {
            self.on_disagreement(&votes, actions);
            return;
        }
        self.disagreements = 0;
        self.suspects.clear();
        self.phase = Phase::Committing { gradient_hash: gradient_hash.clone() };
        actions.push(Action::Commit { generation, step, gradient_hash, workers: self.group.clone() });
    }

    pub(super) fn on_committed(&mut self, step: u64, chain: String, actions: &mut Vec<Action>) {
        let Phase::Committing { gradient_hash } = &self.phase else { return };
        assert_eq!(step, self.next_step, "one step is committed at a time");
        let gradient_hash = gradient_hash.clone();
        let (generation, workers) = (self.generation, self.group.clone());
        actions.push(Action::Apply { generation, step, gradient_hash: gradient_hash.clone(), workers });
        self.next_step += 1;
        let previous_chain = std::mem::replace(&mut self.chain, chain);
        self.head = Some(Head { step, generation, gradient_hash, previous_chain });
        self.state_hash = None;
        self.links.forget_failures();
        self.nccl.forget_failures();
        self.done.clear();
        if self.interrupted {
            self.config.stop_step = self.next_step;
        }
        let lost = std::mem::take(&mut self.lost_in_commit);
        if !lost.is_empty() {
            if self.too_few_are_left() {
                self.reunite(&lost.join("; "), actions);
                return;
            }
            self.form_group_of_survivors(&lost.join("; "), actions);
        }
        self.start_milestones(self.next_step, actions);
        if self.next_step < self.config.stop_step && !self.next_joiners().is_empty() {
            self.begin_catch_up(actions);
        } else {
            self.advance(actions);
        }
    }

    pub(super) fn on_stop(&mut self, actions: &mut Vec<Action>) {
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
            Phase::Stepping { .. } | Phase::Settling(_) | Phase::Committing { .. } => {
                self.interrupted = true;
                self.config.stop_step = self.next_step + 1;
            }
            // Nobody computes: close with those who hold the state.
            Phase::CatchingUp { .. } => {
                self.interrupted = true;
                self.config.stop_step = self.next_step;
                self.transfers.clear();
                self.form_group(self.group.clone(), actions);
                self.advance(actions);
            }
            Phase::Reuniting { .. } => self.stop_in_reunion(actions),
            // It is being closed anyway: let it finish.
            Phase::RollingBack | Phase::Closing | Phase::Ended => {}
        }
    }
}
