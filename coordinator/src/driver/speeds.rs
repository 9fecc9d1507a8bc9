//! How fast the workers are, and who gets how many slots for it. It changes how long a step takes, never its bits.

use std::collections::BTreeMap;

use super::Driver;
use crate::assignment::{even_counts, rebalanced};
use crate::events::RunEvent;
use crate::membership::WorkerId;

/// Measurements that are not counted: a worker's first steps compile kernels and fill caches.
const WARM_UP: u32 = 2;
/// Measurements of each worker before anything follows from them.
const MEASURED_MIN: u32 = 8;
/// Weight of the newest measurement in the mean.
const NEWEST: f64 = 0.2;
/// Commits between two looks at the speeds.
const LOOK_EVERY: u32 = 8;
/// A worker that takes so many times as long as the fastest is named.
const SLOW: f64 = 1.5;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Speeds {
    by_worker: BTreeMap<WorkerId, Speed>,
    commits: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Speed {
    measured: u32,
    /// Mean time for a million pixels.
    seconds: f64,
}

impl Speeds {
    /// Notes how long a worker took for its slots.
    pub(super) fn note(&mut self, worker: WorkerId, seconds: f64, pixels: u64) {
        if pixels == 0 || !seconds.is_finite() || seconds <= 0.0 {
            return;
        }
        let seconds = seconds / (pixels as f64 / 1e6);
        let speed = self.by_worker.entry(worker).or_default();
        speed.measured += 1;
        let weight = if speed.measured <= WARM_UP + 1 { 1.0 } else { NEWEST };
        speed.seconds += (seconds - speed.seconds) * weight;
    }

    /// Returns the times of these workers. None as long as one of them is not known well.
    fn seconds(&self, workers: &[WorkerId]) -> Option<Vec<f64>> {
        let known = |worker| self.by_worker.get(worker).filter(|speed| speed.measured >= WARM_UP + MEASURED_MIN);
        workers.iter().map(|worker| known(worker).map(|speed| speed.seconds)).collect()
    }
}

impl Driver {
    /// Shares the slots among the workers of a new generation.
    pub(super) fn share_slots_anew(&mut self, workers: &[WorkerId]) {
        let counts = even_counts(self.config.step.slots, workers.len() as u32);
        let seconds = self.speeds.seconds(workers);
        self.slot_counts = seconds.and_then(|seconds| rebalanced(&counts, &seconds)).unwrap_or(counts);
        self.group = workers.to_vec();
        self.speeds.by_worker.retain(|worker, _| self.sessions.contains_key(worker));
    }

    /// Shares the slots anew when the speeds ask for it. Steps that are planned already keep their share.
    pub(super) fn consider_speeds(&mut self) {
        self.speeds.commits += 1;
        if !self.speeds.commits.is_multiple_of(LOOK_EVERY) {
            return;
        }
        let Some(seconds) = self.speeds.seconds(&self.group) else { return };
        let Some(counts) = rebalanced(&self.slot_counts, &seconds) else { return };
        let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let slow = self.group.iter().zip(&seconds).filter(|(_, seconds)| **seconds > fastest * SLOW);
        let named = slow.map(|(worker, seconds)| {
            let host = self.sessions.get(worker).map_or("", |session| session.row.host.as_str());
            format!("worker {worker} ({host}) takes {:.1} times as long as the fastest", seconds / fastest)
        });
        let named: Vec<_> = named.collect();
        let why = if named.is_empty() { "the workers' speeds have changed".to_owned() } else { named.join(", ") };
        let message = format!("slots are dealt anew, {counts:?} instead of {:?}: {why}", self.slot_counts);
        tracing::info!(?counts, ?seconds, "slots are dealt by speed");
        self.slot_counts = counts;
        self.emit(RunEvent::Notice { message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_known_after_some_measurements_and_follows_changes() {
        let mut speeds = Speeds::default();
        for measured in 0..WARM_UP + MEASURED_MIN {
            assert_eq!(speeds.seconds(&[1]), None);
            // The first ones take long, for reasons of their own.
            speeds.note(1, if measured < WARM_UP { 90.0 } else { 2.0 }, 1_000_000);
        }
        assert_eq!(speeds.seconds(&[1]), Some(vec![2.0]));
        assert_eq!(speeds.seconds(&[1, 2]), None, "of all or of none");
        speeds.note(1, 0.0, 1_000_000);
        speeds.note(1, f64::NAN, 1_000_000);
        speeds.note(1, 5.0, 0);
        assert_eq!(speeds.seconds(&[1]), Some(vec![2.0]));
        for _ in 0..40 {
            speeds.note(1, 3.0, 500_000);
        }
        assert!((speeds.seconds(&[1]).unwrap()[0] - 6.0).abs() < 0.01);
    }
}
