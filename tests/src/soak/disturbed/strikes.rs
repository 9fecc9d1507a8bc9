//! What each fault does to the processes.

use std::time::{Duration, Instant};

use super::Disturbed;
use crate::soak::cluster::{Stage, beyond_the_lease, within_the_lease};
use crate::soak::faults::{Fault, Planned};
use crate::soak::liveness::Cause;

/// Between so many workers the number changes, whatever it was at the start.
const WORKERS_MIN: usize = 2;
const WORKERS_MAX: usize = 4;
/// The longest time from a kill to the next start.
const RESTART_AFTER: Duration = Duration::from_millis(1500);
/// How long after a checkpoint is due its writer may be killed.
const SAVING: Duration = Duration::from_millis(100);
/// How long after a catch-up has begun somebody may be killed.
const CATCHING_UP: Duration = Duration::from_millis(40);

impl Disturbed<'_> {
    /// Whether a checkpoint is being written: it has its final name only when it is whole.
    pub(super) fn is_saving(&self) -> bool {
        let waits = self.waiting.iter().any(|planned| planned.fault == Fault::KillWhileSaving);
        let is_partial = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().contains(".partial"))
        };
        waits && std::fs::read_dir(&self.checkpoints).is_ok_and(|mut entries| entries.any(is_partial))
    }

    pub(super) fn strike(&mut self, planned: Planned) -> anyhow::Result<()> {
        let now = Instant::now();
        let restart_at = Some(now + RESTART_AFTER.mul_f64(planned.length));
        let one_of = |indexes: Vec<usize>| match indexes.len() as u64 {
            0 => None,
            count => Some(indexes[(planned.choice % count) as usize]),
        };
        let what = match planned.fault {
            Fault::KillWorker => match one_of(self.cluster.alive()) {
                Some(index) => {
                    self.disturb(Cause::Closed);
                    format!("kill {}", self.cluster.kill_worker(index, restart_at))
                }
                None => "kill a worker, but there is none".to_owned(),
            },
            Fault::PauseWorker | Fault::HangWorker => match one_of(self.cluster.running()) {
                Some(index) => {
                    let is_hang = planned.fault == Fault::HangWorker;
                    let duration =
                        if is_hang { beyond_the_lease(planned.length) } else { within_the_lease(planned.length) };
                    self.disturb(Cause::Silence);
                    self.cluster.stop_worker(index, now + duration);
                    format!("stop {} for {:.1} s", self.cluster.workers[index].name(), duration.as_secs_f64())
                }
                None => "stop a worker, but none runs".to_owned(),
            },
            Fault::KillAllWorkers => {
                self.disturb(Cause::Closed);
                let alive = self.cluster.alive();
                alive.iter().for_each(|index| drop(self.cluster.kill_worker(*index, restart_at)));
                format!("kill all {} workers", alive.len())
            }
            Fault::AddWorker if self.cluster.workers.len() < WORKERS_MAX => self.add()?,
            Fault::AddWorker => self.remove(planned.choice),
            Fault::RemoveWorker if self.cluster.workers.len() > WORKERS_MIN => self.remove(planned.choice),
            Fault::RemoveWorker => self.add()?,
            Fault::KillWhileSaving => {
                self.waiting.push(planned);
                return Ok(());
            }
            Fault::KillWhileCatchingUp => {
                self.waiting.push(planned);
                self.make_a_joiner(planned.choice)?;
                return Ok(());
            }
            Fault::KillCoordinator => match self.cluster.coordinator.take() {
                Some(mut process) => {
                    process.kill();
                    (self.cluster.coordinator_stopped, self.cluster.coordinator_continue_at) = (false, None);
                    self.cluster.coordinator_start_at = restart_at;
                    "kill the coordinator".to_owned()
                }
                None => "kill the coordinator, but there is none".to_owned(),
            },
            Fault::PauseCoordinator => match &self.cluster.coordinator {
                Some(process) => {
                    process.signal("STOP");
                    let short = planned.choice.is_multiple_of(2);
                    let duration =
                        if short { within_the_lease(planned.length) } else { beyond_the_lease(planned.length) };
                    self.cluster.coordinator_stopped = true;
                    self.cluster.coordinator_continue_at = Some(now + duration);
                    format!("stop the coordinator for {:.1} s", duration.as_secs_f64())
                }
                None => "stop the coordinator, but there is none".to_owned(),
            },
        };
        self.did(planned.fault, &what);
        Ok(())
    }

    fn add(&mut self) -> anyhow::Result<String> {
        let index = self.cluster.add_worker()?;
        Ok(format!("add {}", self.cluster.workers[index].name()))
    }

    fn remove(&mut self, choice: u64) -> String {
        self.disturb(Cause::Closed);
        let index = (choice % self.cluster.workers.len() as u64) as usize;
        let name = self.cluster.kill_worker(index, None);
        self.cluster.workers.remove(index);
        format!("remove {name}")
    }

    /// Has a worker catch up soon, unless one is about to.
    fn make_a_joiner(&mut self, choice: u64) -> anyhow::Result<()> {
        let is_about_to = |index: &usize| self.cluster.workers[*index].stage < Stage::Member;
        let alive = self.cluster.alive();
        if alive.is_empty() || alive.iter().any(is_about_to) {
            return Ok(());
        }
        let index = alive[(choice % alive.len() as u64) as usize];
        self.disturb(Cause::Closed);
        let name = self.cluster.kill_worker(index, None);
        self.cluster.start_worker(index)?;
        self.journal.note(&format!("{name} is killed and started, to have one that catches up"));
        Ok(())
    }

    /// Kills the worker that writes the checkpoint, soon, if that is planned.
    pub(super) fn strike_while_saving(&mut self) {
        let is_meant = |planned: &Planned| planned.fault == Fault::KillWhileSaving;
        let Some(position) = self.waiting.iter().position(is_meant) else { return };
        let leader = self.ledger.leader().and_then(|process_id| self.cluster.by_process(process_id));
        let Some(leader) = leader else { return };
        let planned = self.waiting.remove(position);
        if !self.is_saving() {
            // So that it falls before, into and after the writing.
            std::thread::sleep(SAVING.mul_f64(planned.length * planned.length));
        }
        self.disturb(Cause::Closed);
        let restart_at = Instant::now() + RESTART_AFTER.mul_f64(planned.length);
        let name = self.cluster.kill_worker(leader, Some(restart_at));
        self.did(planned.fault, &format!("kill {name}, which saves a checkpoint"));
    }

    /// Kills the worker that is sent the state, or another, if that is planned.
    pub(super) fn strike_while_catching_up(&mut self, joiner: usize) -> anyhow::Result<()> {
        let is_meant = |planned: &Planned| planned.fault == Fault::KillWhileCatchingUp;
        let Some(position) = self.waiting.iter().position(is_meant) else { return Ok(()) };
        let planned = self.waiting.remove(position);
        std::thread::sleep(CATCHING_UP.mul_f64(planned.length * planned.length));
        let others: Vec<usize> = self.cluster.alive().into_iter().filter(|index| *index != joiner).collect();
        let hit_joiner = planned.choice.is_multiple_of(2) || others.is_empty();
        let victim = if hit_joiner { joiner } else { others[(planned.choice / 2) as usize % others.len()] };
        self.disturb(Cause::Closed);
        let restart_at = Instant::now() + RESTART_AFTER.mul_f64(planned.length);
        let name = self.cluster.kill_worker(victim, Some(restart_at));
        let who = if hit_joiner { "which is being sent the state" } else { "while another is sent the state" };
        self.did(planned.fault, &format!("kill {name}, {who}"));
        Ok(())
    }
}
