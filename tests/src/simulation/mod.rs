//! The coordinator's pure core in a simulated world: workers, network, disk and clock with faults, all from one seed.
//!
//! The core is the one that runs (`ballast_coordinator::run_state`); `worker` does what a real worker does, in the order in
//! which it does it; `world` carries messages between them and breaks things; `truth` is what the run must come to, step by
//! step. After each event the world is compared with the truth. A schedule that went wrong is found again by its seed.

pub(crate) mod rng;
mod truth;
mod worker;
mod world;

use std::fmt;
use std::ops::AddAssign;

use world::World;

/// What happened in a schedule, or in many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Schedules that went to their end.
    pub schedules: u64,
    /// Events that the core decided on.
    pub events: u64,
    /// Steps written to the ledger, those included that a rollback took back.
    pub commits: u64,
    /// Workers that were lost.
    pub losses: u64,
    /// Workers that were sent the state and joined a running run.
    pub catch_ups: u64,
    /// Workers expelled for gradients of their own.
    pub expulsions: u64,
    /// Deaths of the coordinator.
    pub coordinator_deaths: u64,
    /// Returns to a checkpoint.
    pub rollbacks: u64,
    /// Workers that came back with what they held.
    pub returns: u64,
    /// Workers left out because they and another one could not reach each other.
    pub left_out: u64,
    /// Workers that saved their state because no coordinator came back.
    pub saved_alone: u64,
    /// Checkpoints left out because one was being written.
    pub skipped_saves: u64,
    /// Checkpoints that could not be written.
    pub failed_saves: u64,
    /// Generations whose gradients went over NCCL.
    pub nccl_generations: u64,
    /// Ids that were handed from rank 0 to the others.
    pub nccl_ids: u64,
    /// Reasons that were given for going without NCCL.
    pub nccl_fallbacks: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.commits += other.commits;
        self.losses += other.losses;
        self.catch_ups += other.catch_ups;
        self.expulsions += other.expulsions;
        self.coordinator_deaths += other.coordinator_deaths;
        self.rollbacks += other.rollbacks;
        self.returns += other.returns;
        self.saved_alone += other.saved_alone;
        self.skipped_saves += other.skipped_saves;
        self.failed_saves += other.failed_saves;
        self.left_out += other.left_out;
        self.nccl_generations += other.nccl_generations;
        self.nccl_ids += other.nccl_ids;
        self.nccl_fallbacks += other.nccl_fallbacks;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedules, events, commits, losses, catch_ups, expulsions, coordinator_deaths, rollbacks, .. } =
            self;
        let Self { returns, saved_alone, left_out, skipped_saves, failed_saves, .. } = self;
        let Self { nccl_generations, nccl_ids, nccl_fallbacks, .. } = self;
        write!(
            f,
            "{schedules} schedules, {events} events, {commits} commits, {losses} workers lost, {catch_ups} caught up, \
             {expulsions} expelled, {coordinator_deaths} coordinators killed, {rollbacks} rollbacks, {returns} workers returned, \
             {saved_alone} saved alone, {left_out} left out, {skipped_saves} saves left out, {failed_saves} failed, \
             {nccl_generations} generations over NCCL, {nccl_ids} ids handed out, {nccl_fallbacks} times without"
        )
    }
}

/// A schedule in which something was not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Finds the schedule again.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
    /// What had happened before, newest last.
    pub history: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, what, history } = self;
        writeln!(f, "seed {seed}: {what}")?;
        history.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "again: cargo run --release -p ballast-tests --bin simulate -- --seed {seed} --schedules 1")
    }
}

/// Runs the schedule of a seed.
///
/// # Errors
/// Names the first thing that was not as it must be.
pub fn simulate(seed: u64) -> Result<Tally, Violation> {
    std::panic::catch_unwind(|| World::new(seed).run()).unwrap_or_else(|_| {
        let what = "something panicked; its message stands above".to_owned();
        Err(Violation { seed, what, history: Vec::new() })
    })
}

/// Runs the schedules of `schedules` seeds from `seed` on, on all cores.
///
/// # Errors
/// The violation with the lowest seed among those that were found.
pub fn simulate_many(seed: u64, schedules: u64) -> Result<Tally, Violation> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let share = |thread: u64| (seed + thread..seed + schedules).step_by(threads as usize);
    let work = |thread: u64| {
        let mut tally = Tally::default();
        for seed in share(thread) {
            tally += simulate(seed)?;
        }
        Ok(tally)
    };
    let results: Vec<Result<Tally, Violation>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        running.into_iter().map(|thread| thread.join().expect("a violation is returned, not panicked")).collect()
    });
    let mut tally = Tally::default();
    let mut violations = Vec::new();
    for result in results {
        match result {
            Ok(part) => tally += part,
            Err(violation) => violations.push(violation),
        }
    }
    match violations.into_iter().min_by_key(|violation| violation.seed) {
        Some(violation) => Err(violation),
        None => Ok(tally),
    }
}
