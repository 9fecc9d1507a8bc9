//! Who takes part: workers, what they are doing, and when they were last heard. Pure: the clock comes in as a number.

use std::collections::BTreeMap;
use std::time::Duration;

/// Number of a worker within a run, never given twice.
pub type WorkerId = u64;

/// What the coordinator knows of a worker's progress towards work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerState {
    /// Joined, and loading its model.
    Loading,
    /// Holds parameters of this hash and can be given steps.
    Ready { params_hash: String },
}

/// A worker that is connected.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) state: WorkerState,
    last_seen: Duration,
}

/// All connected workers by id, in the order they joined.
#[derive(Debug, Clone, Default)]
pub(crate) struct Membership {
    members: BTreeMap<WorkerId, Member>,
}

impl Membership {
    /// Takes in a worker that has just joined.
    pub(crate) fn join(&mut self, worker: WorkerId, now: Duration) {
        self.members.insert(worker, Member { state: WorkerState::Loading, last_seen: now });
    }

    /// Notes a sign of life. Returns false when the worker is not a member.
    pub(crate) fn seen(&mut self, worker: WorkerId, now: Duration) -> bool {
        self.members.get_mut(&worker).map(|member| member.last_seen = now).is_some()
    }

    /// Notes that a worker has loaded its model.
    pub(crate) fn ready(&mut self, worker: WorkerId, params_hash: String) {
        if let Some(member) = self.members.get_mut(&worker) {
            member.state = WorkerState::Ready { params_hash };
        }
    }

    /// Removes a worker. Returns false when it was no member.
    pub(crate) fn remove(&mut self, worker: WorkerId) -> bool {
        self.members.remove(&worker).is_some()
    }

    /// Returns a member.
    pub(crate) fn get(&self, worker: WorkerId) -> Option<&Member> {
        self.members.get(&worker)
    }

    /// Counts everybody as heard just now: nobody could be.
    pub(crate) fn excuse(&mut self, now: Duration) {
        self.members.values_mut().for_each(|member| member.last_seen = now);
    }

    /// Names the workers that were silent for longer than the lease.
    pub(crate) fn expired(&self, now: Duration, lease: Duration) -> Vec<WorkerId> {
        let silent = |member: &Member| now.saturating_sub(member.last_seen) > lease;
        self.members.iter().filter(|(_, member)| silent(member)).map(|(id, _)| *id).collect()
    }

    /// Names the workers that can be given work, in the order they joined.
    pub(crate) fn ready_workers(&self) -> Vec<WorkerId> {
        let ready = |member: &Member| matches!(member.state, WorkerState::Ready { .. });
        self.members.iter().filter(|(_, member)| ready(member)).map(|(id, _)| *id).collect()
    }

    /// Names all workers.
    pub(crate) fn all(&self) -> Vec<WorkerId> {
        self.members.keys().copied().collect()
    }

    /// Count of connected workers.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    #[test]
    fn silence_beyond_the_lease_expires_a_worker() {
        let mut membership = Membership::default();
        membership.join(1, Duration::ZERO);
        membership.join(2, Duration::ZERO);
        assert!(membership.seen(2, Duration::from_secs(2)));
        assert!(membership.expired(Duration::from_secs(3), LEASE).is_empty());
        assert_eq!(membership.expired(Duration::from_secs(4), LEASE), [1]);
        assert!(membership.remove(1) && !membership.remove(1));
        assert!(!membership.seen(1, Duration::from_secs(5)));
    }

    #[test]
    fn only_loaded_workers_are_ready() {
        let mut membership = Membership::default();
        membership.join(7, Duration::ZERO);
        membership.join(3, Duration::ZERO);
        membership.ready(7, "hash".into());
        assert_eq!((membership.ready_workers(), membership.all()), (vec![7], vec![3, 7]));
    }
}
