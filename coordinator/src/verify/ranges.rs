//! The commits of a long run are checked in ranges, side by side. Each range begins with the chain that the commit before it
//! has on record, so that every link is checked by somebody.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ballast_common::schedule::RunSchedule;

use super::audit::{Audit, Expected};
use super::{Progress, VerifyError};
use crate::ledger::Ledger;

/// Steps below which one thread is enough.
const STEPS_PER_RANGE_MIN: u64 = 10_000;
/// Occurrences of all the schedules that are held at a time: about a gigabyte.
const OCCURRENCES_AT_ONCE: u64 = 100_000_000;
/// Steps after which progress is told.
const STEPS_PER_REPORT: u64 = 1 << 12;

/// What the ranges came to, together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) positions: u64,
    pub(super) skipped: u64,
}

/// Checks the first `committed` steps. Of several violations the first is returned.
pub(super) fn check_commits(
    ledger: &Path,
    expected: &Expected<'_>,
    committed: u64,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Totals, VerifyError> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let occurrences = expected.roster.images().max(1);
    let threads = threads.min(OCCURRENCES_AT_ONCE / occurrences).min(committed / STEPS_PER_RANGE_MIN).max(1);
    let done = AtomicU64::new(0);
    let told = |steps: u64| {
        let done = done.fetch_add(steps, Ordering::Relaxed) + steps;
        progress(Progress::Steps { done, of: committed });
    };
    let check = |steps: Range<u64>| check_range(ledger, expected, &steps, &told);
    let results: Vec<Result<Totals, VerifyError>> = std::thread::scope(|scope| {
        let ranges = split(expected.run_schedule, committed, threads);
        let running: Vec<_> = ranges.into_iter().map(|range| scope.spawn(|| check(range))).collect();
        running.into_iter().map(|thread| thread.join().expect("a violation is returned, not panicked")).collect()
    });
    results.into_iter().try_fold(Totals::default(), |sum, part| {
        let part = part?;
        Ok(Totals { positions: sum.positions + part.positions, skipped: sum.skipped + part.skipped })
    })
}

fn check_range(
    ledger: &Path,
    expected: &Expected<'_>,
    steps: &Range<u64>,
    told: &dyn Fn(u64),
) -> Result<Totals, VerifyError> {
    let ledger = Ledger::open_to_read(ledger)?;
    let before = match steps.start.checked_sub(1) {
        Some(step) => ledger.chain_of(step)?.unwrap_or_default(), // a missing one is missed in the range before
        None => Vec::new(),
    };
    let mut audit = Audit::new(expected, steps, before);
    let mut since_report = 0;
    ledger.for_each_commit(steps.clone(), |stored| {
        since_report += 1;
        if since_report == STEPS_PER_REPORT {
            told(std::mem::take(&mut since_report));
        }
        audit.check(stored)
    })?;
    audit.finish()?;
    Ok(Totals { positions: audit.positions, skipped: audit.skipped })
}

/// Cuts the steps into ranges of about equal length, where epochs end if there are enough of them: each range then computes
/// schedules of its own.
fn split(schedule: &RunSchedule, committed: u64, ranges: u64) -> Vec<Range<u64>> {
    let cut = |index: u64| {
        let step = (u128::from(committed) * u128::from(index) / u128::from(ranges)) as u64;
        match schedule.locate(step) {
            Some((epoch, _)) if index < ranges && schedule.epochs() >= 4 * ranges => schedule.first_step(epoch),
            _ => step,
        }
    };
    (0..ranges).map(|index| cut(index)..cut(index + 1)).collect()
}
