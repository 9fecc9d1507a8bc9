//! What a generation's gradients travel over: NCCL where all its members can use it together, direct connections otherwise;
//! and NCCL's unique id on its way from rank 0 to the others.
//!
//! An id belongs to one generation. Rank 0 makes it when it hears of the generation, and it goes through here to the other
//! members; what comes of an earlier generation, from another rank, or a second time is dropped. Who is lost meanwhile ends
//! the generation, as ever, and the next one has a rank 0 and an id of its own.
//!
//! NCCL may fail where direct connections do not: a network that it cannot use, no shared memory. After a few generations in a
//! row without a step the run goes on over direct connections, and tries NCCL again later; one that was told to use NCCL saves
//! and ends.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ballast_common::config::CollectiveKind;

use super::{Action, Phase, RunState, WorkerId};

/// Length of NCCL's unique id.
pub const NCCL_ID_BYTES: usize = 128;

/// Generations in a row that NCCL may fail without a step in between.
const ATTEMPTS_MAX: u32 = 3;
/// After so long over direct connections it is tried once more.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// The unique id of a communicator: a secret of the run, so it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct NcclId(pub Vec<u8>);

impl fmt::Debug for NcclId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NcclId(..)")
    }
}

/// What a worker can do with NCCL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NcclAbility {
    /// Nothing: it computes on the CPU, where nobody expects it.
    #[default]
    OnCpu,
    /// It computes on a GPU and cannot use NCCL.
    Unable {
        /// Why.
        reason: String,
    },
    /// It can, with others like it.
    Able {
        /// Version of its library; all ranks need the same.
        version: String,
        /// Tells its GPU from every other; each rank needs one of its own.
        device: String,
        /// Unless it may be shared.
        shares_device: bool,
    },
}

impl NcclAbility {
    /// Says why a worker cannot use NCCL together with these; none: it can.
    pub fn obstacle<'a>(&self, others: impl IntoIterator<Item = (WorkerId, &'a NcclAbility)>) -> Option<String> {
        let Self::Able { version, device, shares_device } = self else {
            return Some(match self {
                Self::Unable { reason } => reason.clone(),
                _ => "it computes on the CPU".to_owned(),
            });
        };
        others.into_iter().find_map(|(other, ability)| match ability {
            Self::Able { version: its, .. } if its != version => {
                Some(format!("it has NCCL {version}, worker {other} has {its}, and all need the same"))
            }
            Self::Able { device: its, shares_device: too, .. } if its == device && !(*shares_device && *too) => {
                Some(format!("it has the same GPU as worker {other}, and NCCL needs one for each"))
            }
            _ => None,
        })
    }
}

/// What is known of NCCL's use in a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Nccl {
    abilities: BTreeMap<WorkerId, NcclAbility>,
    /// The present generation uses it.
    is_in_use: bool,
    /// The present generation's id has been handed out.
    has_id: bool,
    /// Generations in a row in which it failed.
    failures: u32,
    /// Since when it is not used for its failures, and what the last one was.
    off: Option<(Duration, String)>,
    /// The last reason that was given for not using it.
    said: Option<String>,
}

impl Nccl {
    /// A step was reduced.
    pub(super) fn forget_failures(&mut self) {
        self.failures = 0;
    }

    /// A worker is gone: if NCCL failed on somebody lately, this may be why.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        self.abilities.remove(&worker);
        self.failures = 0;
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.is_in_use
    }

    fn of(&self, worker: WorkerId) -> NcclAbility {
        self.abilities.get(&worker).cloned().unwrap_or_default()
    }

    /// Says why these cannot use NCCL together. None: they can.
    fn obstacle(&self, workers: &[WorkerId]) -> Option<String> {
        let abilities: Vec<_> = workers.iter().map(|worker| (*worker, self.of(*worker))).collect();
        let obstacles = abilities.iter().enumerate().filter_map(|(rank, (worker, ability))| {
            let before = abilities[..rank].iter().map(|(worker, ability)| (*worker, ability));
            Some((*worker, ability.obstacle(before)?))
        });
        let obstacles: Vec<_> = obstacles.collect();
        let others = match obstacles.len() {
            0 | 1 => String::new(),
            count => format!(", and {} more cannot either", count - 1),
        };
        obstacles.first().map(|(worker, reason)| format!("worker {worker} cannot use NCCL: {reason}{others}"))
    }

    fn all_on_cpu(&self, workers: &[WorkerId]) -> bool {
        workers.iter().all(|worker| self.of(*worker) == NcclAbility::OnCpu)
    }
}

impl RunState {
    /// A worker says what it can do.
    pub(super) fn on_nccl_ability(&mut self, worker: WorkerId, ability: NcclAbility) {
        if self.membership.get(worker).is_some() {
            self.nccl.abilities.insert(worker, ability);
        }
    }

    /// Chooses what the gradients of the generation that is being formed travel over, and says so before it is announced.
    pub(super) fn choose_transport(&mut self, actions: &mut Vec<Action>) {
        let obstacle = self.nccl_obstacle();
        self.nccl.has_id = false;
        self.nccl.is_in_use = obstacle.is_none();
        match obstacle {
            None => {
                self.nccl.said = None;
                actions.push(Action::UseNccl { generation: self.generation, workers: self.group.clone() });
            }
            // Each reason once, until it is another one.
            Some(reason) if !reason.is_empty() && self.nccl.said.as_ref() != Some(&reason) => {
                self.nccl.said = Some(reason.clone());
                actions.push(Action::WithoutNccl { reason });
            }
            Some(_) => {}
        }
    }

    /// Says why the group does not use NCCL; nothing where nobody expects it to. None: it does.
    fn nccl_obstacle(&mut self) -> Option<String> {
        let is_expected =
            self.config.collective != CollectiveKind::Tcp && self.group.len() > 1 && !self.nccl.all_on_cpu(&self.group);
        if !is_expected {
            return Some(String::new());
        }
        self.nccl.off.take_if(|(since, _)| self.now.saturating_sub(*since) >= RETRY_AFTER);
        match &self.nccl.off {
            Some((_, reason)) => Some(reason.clone()),
            None => self.nccl.obstacle(&self.group),
        }
    }

    /// An id has come: it goes to the other members, if it is the one that they wait for.
    pub(super) fn on_nccl_id(&mut self, worker: WorkerId, generation: u64, id: NcclId, actions: &mut Vec<Action>) {
        let is_awaited = generation == self.generation && self.nccl.is_in_use && !self.nccl.has_id;
        if !is_awaited || self.formed.first() != Some(&worker) || !self.group.contains(&worker) {
            return; // its generation has ended, or it is a copy
        }
        self.nccl.has_id = true;
        let workers = self.group.iter().copied().filter(|member| *member != worker).collect();
        actions.push(Action::ShareNcclId { generation, id, workers });
    }

    /// Rank 0 could not make an id: it cannot use NCCL, although it thought so.
    pub(super) fn on_nccl_unusable(
        &mut self,
        worker: WorkerId,
        generation: u64,
        reason: String,
        actions: &mut Vec<Action>,
    ) {
        if generation != self.generation || !self.nccl.is_in_use || !self.group.contains(&worker) {
            return;
        }
        self.nccl.abilities.insert(worker, NcclAbility::Unable { reason: reason.clone() });
        let is_reducing = matches!(self.phase, Phase::Stepping { .. } | Phase::Settling(_));
        if is_reducing && self.config.collective == CollectiveKind::Nccl {
            self.lose(worker, format!("it cannot use NCCL: {reason}"), actions);
            return;
        }
        if !matches!(self.phase, Phase::Stepping { .. }) {
            return; // nothing is reduced before the next generation
        }
        self.regroup(&format!("worker {worker} cannot use NCCL: {reason}"), actions);
    }

    /// The group could not reduce by NCCL. NCCL's word for who is to blame is not taken: over direct connections it would
    /// show. Returns whether the run ends for it.
    pub(super) fn on_nccl_failure(&mut self, worker: WorkerId, reason: &str, actions: &mut Vec<Action>) -> bool {
        self.nccl.failures += 1;
        if self.nccl.failures < ATTEMPTS_MAX {
            return false;
        }
        self.nccl.failures = 0;
        let what = format!("NCCL failed {ATTEMPTS_MAX} times in a row, the last time on worker {worker}: {reason}");
        if self.config.collective == CollectiveKind::Nccl {
            self.given_up = Some(format!("{what}; the state after {} steps is saved", self.next_step));
            self.close_with(self.group.clone(), actions);
            return true;
        }
        self.nccl.off = Some((self.now, what));
        false
    }
}
