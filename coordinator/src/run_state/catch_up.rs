//! Joiners are sent the state between two steps, by a member, directly.
//!
//! After a commit the generation ends and everybody stands at the same step. A member of the group (the source) names the
//! hash of its state, the joiner fetches it and must arrive at the same hash. When a source is lost, another takes over:
//! it holds the same state, so the joiner keeps what it has. When all joiners have caught up, or are gone, the next
//! generation begins.

use std::collections::BTreeSet;
use std::time::Duration;

use super::settling::LIMIT;
use super::{Action, Ending, Phase, RunState, WorkerId};

/// The way of the state to one joiner.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Transfer {
    /// Tells this attempt from earlier ones.
    number: u64,
    source: WorkerId,
    progress: Progress,
    /// Sources from which the joiner could not fetch.
    failed: BTreeSet<WorkerId>,
    /// What the joiner said of the last of them.
    problem: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The source was asked for its hash.
    Asked,
    /// The joiner fetches.
    Fetching,
    /// The joiner holds the state.
    Done,
    /// Nobody is left to ask. Unless one of the sources is dying, which is about to be heard, the joiner is at fault.
    Stuck { since: Duration },
}

impl RunState {
    /// Names the joiners that can be taken in now: as many as there are slots without a worker, and links to all others.
    pub(super) fn next_joiners(&self) -> Vec<WorkerId> {
        let mut present: Vec<_> = self.group.iter().chain(self.transfers.keys()).copied().collect();
        let first_new = present.len();
        for worker in self.membership.ready_workers() {
            let is_new = present.len() < self.config.slots && !present.contains(&worker);
            if is_new && self.links.reach(worker, &present) {
                present.push(worker);
            }
        }
        present.split_off(first_new)
    }

    /// Ends the generation between two steps and starts to send the state to those who wait.
    pub(super) fn begin_catch_up(&mut self, actions: &mut Vec<Action>) {
        let joiners = self.next_joiners();
        actions.push(Action::Abort {
            generation: self.generation,
            reason: format!("workers {joiners:?} are sent the state after {} steps", self.next_step),
            workers: self.group.clone(),
        });
        self.state_hash = None;
        self.phase = Phase::CatchingUp { since: self.now };
        self.start_transfers(actions);
    }

    /// Starts transfers to all who wait, if this is the time for it.
    pub(super) fn start_transfers(&mut self, actions: &mut Vec<Action>) {
        if !matches!(self.phase, Phase::CatchingUp { .. }) {
            return;
        }
        for joiner in self.next_joiners() {
            let started = self.start_transfer(joiner, BTreeSet::new(), actions);
            debug_assert!(started, "whoever waits between two steps waits for a group");
        }
    }

    /// Asks the holder of the state that has the fewest joiners to see to. False when none is left to ask.
    #[must_use]
    fn start_transfer(&mut self, joiner: WorkerId, failed: BTreeSet<WorkerId>, actions: &mut Vec<Action>) -> bool {
        let load = |source: &WorkerId| self.transfers.values().filter(|transfer| transfer.source == *source).count();
        let holders = self.group.iter().copied().chain(self.caught_up());
        let Some(source) = holders.filter(|holder| !failed.contains(holder)).min_by_key(load) else {
            return false;
        };
        self.transfer_count += 1;
        let transfer = self.transfer_count;
        let problem = "its source is gone".to_owned();
        self.transfers
            .insert(joiner, Transfer { number: transfer, source, progress: Progress::Asked, failed, problem });
        actions.push(Action::Offer { source, joiner, transfer, next_step: self.next_step });
        true
    }

    /// Names the joiners that hold the state.
    fn caught_up(&self) -> Vec<WorkerId> {
        let done = self.transfers.iter().filter(|(_, transfer)| transfer.progress == Progress::Done);
        done.map(|(joiner, _)| *joiner).collect()
    }

    pub(super) fn on_offered(&mut self, source: WorkerId, number: u64, state_hash: String, actions: &mut Vec<Action>) {
        let is_meant = |transfer: &Transfer| (transfer.number, transfer.source) == (number, source);
        let Some((joiner, transfer)) = self.transfers.iter_mut().find(|(_, transfer)| is_meant(transfer)) else {
            return; // of a transfer that has ended
        };
        if transfer.progress != Progress::Asked {
            return;
        }
        transfer.progress = Progress::Fetching;
        let (joiner, next_step, transfer) = (*joiner, self.next_step, number);
        let known = self.state_hash.get_or_insert_with(|| state_hash.clone());
        if *known != state_hash {
            let reason = format!("after {next_step} steps worker {source} holds another state than its peers");
            self.end(Ending::Failed { reason }, actions);
            return;
        }
        self.reunion.forget_held(joiner);
        actions.push(Action::Fetch { joiner, source, transfer, next_step, state_hash });
    }

    pub(super) fn on_caught_up(&mut self, joiner: WorkerId, number: u64, state_hash: &str, actions: &mut Vec<Action>) {
        if self.state_hash.as_deref() == Some(state_hash) && matches!(self.phase, Phase::Reuniting { .. }) {
            // Its source is gone, and it has got everything.
            self.reunion.add_holder(joiner);
            self.try_reunite(actions);
            return;
        }
        let Some(transfer) = self.transfers.get_mut(&joiner) else { return };
        if transfer.number != number || transfer.progress != Progress::Fetching {
            return;
        }
        if self.state_hash.as_deref() != Some(state_hash) {
            self.on_fetch_failed(joiner, number, "what arrived has another hash", actions);
            return;
        }
        transfer.progress = Progress::Done;
        self.on_transfers_changed(actions);
    }

    pub(super) fn on_fetch_failed(&mut self, joiner: WorkerId, number: u64, reason: &str, actions: &mut Vec<Action>) {
        let Some(transfer) = self.transfers.get_mut(&joiner) else { return };
        if transfer.number == number && matches!(transfer.progress, Progress::Asked | Progress::Fetching) {
            transfer.failed.insert(transfer.source);
            reason.clone_into(&mut transfer.problem);
            self.change_source(joiner, actions);
        }
    }

    /// Lets the joiner go on with another source, if there is one.
    fn change_source(&mut self, joiner: WorkerId, actions: &mut Vec<Action>) {
        let Some(mut transfer) = self.transfers.remove(&joiner) else { return };
        if !self.start_transfer(joiner, transfer.failed.clone(), actions) {
            if !matches!(transfer.progress, Progress::Stuck { .. }) {
                transfer.progress = Progress::Stuck { since: self.now };
            }
            self.transfers.insert(joiner, transfer);
        }
    }

    /// When the first of the joiners that found no source is given up.
    pub(super) fn first_stuck_until(&self) -> Option<Duration> {
        let until = |transfer: &Transfer| match transfer.progress {
            Progress::Stuck { since } => Some(since + LIMIT),
            _ => None,
        };
        self.transfers.values().filter_map(until).min()
    }

    /// Evicts the joiners that all sources failed, and lived.
    pub(super) fn give_up_stuck_joiners(&mut self, actions: &mut Vec<Action>) {
        let is_due = |transfer: &Transfer| match transfer.progress {
            Progress::Stuck { since } => self.now >= since + LIMIT,
            _ => false,
        };
        let due = self.transfers.iter().filter(|(_, transfer)| is_due(transfer)).map(|(joiner, _)| *joiner);
        for joiner in due.collect::<Vec<_>>() {
            self.change_source(joiner, actions); // somebody may have caught up meanwhile
            let Some(transfer) = self.transfers.get(&joiner) else { continue };
            if matches!(transfer.progress, Progress::Stuck { .. }) {
                let reason = format!("no worker could send it the state: {}", transfer.problem);
                self.transfers.remove(&joiner);
                self.evict(joiner, reason, false, actions);
            }
        }
        self.on_transfers_changed(actions);
    }

    /// A member of the group is gone, and what it was sending and saving.
    pub(super) fn lose_in_catch_up(&mut self, lost: &[WorkerId], reason: &str, actions: &mut Vec<Action>) {
        if self.group.is_empty() {
            // Joiners that hold the state are as good as those they had it from.
            self.group = self.caught_up();
            self.transfers.retain(|_, transfer| transfer.progress != Progress::Done);
        }
        if self.group.is_empty() {
            self.reunite(reason, actions);
            return;
        }
        self.repeat_milestones(actions);
        for worker in lost {
            self.replace_source(*worker, actions);
        }
    }

    /// Finds other sources for those who were being sent the state by a worker that is gone.
    pub(super) fn replace_source(&mut self, lost: WorkerId, actions: &mut Vec<Action>) {
        let is_orphan = |transfer: &Transfer| transfer.progress != Progress::Done && transfer.source == lost;
        let orphans = self.transfers.iter().filter(|(_, transfer)| is_orphan(transfer)).map(|(joiner, _)| *joiner);
        for joiner in orphans.collect::<Vec<_>>() {
            self.change_source(joiner, actions);
        }
        self.on_transfers_changed(actions);
    }

    /// Begins the next generation when nobody is being sent the state any more.
    pub(super) fn on_transfers_changed(&mut self, actions: &mut Vec<Action>) {
        let catching_up = matches!(self.phase, Phase::CatchingUp { .. });
        if !catching_up || self.transfers.values().any(|transfer| transfer.progress != Progress::Done) {
            return;
        }
        let mut workers = self.group.clone();
        workers.extend(self.caught_up());
        self.transfers.clear();
        self.group = workers;
        if self.too_few_are_left() {
            self.reunite("joiners were lost", actions);
            return;
        }
        let workers = std::mem::take(&mut self.group);
        self.form_group(workers, actions);
        self.advance(actions);
    }

    /// Gives up joiners that hold the others up for too long.
    pub(super) fn give_up_slow_joiners(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let Phase::CatchingUp { since } = self.phase else { return };
        if now.saturating_sub(since) < self.config.catch_up_timeout {
            return;
        }
        let slow = self.transfers.iter().filter(|(_, transfer)| transfer.progress != Progress::Done);
        let slow: Vec<_> = slow.map(|(joiner, _)| *joiner).collect();
        for joiner in slow {
            let limit = self.config.catch_up_timeout.as_secs_f64();
            self.transfers.remove(&joiner);
            self.evict(joiner, format!("it could not be sent the state within {limit} s"), false, actions);
        }
        self.on_transfers_changed(actions);
    }
}
