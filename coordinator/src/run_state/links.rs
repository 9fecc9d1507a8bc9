//! Pairs of workers that cannot reach each other, although both reach the coordinator: a firewall, a wrong address, a broken
//! switch. After a few attempts one of the two is left out, so that the others go on.
//!
//! Which one: whoever was at an end of a failed link in each of the attempts, for one that can reach nobody shows by other pairs
//! each time. Of two such the one with more failed links, else the one that came later. So as few are left out as explain
//! what was seen.
//!
//! It is not lost: it waits as a spare, and takes part again when the other ones are gone, or when the links have had time to heal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Action, Held, RunState, WorkerId};

/// Attempts in a row that failed at a worker's links, after which it is left out.
const ATTEMPTS_MAX: usize = 3;
/// After so long it is tried once more.
const RETRY_AFTER: Duration = Duration::from_secs(600);

/// What is known of the links between workers.
#[derive(Debug, Clone, Default)]
pub(super) struct Links {
    /// The generations since the last commit that a pair's link has ended.
    failed: BTreeMap<(WorkerId, WorkerId), BTreeSet<u64>>,
    /// Pairs that are kept apart, and since when.
    apart: BTreeMap<(WorkerId, WorkerId), Duration>,
}

impl Links {
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

    /// With whom of these a worker's links failed most often since the last commit, and in how many generations any of its
    /// links did. One that waits in vain for what a third one could not pass on fails now and then, too.
    fn failures(&self, worker: WorkerId, among: &[WorkerId]) -> (Vec<WorkerId>, usize) {
        let links = among.iter().filter_map(|peer| Some((*peer, self.failed.get(&pair(worker, *peer))?)));
        let links: Vec<(WorkerId, &BTreeSet<u64>)> = links.collect();
        let most = links.iter().map(|(_, generations)| generations.len()).max().unwrap_or(0);
        let worst = links.iter().filter(|(_, generations)| generations.len() == most).map(|(peer, _)| *peer);
        let generations: BTreeSet<u64> =
            links.iter().flat_map(|(_, generations)| generations.iter().copied()).collect();
        (worst.collect(), generations.len())
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
    /// These links have ended the generation. After too many times in a row somebody is left out.
    pub(super) fn on_broken_links(&mut self, broken: &[(WorkerId, WorkerId)], actions: &mut Vec<Action>) {
        let is_left = |worker: &WorkerId| self.group.contains(worker);
        for (one, other) in broken.iter().filter(|(one, other)| is_left(one) && is_left(other)) {
            self.links.failed.entry(pair(*one, *other)).or_default().insert(self.generation);
        }
        while let Some((worker, peers, attempts)) = self.worst_connected() {
            self.leave_out(worker, peers, attempts, actions);
        }
    }

    /// Who is to be left out, the links to whom failed, and how often.
    fn worst_connected(&self) -> Option<(WorkerId, Vec<WorkerId>, usize)> {
        let failures = self.group.iter().map(|worker| (*worker, self.links.failures(*worker, &self.group)));
        let too_often = failures.filter(|(_, (_, attempts))| *attempts >= ATTEMPTS_MAX);
        // Of equals the last, which is the latest rank.
        let worst = too_often.max_by_key(|(_, (peers, attempts))| (*attempts, peers.len()));
        worst.map(|(worker, (peers, attempts))| (worker, peers, attempts))
    }

    fn leave_out(&mut self, worker: WorkerId, peers: Vec<WorkerId>, attempts: usize, actions: &mut Vec<Action>) {
        self.links.failed.retain(|(one, other), _| *one != worker && *other != worker);
        for peer in &peers {
            self.links.apart.insert(pair(worker, *peer), self.now);
        }
        self.group.retain(|member| *member != worker);
        // It holds the state until the others have made a step without it.
        let held = Held { next_step: self.next_step, chain: self.chain.clone(), ..Held::default() };
        self.reunion.note_held(worker, &held);
        let reason = format!("it cannot reach worker {}, and is left out", peers[0]);
        actions.push(Action::LeaveOut { worker, peers, attempts: attempts as u32 });
        actions.push(Action::Abort { generation: self.generation, reason, workers: vec![worker] });
    }
}

fn pair(one: WorkerId, other: WorkerId) -> (WorkerId, WorkerId) {
    (one.min(other), one.max(other))
}
