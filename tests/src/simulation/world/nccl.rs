//! NCCL in the simulated world: machines that have it, have another one, or have none; ids on their way; a library that does
//! not work for a while, or never.
//!
//! What is drawn here has random numbers of its own, so that the other faults of a seed stay what they are.

use ballast_common::config::CollectiveKind;
use ballast_coordinator::run_state::{Action, Event, NcclAbility, NcclId, WorkerId};

use super::{Millis, World};
use crate::simulation::rng::{Rng, mix};
use crate::simulation::worker::Activity;

/// NCCL, as a schedule has it.
#[derive(Debug)]
pub(super) struct Nccl {
    is_there: bool,
    pub(super) kind: CollectiveKind,
    seed: u64,
    /// No group of it adds up before then.
    broken_until: Millis,
    /// A machine in so many cannot make an id before then.
    no_network_until: Millis,
}

impl Nccl {
    pub(super) fn new(seed: u64, faults_end: Millis) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x4e43_434c));
        let is_there = rng.one_in(2);
        let kind = if is_there && rng.one_in(5) { CollectiveKind::Nccl } else { CollectiveKind::Auto };
        // Who insists on NCCL gets one that works in the end, or the run would have none.
        let for_ever = if kind == CollectiveKind::Auto { Millis::MAX } else { faults_end };
        let mut until = |times| match rng.one_in(times) {
            true if rng.one_in(2) => for_ever,
            true => rng.within(0..faults_end),
            false => 0,
        };
        Self { is_there, kind, seed, broken_until: until(4), no_network_until: until(4) }
    }

    /// What the workers of a machine can do.
    fn ability(&self, machine: usize) -> NcclAbility {
        let mut rng = Rng::new(mix(self.seed ^ mix(machine as u64)));
        let (version, device) = ("2.30.7".to_owned(), format!("GPU-{machine}"));
        let shares_device = rng.one_in(8);
        let able = NcclAbility::Able { version, device, shares_device };
        // The shell turns away whom a run that insists cannot use.
        match rng.within(0..20) {
            0 if self.kind == CollectiveKind::Auto => NcclAbility::OnCpu,
            1 if self.kind == CollectiveKind::Auto => NcclAbility::Unable { reason: "it was not found".to_owned() },
            2 if self.kind == CollectiveKind::Auto => {
                let (version, device) = ("2.18.5".to_owned(), format!("GPU-{machine}"));
                NcclAbility::Able { version, device, shares_device }
            }
            3 if self.kind == CollectiveKind::Auto => {
                NcclAbility::Able { version: "2.30.7".to_owned(), device: "GPU-0".to_owned(), shares_device }
            }
            _ => able,
        }
    }

    fn has_network(&self, machine: usize, now: Millis) -> bool {
        now >= self.no_network_until || !mix(self.seed ^ machine as u64).is_multiple_of(3)
    }
}

impl World {
    /// A worker that connects says what it can do.
    pub(super) fn say_nccl_ability(&mut self, id: WorkerId) {
        if self.nccl.is_there {
            let ability = self.nccl.ability(self.workers[&id].machine);
            self.say(id, Event::NcclAbility { worker: id, ability });
        }
    }

    /// The core wants NCCL: all must be able to use it, and together.
    pub(super) fn check_nccl(&self, generation: u64, workers: &[WorkerId]) -> Result<(), String> {
        self.check(generation > self.generation, "NCCL is chosen for a generation that has begun")?;
        self.check(workers.len() > 1, "NCCL is chosen for one worker alone")?;
        let known = |worker: &WorkerId| self.workers.get(worker).map(|known| self.nccl.ability(known.machine));
        // Of a worker that has just died the core does not know it yet.
        let abilities: Vec<_> = workers.iter().filter_map(|worker| Some((*worker, known(worker)?))).collect();
        for (rank, (worker, ability)) in abilities.iter().enumerate() {
            let before = abilities[..rank].iter().map(|(worker, ability)| (*worker, ability));
            if let Some(obstacle) = ability.obstacle(before) {
                return Err(format!("NCCL is chosen although worker {worker} cannot use it: {obstacle}"));
            }
        }
        Ok(())
    }

    /// An id is handed out: that of the present generation's rank 0, to all others.
    pub(super) fn check_nccl_id(&self, generation: u64, id: &NcclId, workers: &[WorkerId]) -> Result<(), String> {
        self.check(generation == self.generation, "an id of another generation is handed out")?;
        let maker = u64::from_le_bytes(id.0[8..].try_into().map_err(|_| "an id was cut")?);
        self.check(id.0[..8] == generation.to_le_bytes(), "an id was made for another generation")?;
        self.check(!workers.contains(&maker), "an id comes back to its maker")?;
        self.check(self.disk.members.contains(&maker), "an id was made by somebody else")
    }

    /// What the session of a worker does at once, whatever its device thread is at. Returns whether that is all.
    pub(super) fn on_nccl_message(&mut self, id: WorkerId, message: &Action) -> Result<bool, String> {
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(false) };
        match message {
            Action::UseNccl { generation, .. } => {
                worker.nccl = Some((*generation, None));
                Ok(true)
            }
            Action::Group { generation, workers } if workers[0] == id && worker.nccl == Some((*generation, None)) => {
                let machine = worker.machine;
                if self.nccl.has_network(machine, self.now) {
                    let bytes = [generation.to_le_bytes(), id.to_le_bytes()].concat();
                    worker.nccl = Some((*generation, Some(bytes.clone())));
                    self.say(id, Event::NcclId { worker: id, generation: *generation, id: NcclId(bytes) });
                } else {
                    let reason = "no network".to_owned();
                    self.say(id, Event::NcclUnusable { worker: id, generation: *generation, reason });
                }
                Ok(false)
            }
            Action::ShareNcclId { generation, id: bytes, .. } => {
                if worker.nccl == Some((*generation, None)) {
                    worker.nccl = Some((*generation, Some(bytes.0.clone())));
                } else {
                    return Err(format!("worker {id} is sent an id of generation {generation} that it does not await"));
                }
                if let Activity::Reducing { generation, step } = worker.activity {
                    self.reduce(id, generation, step)?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether the members of a generation, which all want to add up, have what they need for it. None: they add up over
    /// direct connections. An error: their groups are not one.
    pub(super) fn nccl_group(&self, generation: u64, group: &[WorkerId]) -> Result<Option<bool>, String> {
        let ids: Vec<_> = group.iter().map(|worker| self.workers[worker].nccl.clone()).collect();
        let of_it = |nccl: &Option<(u64, Option<Vec<u8>>)>| nccl.as_ref().is_some_and(|(of, _)| *of == generation);
        if ids.iter().flatten().any(|(of, _)| *of > generation) {
            return Ok(Some(false)); // the next generation's announcement is a moment ahead of it
        }
        if !ids.iter().any(of_it) {
            return Ok(None);
        }
        self.check(ids.iter().all(of_it), "some members of a generation use NCCL and some do not")?;
        let ids: Vec<_> = ids.into_iter().flatten().filter_map(|(_, id)| id).collect();
        self.check(ids.windows(2).all(|pair| pair[0] == pair[1]), "members of a generation have different ids")?;
        Ok(Some(ids.len() == group.len()))
    }

    /// Whether NCCL fails just now.
    pub(super) fn is_nccl_broken(&self) -> bool {
        self.now < self.nccl.broken_until
    }
}
