//! Nobody is connected that holds the state, or too few: the run waits for workers to come back with it.
//!
//! This happens when the coordinator was started again, when all links broke, and when losses leave fewer than `min_workers`.
//! Who comes back says which step it has made, of which history, and whether it holds a vote whose fate it did not hear.
//! The ledger decides what that is worth. When nobody returns with the state in time, the run goes back to a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Action, Ending, Held, LeftBehind, Milestone, Phase, RunState, WorkerId};

/// What the state of a worker is worth to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the state after the last commit.
    AtHead,
    /// It is the one before, and the worker holds the gradient of the last commit.
    Voted,
    /// It is an older one, of another history, or none.
    Behind,
    /// It has made steps that no ledger of this run has ever had.
    Ahead,
}

/// Who is waited for, and who has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Reunion {
    /// The workers that had the state, by the numbers they had.
    expected: BTreeSet<WorkerId>,
    /// Those of them that are back.
    back: BTreeSet<WorkerId>,
    /// What numbers the connected workers had before.
    former: BTreeMap<WorkerId, WorkerId>,
    /// What the workers said that they hold, and have not lost since by fetching something else.
    held: BTreeMap<WorkerId, Held>,
    /// Who holds the state, by present numbers.
    holders: BTreeSet<WorkerId>,
    /// A checkpoint holds the very state.
    pub(super) is_saved: bool,
    pub(super) is_complete: bool,
    /// The coordinator was started again, and has not said yet for whom it waits.
    is_unannounced: bool,
}

impl Reunion {
    pub(super) fn after_restart(left: LeftBehind) -> Self {
        let LeftBehind { members, is_saved, is_complete, .. } = left;
        Self { expected: members, is_saved, is_complete, is_unannounced: true, ..Self::default() }
    }

    pub(super) fn note_former(&mut self, worker: WorkerId, former: Option<WorkerId>) {
        self.former.extend(former.map(|former| (worker, former)));
    }

    pub(super) fn note_held(&mut self, worker: WorkerId, held: &Held) {
        self.held.insert(worker, held.clone());
    }

    pub(super) fn forget_held(&mut self, worker: WorkerId) {
        self.held.remove(&worker);
    }

    pub(super) fn add_holder(&mut self, worker: WorkerId) {
        self.holders.insert(worker);
    }

    /// A worker is gone; it may come once more. Returns whether it held the state.
    pub(super) fn forget(&mut self, worker: WorkerId) -> bool {
        if let Some(former) = self.former.remove(&worker) {
            self.back.remove(&former);
        }
        self.held.remove(&worker);
        self.holders.remove(&worker)
    }

    fn missing(&self) -> Vec<WorkerId> {
        self.expected.difference(&self.back).copied().collect()
    }
}

impl RunState {
    /// Says what the state of a worker is worth.
    pub(super) fn standing(&self, held: &Held) -> Standing {
        if held.next_step > self.next_step.max(self.config.rolled_back_from) {
            return Standing::Ahead;
        }
        if held.next_step == self.next_step && held.chain == self.chain {
            return Standing::AtHead;
        }
        let has_voted = self.head.as_ref().is_some_and(|head| {
            held.next_step == head.step
                && held.chain == head.previous_chain
                && held.pending.as_ref().is_some_and(|(step, hash)| (*step, hash) == (head.step, &head.gradient_hash))
        });
        if has_voted { Standing::Voted } else { Standing::Behind }
    }

    /// Whether the workers that are left of the group cannot go on.
    pub(super) fn too_few_are_left(&self) -> bool {
        // Whoever is closing the run needs no more than one.
        let least = if self.phase == Phase::Closing { 1 } else { self.least_workers() };
        self.group.len() < least
    }

    /// So many are needed to compute: `min_workers`, as far as they can share the slots.
    fn least_workers(&self) -> usize {
        self.config.min_workers.min(self.config.slots).max(1)
    }

    /// Stops the work until enough workers hold the state; fails where none can come back.
    pub(super) fn reunite(&mut self, reason: &str, actions: &mut Vec<Action>) {
        let holders = std::mem::take(&mut self.group);
        if holders.is_empty() && !self.config.may_return {
            self.fail_without_workers(reason, actions);
            return;
        }
        if !holders.is_empty() {
            let (generation, workers) = (self.generation, holders.clone());
            actions.push(Action::Abort { generation, reason: reason.to_owned(), workers });
        }
        self.transfers.clear();
        // What is being written is not heard of any more; the next step makes another.
        self.checkpoint_wanted |= self.milestones.keys().any(|(_, milestone)| *milestone == Milestone::Checkpoint);
        self.milestones.clear();
        self.planned = self.next_step;
        (self.disagreements, self.suspects) = (0, BTreeSet::new());
        // Those who are lost while others hold the state are replaced by whoever comes; else they are the ones to wait for.
        let expected = if holders.is_empty() { self.formed.iter().copied().collect() } else { BTreeSet::new() };
        let Reunion { former, held, .. } = std::mem::take(&mut self.reunion);
        self.reunion = Reunion { expected, former, held, holders: holders.into_iter().collect(), ..Reunion::default() };
        self.count_holders_among_the_waiting(actions);
        self.phase = Phase::Reuniting { since: self.now };
        let (steps, least) = (self.next_step, self.least_workers());
        let message = if self.reunion.holders.is_empty() {
            format!(
                "no worker is left that holds the state after {steps} steps ({reason}): waiting up to {} for one to come \
                 back with it; then the run goes back to its newest checkpoint",
                spoken(self.config.rejoin_timeout)
            )
        } else {
            let holders = self.reunion.holders.iter().copied().collect();
            format!(
                "{} of at least {least} workers left after {steps} steps ({reason}): the run waits up to {} for more; then \
                 it saves and ends",
                self.links.connected(holders, self.config.slots).len(),
                spoken(self.config.max_wait)
            )
        };
        actions.push(Action::Wait { message });
        self.try_reunite(actions);
    }

    /// Somebody may have come back with the state already, and wait to take part.
    fn count_holders_among_the_waiting(&mut self, actions: &mut Vec<Action>) {
        // Of the others it is known that they hold it; what they once said is out of date.
        let waiting = self.membership.ready_workers().into_iter();
        for worker in waiting.filter(|worker| !self.reunion.holders.contains(worker)).collect::<Vec<_>>() {
            let standing = self.reunion.held.get(&worker).map(|held| self.standing(held));
            self.take_at_its_word(worker, standing.unwrap_or(Standing::Behind), actions);
        }
    }

    /// Counts a worker that holds the state, and has it apply the last commit if that is what it lacks.
    fn take_at_its_word(&mut self, worker: WorkerId, standing: Standing, actions: &mut Vec<Action>) {
        if standing == Standing::Voted
            && let Some(head) = &self.head
        {
            let (generation, step, gradient_hash) = (head.generation, head.step, head.gradient_hash.clone());
            actions.push(Action::Apply { generation, step, gradient_hash, workers: vec![worker] });
            if let Some(held) = self.reunion.held.get_mut(&worker) {
                (held.next_step, held.chain, held.pending) = (self.next_step, self.chain.clone(), None);
            }
        }
        if matches!(standing, Standing::AtHead | Standing::Voted) {
            self.reunion.add_holder(worker);
        }
    }

    /// A worker is ready while the run waits for those who hold the state.
    pub(super) fn welcome_back(&mut self, worker: WorkerId, held: Held, standing: Standing, actions: &mut Vec<Action>) {
        self.membership.ready(worker, held.params_hash);
        let former = self.reunion.former.get(&worker).copied();
        self.reunion.back.extend(former.filter(|former| self.reunion.expected.contains(former)));
        self.take_at_its_word(worker, standing, actions);
        let was = former.map(|former| format!(" (it was worker {former})")).unwrap_or_default();
        let holds = match standing {
            Standing::AtHead => "holds the state".to_owned(),
            Standing::Voted => "holds the gradient of the last commit and applies it".to_owned(),
            Standing::Behind | Standing::Ahead => "will be sent the state".to_owned(),
        };
        let missing = self.reunion.missing();
        let waiting = if missing.is_empty() { String::new() } else { format!("; still missing: {missing:?}") };
        actions.push(Action::Wait { message: format!("worker {worker} is here{was} and {holds}{waiting}") });
        self.try_reunite(actions);
    }

    /// Goes on when enough have come, or when the time for it is over.
    pub(super) fn try_reunite(&mut self, actions: &mut Vec<Action>) {
        let Phase::Reuniting { since } = self.phase else { return };
        if std::mem::take(&mut self.reunion.is_unannounced) {
            actions.push(Action::Wait { message: self.restart_message() });
        }
        let waited = self.now.saturating_sub(since);
        let ready = self.membership.ready_workers();
        let (mut able, others): (Vec<_>, Vec<_>) =
            ready.iter().copied().partition(|worker| self.reunion.holders.contains(worker));
        able.extend(others);
        // Those who cannot reach each other do not count both.
        let is_enough = self.links.connected(able, self.config.slots).len() >= self.least_workers();
        let everybody = self.reunion.missing().is_empty();
        let is_time = everybody || waited >= self.config.rejoin_timeout;
        let holders: Vec<_> = ready.into_iter().filter(|worker| self.reunion.holders.contains(worker)).collect();
        if !holders.is_empty() {
            if is_enough && is_time {
                self.go_on(holders, actions);
            } else if waited >= self.config.max_wait {
                let reason = format!(
                    "{} worker(s) for {}, and cluster.min_workers is {}; the state after {} steps is saved",
                    holders.len(),
                    spoken(self.config.max_wait),
                    self.config.min_workers,
                    self.next_step
                );
                self.given_up = Some(reason);
                self.close_with(holders, actions);
            }
        } else if self.reunion.is_complete && is_time {
            actions.push(Action::Finish { workers: self.membership.all(), reason: "the run is over" });
            self.end(Ending::Finished, actions);
        } else if is_enough && is_time {
            self.roll_back(actions);
        } else if waited >= self.config.max_wait {
            let reason = format!(
                "no worker came back within {} that holds the state after {} steps, nor enough others to go on from a \
                 checkpoint",
                spoken(self.config.max_wait),
                self.next_step
            );
            self.end(Ending::Failed { reason }, actions);
        }
    }

    fn restart_message(&self) -> String {
        format!(
            "the run stands at step {}: waiting up to {} for the {} worker(s) that held its state to come back; then it goes on \
             with those who came, or from its newest checkpoint when nobody did",
            self.next_step,
            spoken(self.config.rejoin_timeout),
            self.reunion.expected.len()
        )
    }

    /// A worker is gone while the run waits. The last one that held the state may come back with it.
    pub(super) fn lose_in_reunion(&mut self, lost: &[WorkerId], reason: &str, actions: &mut Vec<Action>) {
        let Some(worker) = lost.first().filter(|_| self.reunion.holders.is_empty()) else { return };
        if !self.config.may_return {
            self.fail_without_workers(&format!("worker {worker} was lost: {reason}"), actions);
            return;
        }
        self.reunion.expected.extend(lost);
        self.phase = Phase::Reuniting { since: self.now };
    }

    /// Goes on with those who hold the state. The others are sent it first.
    fn go_on(&mut self, holders: Vec<WorkerId>, actions: &mut Vec<Action>) {
        self.group = self.links.connected(holders, self.config.slots);
        self.formed.clone_from(&self.group);
        self.phase = Phase::Stepping { votes: BTreeMap::new() };
        if self.next_step < self.config.stop_step && !self.next_joiners().is_empty() {
            self.start_milestones(self.next_step, actions);
            self.begin_catch_up(actions);
        } else {
            self.form_group(self.group.clone(), actions);
            self.start_milestones(self.next_step, actions);
            self.advance(actions);
        }
    }

    /// Nobody came back with the state.
    fn roll_back(&mut self, actions: &mut Vec<Action>) {
        let workers = self.membership.all();
        let reason = format!("nobody came back with the state after {} steps", self.next_step);
        for worker in &workers {
            self.membership.remove(*worker);
        }
        actions.push(Action::StartOver { workers, reason: format!("{reason}: the run goes back to a checkpoint") });
        self.phase = Phase::RollingBack;
        actions.push(Action::RollBack { reason });
    }

    pub(super) fn on_rolled_back(&mut self, next_step: u64, chain: String) {
        self.config.rolled_back_from = self.config.rolled_back_from.max(self.next_step);
        self.config.first_step = next_step;
        (self.next_step, self.planned, self.chain) = (next_step, next_step, chain);
        self.head = None;
        self.reunion = Reunion::default();
        self.done.clear();
        self.phase = Phase::Gathering { since: self.now };
    }

    /// Somebody wants the run to end while it waits: it is saved by whoever holds its state.
    pub(super) fn stop_in_reunion(&mut self, actions: &mut Vec<Action>) {
        self.interrupted = true;
        let holders: Vec<_> = self.reunion.holders.iter().copied().collect();
        if holders.is_empty() {
            actions.push(Action::Finish { workers: self.membership.all(), reason: "the run was interrupted" });
            self.end(Ending::Interrupted { next_step: self.next_step }, actions);
        } else {
            self.close_with(holders, actions);
        }
    }

    pub(super) fn close_with(&mut self, holders: Vec<WorkerId>, actions: &mut Vec<Action>) {
        self.interrupted = true;
        self.config.stop_step = self.next_step;
        self.form_group(holders.into_iter().take(self.config.slots).collect(), actions);
        self.phase = Phase::Stepping { votes: BTreeMap::new() };
        self.advance(actions);
    }
}

/// Writes a time for people.
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds >= 120.0 { format!("{} min", (seconds / 60.0).round()) } else { format!("{seconds} s") }
}
