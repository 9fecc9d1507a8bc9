//! Which faults, and when: dealt from a shuffled deck, so that each kind has its share. All from one seed.
//!
//! A fault is due when so many steps are committed, and then some part of a step later. So a run always has as many steps as
//! its faults need, on any machine, and makes progress between them; what exactly is hit is decided by the clock.

use crate::simulation::rng::Rng;

/// Committed steps from one fault to the next, on average.
pub(super) const STEPS_PER_FAULT: u64 = 4;
/// Steps before the first fault: the start is measured undisturbed.
pub(super) const STEPS_BEFORE: u64 = 20;
/// Steps after the last one is due: some wait for a checkpoint.
pub(super) const STEPS_AFTER: u64 = 15;

/// What is done to the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL; started again a little later.
    KillWorker,
    /// SIGSTOP, and SIGCONT before its lease is over.
    PauseWorker,
    /// SIGSTOP, and SIGCONT when it has long been given up.
    HangWorker,
    /// SIGKILL to all workers at once.
    KillAllWorkers,
    /// One more worker.
    AddWorker,
    /// SIGKILL, for good.
    RemoveWorker,
    /// SIGKILL to the worker that writes a checkpoint, while it does.
    KillWhileSaving,
    /// SIGKILL while a worker is sent the state: to it, or to another.
    KillWhileCatchingUp,
    /// SIGKILL to the coordinator; started again a little later.
    KillCoordinator,
    /// SIGSTOP to the coordinator, and SIGCONT.
    PauseCoordinator,
}

/// A fault and its moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Planned {
    pub(super) fault: Fault,
    /// When so many steps are committed,
    pub(super) at_step: u64,
    /// and after this part of a step.
    pub(super) within_step: f64,
    /// Chooses who is hit.
    pub(super) choice: u64,
    /// In `0..1`: how long a pause is, or the time to the next start.
    pub(super) length: f64,
}

/// How many of 50 faults are of each kind.
const DECK: [(Fault, usize); 10] = [
    (Fault::KillWorker, 15),
    (Fault::PauseWorker, 7),
    (Fault::HangWorker, 3),
    (Fault::KillAllWorkers, 2),
    (Fault::AddWorker, 3),
    (Fault::RemoveWorker, 3),
    (Fault::KillWhileSaving, 4),
    (Fault::KillWhileCatchingUp, 4),
    (Fault::KillCoordinator, 6),
    (Fault::PauseCoordinator, 3),
];

impl Fault {
    /// Says whether it is done to the coordinator.
    pub(super) fn is_coordinators(self) -> bool {
        matches!(self, Self::KillCoordinator | Self::PauseCoordinator)
    }

    /// Names it in the summary.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::KillWorker => "kills",
            Self::PauseWorker => "pauses",
            Self::HangWorker => "hangs",
            Self::KillAllWorkers => "kills of all",
            Self::AddWorker => "added",
            Self::RemoveWorker => "removed",
            Self::KillWhileSaving => "kills in saving",
            Self::KillWhileCatchingUp => "kills in catch-up",
            Self::KillCoordinator => "coordinator kills",
            Self::PauseCoordinator => "coordinator pauses",
        }
    }
}

/// Steps of a run with so many faults.
pub(super) fn steps(faults: u64) -> u64 {
    STEPS_BEFORE + faults * STEPS_PER_FAULT + STEPS_AFTER
}

/// Plans so many faults, in the order in which they are due.
pub(super) fn plan(seed: u64, faults: u64, with_coordinator: bool) -> Vec<Planned> {
    let mut rng = Rng::new(seed);
    let mut deck: Vec<Fault> = Vec::new();
    let mut planned: Vec<Planned> = (0..faults)
        .map(|_| {
            if deck.is_empty() {
                let dealt = DECK.iter().filter(|(fault, _)| with_coordinator || !fault.is_coordinators());
                deck = dealt.flat_map(|(fault, count)| std::iter::repeat_n(*fault, *count)).collect();
            }
            let fault = deck.swap_remove(rng.within(0..deck.len() as u64) as usize);
            Planned {
                fault,
                at_step: STEPS_BEFORE + rng.within(0..faults * STEPS_PER_FAULT),
                within_step: fraction(&mut rng),
                choice: rng.within(0..u64::MAX),
                length: fraction(&mut rng),
            }
        })
        .collect();
    planned.sort_by(|a, b| (a.at_step, a.within_step).partial_cmp(&(b.at_step, b.within_step)).expect("no NaN"));
    planned
}

/// A number in `0..1`.
fn fraction(rng: &mut Rng) -> f64 {
    rng.within(0..1 << 32) as f64 / (1_u64 << 32) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_faults_have_every_kind_in_its_share() {
        for seed in 0..20 {
            let planned = plan(seed, 100, true);
            for (fault, count) in DECK {
                assert_eq!(planned.iter().filter(|planned| planned.fault == fault).count(), 2 * count, "{fault:?}");
            }
        }
        assert!(plan(1, 100, false).iter().all(|planned| !planned.fault.is_coordinators()));
    }

    #[test]
    fn faults_come_in_order_and_the_last_one_in_time() {
        let planned = plan(3, 250, true);
        assert!(planned.is_sorted_by_key(|planned| planned.at_step));
        let due = |planned: &Planned| (STEPS_BEFORE..steps(250) - STEPS_AFTER).contains(&planned.at_step);
        assert!(planned.iter().all(due));
        assert!(plan(3, 0, true).is_empty());
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(plan(7, 40, true), plan(7, 40, true));
        assert_ne!(plan(7, 40, true), plan(8, 40, true));
    }
}
