//! What breaks: processes, links and clocks. Every fault ends by itself, and none begins after `faults_end`.

use std::collections::{BTreeMap, BTreeSet};

use ballast_coordinator::run_state::{Event, WorkerId};

use super::{Happening, Millis, World};

/// A connection without an answer for so long is closed (HTTP/2 keep-alive).
const KEEP_ALIVE: Millis = 8_000;
/// Kinds of faults. A schedule has some of them only, so that rare ones are not always drowned by the others.
const KINDS: u64 = 11;
/// The kind that is no event but a habit: messages arrive twice, the second time late.
const DUPLICATES: u64 = 11;

/// The state of the network.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Machines that the coordinator cannot reach, and until when.
    cut_off: BTreeMap<usize, Millis>,
    /// Machines whose messages are slow, by how much, and until when.
    slow: BTreeMap<usize, (Millis, Millis)>,
    /// Pairs of machines that cannot reach each other, and until when.
    apart: BTreeMap<(usize, usize), Millis>,
    /// Pairs of machines that ever could not.
    were_apart: BTreeSet<(usize, usize)>,
    /// When the newest message of a connection arrives, by direction: order is kept.
    newest: BTreeMap<(WorkerId, bool), Millis>,
}

impl Links {
    pub(super) fn is_cut_off(&self, machine: usize, now: Millis) -> bool {
        self.cut_off.get(&machine).is_some_and(|until| *until > now)
    }

    pub(super) fn are_apart(&self, one: usize, other: usize, now: Millis) -> bool {
        self.apart.get(&(one.min(other), one.max(other))).is_some_and(|until| *until > now)
    }
}

impl World {
    /// Says when a message arrives that is sent now.
    pub(super) fn arrival(&mut self, machine: usize, worker: WorkerId, to_coordinator: bool) -> Millis {
        let mut time = self.now + self.rng.within(0..15);
        if let Some((delay, until)) = self.links.slow.get(&machine)
            && *until > self.now
        {
            time += delay;
        }
        // What is sent over a dead link arrives when it lives again.
        time = time.max(self.links.cut_off.get(&machine).copied().unwrap_or(0));
        let newest = self.links.newest.entry((worker, to_coordinator)).or_default();
        *newest = time.max(*newest);
        *newest
    }

    /// Whether the link between two workers was ever cut. One that has ended cannot be asked any more.
    pub(super) fn were_apart(&self, one: WorkerId, other: WorkerId) -> bool {
        let machine = |worker| self.workers.get(&worker).map(|worker| worker.machine);
        let (Some(one), Some(other)) = (machine(one), machine(other)) else { return true };
        self.links.were_apart.contains(&(one.min(other), one.max(other)))
    }

    pub(super) fn duplicates_now(&self) -> bool {
        self.enabled_faults >> DUPLICATES & 1 == 1 && self.now < self.faults_end
    }

    pub(super) fn on_fault(&mut self) -> Result<(), String> {
        if self.now >= self.faults_end {
            return Ok(());
        }
        let delay = self.rng.within(20..1_500);
        self.plan(delay, Happening::Fault);
        let kind = self.rng.within(0..KINDS);
        if self.enabled_faults >> kind & 1 == 0 {
            return Ok(());
        }
        let workers: Vec<WorkerId> = self.workers.keys().copied().collect();
        let worker = self.rng.pick(&workers);
        let machine = self.rng.within(0..self.machines as u64) as usize;
        let until = self.now + self.rng.within(100..8_000);
        match (kind, worker) {
            (0, Some(worker)) => self.end_worker(worker, true),
            // Its host loses power: nobody closes its connections.
            (1, Some(worker)) => self.end_worker(worker, false),
            (2, Some(worker)) => {
                let worker = self.workers.get_mut(&worker).expect("it was listed");
                worker.paused_until = until.max(worker.paused_until);
            }
            (3, _) => self.cut_off(machine),
            (4, _) => {
                let other = self.rng.within(0..self.machines as u64) as usize;
                let pair = (machine.min(other), machine.max(other));
                self.links.apart.insert(pair, until);
                self.links.were_apart.insert(pair);
            }
            (5, _) => {
                let delay = self.rng.within(100..4_000);
                self.links.slow.insert(machine, (delay, until));
            }
            (6, Some(worker)) => self.workers.get_mut(&worker).expect("it was listed").corrupt_until = until,
            (7, _) if self.core.is_some() && self.rng.one_in(3) => self.kill_coordinator(),
            (8, _) => self.coordinator_paused_until = until.max(self.coordinator_paused_until),
            (9, _) => self.clock_offset += self.rng.within(1_000..3_600_000),
            (10, _) if self.rng.one_in(4) && self.machines < 9 => {
                let machine = self.machines;
                self.machines += 1;
                self.plan(0, Happening::StartWorker { machine });
            }
            (10, _) if self.rng.one_in(8) => return self.decide(Event::StopRequested),
            _ => {}
        }
        Ok(())
    }

    /// The link between the coordinator and a machine goes down for a while.
    fn cut_off(&mut self, machine: usize) {
        let length = self.rng.within(100..15_000);
        let until = self.links.cut_off.entry(machine).or_default();
        *until = (self.now + length).max(*until);
        if length > KEEP_ALIVE {
            let here: Vec<_> =
                self.workers.iter().filter(|(_, worker)| worker.machine == machine).map(|(id, _)| *id).collect();
            for worker in here {
                self.plan(KEEP_ALIVE, Happening::Broken { worker });
            }
        }
    }
}
