//! Pairs of workers that cannot reach each other, although both reach the coordinator: a firewall, a wrong address, a broken
//! switch. After a few attempts one of the two is left out, so that the others go on.
//!
//! It is not lost: it waits as a spare, and takes part again when the other one is gone, or when the link has had time to heal.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Action, Held, RunState, WorkerId};

/// Failed attempts in a row after which a pair is not grouped together any more.
const ATTEMPTS_MAX: u32 = 3;
/// After so long it is tried once more.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What is known of the links between workers.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    /// Failed attempts since the last commit, by pair.
    failed: BTreeMap<(WorkerId, WorkerId), u32>,
    /// Pairs that are kept apart, and since when.
    apart: BTreeMap<(WorkerId, WorkerId), Duration>,
}

impl Links {
    /// Counts a failure. Returns how many there were in a row.
    fn note_failure(&mut self, one: WorkerId, other: WorkerId) -> u32 {
        let count = self.failed.entry(pair(one, other)).or_default();
        *count += 1;
        *count
    }

    /// A step was reduced: all links of the group hold.
    pub(super) fn forget_failures(&mut self) {
        self.failed.clear();
    }

    /// A worker is gone, and its links with it.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        let is_of = |(one, other): &(WorkerId, WorkerId)| *one == worker || *other == worker;
        self.failed.retain(|pair, _| !is_of(pair));
        self.apart.retain(|pair, _| !is_of(pair));
    }

    /// Lets pairs try again that had time to heal.
    pub(super) fn forgive(&mut self, now: Duration) {
        self.apart.retain(|_, since| now.saturating_sub(*since) < RETRY_AFTER);
    }

    /// How many links of a worker failed since the last commit.
    fn failed_links_of(&self, worker: WorkerId) -> usize {
        self.failed.keys().filter(|(one, other)| *one == worker || *other == worker).count()
    }

    /// Whether a worker can be grouped with all of these.
    pub(super) fn reach(&self, worker: WorkerId, others: &[WorkerId]) -> bool {
        others.iter().all(|other| !self.apart.contains_key(&pair(worker, *other)))
    }

    /// Takes as many of these, in order, as can all reach each other.
    pub(super) fn connected(&self, workers: Vec<WorkerId>, most: usize) -> Vec<WorkerId> {
        let mut taken = Vec::new();
        for worker in workers {
            if taken.len() < most && self.reach(worker, &taken) {
                taken.push(worker);
            }
        }
        taken
    }
}

impl RunState {
    /// A worker of the group could not reach another one. After too many times one of the two is left out: the one whose
    /// other links fail too, else the later rank.
    pub(super) fn on_broken_link(&mut self, worker: WorkerId, peer_rank: u32, actions: &mut Vec<Action>) {
        let Some(peer) = self.formed.get(peer_rank as usize).copied() else { return };
        if peer == worker || !self.group.contains(&peer) {
            return;
        }
        let attempts = self.links.note_failure(worker, peer);
        if attempts < ATTEMPTS_MAX {
            return;
        }
        let rank = |worker: &WorkerId| self.group.iter().position(|member| member == worker);
        let [left, stays] = match (self.links.failed_links_of(worker), self.links.failed_links_of(peer)) {
            (own, others) if own > others => [worker, peer],
            (own, others) if own < others => [peer, worker],
            _ if rank(&worker) > rank(&peer) => [worker, peer],
            _ => [peer, worker],
        };
        self.links.failed.remove(&pair(left, stays));
        self.links.apart.insert(pair(left, stays), self.now);
        self.group.retain(|member| *member != left);
        // It holds the state until the others have made a step without it.
        let held = Held { next_step: self.next_step, chain: self.chain.clone(), ..Held::default() };
        self.reunion.note_held(left, &held);
        actions.push(Action::LeaveOut { worker: left, peer: stays, attempts });
        let reason = format!("it cannot reach worker {stays}, and is left out");
        actions.push(Action::Abort { generation: self.generation, reason, workers: vec![left] });
    }
}

fn pair(one: WorkerId, other: WorkerId) -> (WorkerId, WorkerId) {
    (one.min(other), one.max(other))
}
