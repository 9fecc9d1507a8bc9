//! The coordinator's process: performs what the core decides, and holds each decision against the truth.

use std::collections::BTreeSet;
use std::time::Duration;

use ballast_coordinator::run_state::{
    Action, CoreConfig, Ending, Event, Head, LeftBehind, Milestone, RunState, WorkerId,
};

use super::{Entry, File, Happening, Millis, World};
use crate::simulation::truth;

const TICK: Millis = 500;
const LEASE: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn start_coordinator(&mut self) {
        self.adopt_checkpoint();
        let committed = self.committed();
        let goes_on = self.may_return && !self.disk.is_stopped && committed > 0;
        self.disk.is_stopped = false;
        if goes_on {
            self.first_step = committed;
        } else {
            self.roll_back();
        }
        let reunion = goes_on.then(|| LeftBehind {
            head: self.head(),
            members: self.disk.members.clone(),
            is_saved: self.disk.checkpoints.contains(&committed),
            is_complete: committed == self.steps && self.disk.final_state.is_some(),
        });
        let config = CoreConfig {
            first_step: self.first_step,
            stop_step: self.steps,
            checkpoint_at: (1..self.steps).filter(|done| done.is_multiple_of(3)).collect(),
            sample_at: [0, 5].into(),
            workers: self.workers_wanted,
            min_workers: self.min_workers,
            join_timeout: Duration::from_secs(20),
            lease: LEASE,
            plan_ahead: 2,
            slots: self.slots,
            collective: self.nccl.kind,
            catch_up_timeout: Duration::from_secs(30),
            last_generation: self.generation,
            chain: self.chain_after(self.first_step),
            rolled_back_from: self.disk.rolled_back_from,
            may_return: self.may_return,
            rejoin_timeout: Duration::from_secs(10),
            max_wait: Duration::from_secs(60),
            reunion,
        };
        self.life += 1;
        self.writing = None;
        self.core = Some(RunState::new(config, self.clock()));
        self.plan(TICK, Happening::Event { life: self.life, worker: None, event: Event::Tick });
    }

    /// The coordinator's process ends. What was being written is there, or is not; what was synced is.
    pub(super) fn kill_coordinator(&mut self) {
        self.tally.coordinator_deaths += 1;
        self.core = None;
        self.coordinator_paused_until = 0;
        self.life += 1;
        if let Some(entry) = self.writing.take()
            && self.rng.one_in(2)
        {
            self.disk.ledger.push(entry);
        }
        self.sessions.clear();
        // Workers notice at once, or when nobody answers their pings.
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            let delay = self.rng.within(1..200);
            self.plan(delay, Happening::Broken { worker });
        }
        let delay = if self.rng.one_in(8) { self.rng.within(5_000..60_000) } else { self.rng.within(500..5_000) };
        self.plan(delay, Happening::StartCoordinator);
    }

    /// Takes the ledger back to the newest checkpoint.
    fn roll_back(&mut self) {
        self.first_step = self.disk.checkpoints.last().copied().unwrap_or(0);
        let committed = self.committed();
        if committed > self.first_step {
            self.disk.rolled_back_from = self.disk.rolled_back_from.max(committed);
            self.disk.ledger.truncate(self.first_step as usize);
            self.disk.history += 1;
            self.tally.rollbacks += 1;
        }
    }

    /// Puts on record what a worker has saved by itself, or what a coordinator died too early to note.
    fn adopt_checkpoint(&mut self) {
        let newest = self.disk.checkpoints.last().copied().unwrap_or(0);
        let range = newest + 1..=self.committed().max(newest + 1);
        let is_ours = |(step, file): &(&u64, &File)| file.chain == self.chain_after(**step);
        let found = self.disk.files.range(range).rev().find(is_ours).map(|(step, _)| *step);
        self.disk.checkpoints.extend(found.filter(|step| *step <= self.committed()));
    }

    /// Returns the chain of the ledger after so many steps: it differs wherever the ledgers differ.
    pub(super) fn chain_after(&self, steps: u64) -> String {
        let entries = self.disk.ledger.iter().take(steps as usize);
        let chain = entries.fold(0, |chain, entry| truth::apply(chain, entry.gradient ^ (entry.generation << 1)));
        if steps == 0 { String::new() } else { truth::hash(chain) }
    }

    fn head(&self) -> Head {
        let entry = self.disk.ledger.last().expect("a ledger to go on from has commits");
        Head {
            step: self.committed() - 1,
            generation: entry.generation,
            gradient_hash: truth::hash(entry.gradient),
            previous_chain: self.chain_after(self.committed() - 1),
        }
    }

    fn clock(&self) -> Duration {
        Duration::from_millis(self.now + self.clock_offset)
    }

    pub(super) fn on_event(&mut self, life: u64, worker: Option<WorkerId>, event: Event) -> Result<(), String> {
        if life != self.life || worker.is_some_and(|worker| !self.sessions.contains(&worker)) {
            return Ok(());
        }
        if event == Event::Tick {
            self.plan(TICK, Happening::Event { life, worker: None, event: Event::Tick });
            if self.rng.one_in(30) {
                self.decide(Event::CheckpointDue)?;
            }
        }
        self.decide(event)
    }

    pub(super) fn on_written(&mut self, life: u64, step: u64) -> Result<(), String> {
        if life != self.life {
            return Ok(());
        }
        let entry = self.writing.take().ok_or("something was written that nobody wrote")?;
        self.disk.ledger.push(entry);
        let chain = self.chain_after(step + 1);
        self.decide(Event::Committed { step, chain })
    }

    pub(super) fn decide(&mut self, event: Event) -> Result<(), String> {
        let now = self.clock();
        let Some(core) = &mut self.core else { return Ok(()) };
        self.tally.events += 1;
        for action in core.on(event, now) {
            self.note(|| format!("    → {action:?}"));
            self.perform(action)?;
        }
        if let Some(at) = self.core.as_ref().and_then(RunState::next_look) {
            let delay = at.saturating_sub(self.clock()).as_millis() as u64;
            self.plan(delay, Happening::Look { life: self.life });
        }
        Ok(())
    }

    /// The coordinator is gathering something, and the time for it may be over.
    pub(super) fn on_look(&mut self, life: u64) -> Result<(), String> {
        let now = self.clock();
        let is_due = self.core.as_ref().and_then(RunState::next_look).is_some_and(|at| now >= at);
        if life == self.life && is_due { self.decide(Event::Tick) } else { Ok(()) }
    }

    fn perform(&mut self, action: Action) -> Result<(), String> {
        match &action {
            Action::Welcome { worker, .. } => {
                self.welcomed.insert(*worker, self.disk.history);
                self.send(*worker, &action);
            }
            Action::Refuse { worker, reason } => {
                self.check(!reason.contains("the ledger holds"), "a worker is ahead of the ledger")?;
                self.dismiss(*worker, &action);
            }
            Action::StartOver { workers, .. } => {
                for worker in workers {
                    self.dismiss(*worker, &action);
                }
            }
            Action::RollBack { .. } => return self.go_back(),
            Action::LeaveOut { worker, peers, .. } => {
                self.tally.left_out += 1;
                for peer in peers {
                    let were_apart = self.were_apart(*worker, *peer);
                    self.check(were_apart, &format!("worker {worker} is left out, which could reach worker {peer}"))?;
                }
            }
            Action::Wait { .. } => {}
            Action::Evict { worker, reason, .. } => {
                self.tally.losses += 1;
                if reason.contains("differed twice") {
                    self.tally.expulsions += 1;
                    let is_guilty = self.workers.get(worker).is_none_or(|worker| worker.corrupt_until > 0);
                    self.check(is_guilty, "a sound worker is expelled")?;
                }
                self.dismiss(*worker, &action);
            }
            Action::UseNccl { generation, workers } => {
                self.check_nccl(*generation, workers)?;
                self.tally.nccl_generations += 1;
                self.send_all(workers, &action);
            }
            Action::ShareNcclId { generation, id, workers } => {
                self.check_nccl_id(*generation, id, workers)?;
                self.tally.nccl_ids += 1;
                self.send_all(workers, &action);
            }
            Action::WithoutNccl { .. } => self.tally.nccl_fallbacks += 1,
            Action::Group { generation, workers } => {
                self.check(*generation > self.generation, "a generation is numbered like an earlier one")?;
                let distinct: BTreeSet<_> = workers.iter().collect();
                self.check(
                    distinct.len() == workers.len() && !workers.is_empty(),
                    "a group is empty or has a worker twice",
                )?;
                self.check(workers.len() <= self.slots, "a group has more workers than slots")?;
                let is_here = workers.iter().all(|worker| self.sessions.contains(worker));
                self.check(is_here, "a group has a worker that is not connected")?;
                self.generation = *generation;
                self.disk.members = workers.iter().copied().collect();
                self.send_all(workers, &action);
            }
            Action::Plan { generation, step, workers } => {
                self.check(*generation == self.generation, "a plan is not of the present generation")?;
                self.check(*step >= self.committed(), "a committed step is planned again")?;
                self.check(*step < self.steps, "a step is planned beyond the last")?;
                let is_new = self.planned_steps.insert((*generation, *step));
                self.check(is_new, "a step is planned twice in a generation")?;
                self.send_all(workers, &action);
            }
            Action::Commit { generation, step, gradient_hash, .. } => {
                self.check(*generation == self.generation, "a commit is not of the present generation")?;
                self.check(*step == self.committed() && self.writing.is_none(), "a commit leaves a gap or overlaps")?;
                let gradient = truth::gradient(*step, self.truth[*step as usize]);
                self.check(*gradient_hash == truth::hash(gradient), "a wrong gradient is committed")?;
                self.writing = Some(Entry { generation: *generation, gradient });
                self.tally.commits += 1;
                let (delay, life, step) = (self.rng.within(0..40), self.life, *step);
                self.plan(delay, Happening::Written { life, step });
            }
            Action::Apply { generation, step, workers, .. } => {
                self.check(*step + 1 == self.committed(), "a step is applied that is not in the ledger")?;
                let entry = self.disk.ledger[*step as usize];
                self.check(*generation == entry.generation, "a step is applied in a stale generation")?;
                self.send_all(workers, &action);
            }
            Action::Abort { workers, .. } => self.send_all(workers, &action),
            Action::Milestone { workers, request, .. } => {
                if self.core.as_ref().is_some_and(|core| !core.is_closing()) {
                    self.background_saves.insert((self.life, *request));
                }
                self.send_all(workers, &action);
            }
            Action::CheckpointSkipped { next_step, busy_with } => {
                self.check(busy_with != next_step, "a checkpoint is left out for its own sake")?;
                self.tally.skipped_saves += 1;
            }
            Action::Offer { source, .. } => self.send(*source, &action),
            Action::Fetch { joiner, .. } => self.send(*joiner, &action),
            Action::MilestoneDone { milestone: Milestone::Checkpoint, next_step } => {
                let saved = self.disk.files.get(next_step).map(|file| file.state);
                self.check(
                    saved == Some(self.truth[*next_step as usize]),
                    "a checkpoint is recorded that is not whole",
                )?;
                self.check(*next_step <= self.committed(), "a checkpoint of steps to come is recorded")?;
                self.disk.checkpoints.insert(*next_step);
            }
            Action::MilestoneDone { .. } => {}
            Action::Finish { workers, .. } => {
                for worker in workers {
                    self.dismiss(*worker, &action);
                }
            }
            Action::Ended(ending) => self.on_ended(ending)?,
        }
        Ok(())
    }

    fn on_ended(&mut self, ending: &Ending) -> Result<(), String> {
        let committed = self.committed();
        match ending {
            Ending::Finished => {
                self.check(committed == self.steps, "the run is over and not all steps are committed")?;
                let last = self.truth[self.steps as usize];
                self.check(self.disk.final_state == Some(last), "the finished model is not what it must be")?;
                self.is_over = true;
            }
            Ending::Interrupted { next_step } => {
                self.check(*next_step == committed, "the run was stopped at another step than the ledger's")?;
                let is_saved = *next_step == 0 || self.disk.checkpoints.contains(next_step);
                let is_held = self.sessions.iter().any(|worker| self.is_known_holder(*worker));
                self.check(is_saved || !is_held, "the run was stopped and its state not saved")?;
                self.disk.is_stopped = is_saved;
                self.kill_coordinator();
            }
            // Whoever watches the run starts it again, with `--resume`.
            Ending::Failed { reason } => {
                const EXPECTED: [&str; 5] = [
                    "worker(s) joined within",
                    "no majority",
                    "no worker came back",
                    "cluster.min_workers is",
                    "NCCL failed 3 times in a row",
                ];
                let is_expected = EXPECTED.iter().any(|expected| reason.contains(expected))
                    || (!self.may_return && reason.contains("no worker is left"));
                self.check(is_expected, &format!("the run fails without need: {reason}"))?;
                let refuse = |worker| Action::Refuse { worker, reason: reason.clone() };
                for worker in self.sessions.clone() {
                    self.dismiss(worker, &refuse(worker));
                }
                self.kill_coordinator();
            }
        }
        Ok(())
    }

    /// The core wants to go back to a checkpoint: nobody may be there that holds the state.
    fn go_back(&mut self) -> Result<(), String> {
        let holder = self.sessions.iter().copied().find(|worker| self.is_known_holder(*worker));
        self.check(holder.is_none(), &format!("the run goes back although worker {holder:?} holds the state"))?;
        self.adopt_checkpoint();
        self.roll_back();
        let (next_step, chain) = (self.first_step, self.chain_after(self.first_step));
        self.decide(Event::RolledBack { next_step, chain })
    }

    /// Whether a worker holds the state after the last commit, or the gradient that leads to it, and has said so.
    fn is_known_holder(&self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.ready_since < self.now) else { return false };
        let (committed, step) = (self.committed(), worker.next_step.unwrap_or(0));
        let is_ours = worker.chain == self.chain_after(step);
        let entry = self.disk.ledger.last();
        let has_voted = worker.pending.is_some_and(|(_, step, gradient)| {
            step + 1 == committed && entry.is_some_and(|entry| entry.gradient == gradient)
        });
        committed > 0 && is_ours && (step == committed || (step + 1 == committed && has_voted))
    }

    pub(super) fn committed(&self) -> u64 {
        self.disk.ledger.len() as u64
    }

    pub(super) fn check(&self, is_good: bool, otherwise: &str) -> Result<(), String> {
        if is_good { Ok(()) } else { Err(otherwise.to_owned()) }
    }

    fn send_all(&mut self, workers: &[WorkerId], message: &Action) {
        for worker in workers {
            self.send(*worker, message);
        }
    }

    /// Sends a message to a worker, in order.
    fn send(&mut self, worker: WorkerId, message: &Action) {
        if self.sessions.contains(&worker)
            && let Some(machine) = self.workers.get(&worker).map(|worker| worker.machine)
        {
            let time = self.arrival(machine, worker, false);
            self.plan_at(time, Happening::Message { worker, message: message.clone() });
        }
    }

    /// Sends a last message and closes the connection.
    fn dismiss(&mut self, worker: WorkerId, message: &Action) {
        self.send(worker, message);
        self.sessions.remove(&worker);
    }
}
