//! The core is driven by a small simulated world: workers that load, vote, apply, do milestones, and die.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ballast_common::config::CollectiveKind;
use proptest::prelude::*;

use super::*;

#[path = "run_state/joins_tests.rs"]
mod joins;
#[path = "run_state/links_tests.rs"]
mod links;
#[path = "run_state/milestones_tests.rs"]
mod milestones_tests;
#[path = "run_state/nccl_tests.rs"]
mod nccl_tests;
#[path = "run_state/reunion_tests.rs"]
mod reunion;
#[path = "run_state/settling_tests.rs"]
mod settling;

fn config(stop_step: u64, workers: usize) -> CoreConfig {
    CoreConfig {
        first_step: 0,
        stop_step,
        checkpoint_at: BTreeSet::from([2]),
        sample_at: BTreeSet::from([0, 2]),
        workers,
        min_workers: 1,
        join_timeout: Duration::from_secs(60),
        lease: Duration::from_secs(3),
        plan_ahead: 2,
        slots: 4,
        collective: CollectiveKind::Auto,
        catch_up_timeout: Duration::from_secs(600),
        last_generation: 0,
        chain: String::new(),
        rolled_back_from: 0,
        may_return: false,
        rejoin_timeout: Duration::from_secs(30),
        max_wait: Duration::from_secs(600),
        reunion: None,
    }
}

/// What a worker holds that has just loaded its model.
fn held(next_step: u64, params_hash: String) -> Held {
    Held { next_step, params_hash, ..Held::default() }
}

/// The ledger's chain after so many steps.
fn chain(steps: u64) -> String {
    if steps == 0 { String::new() } else { format!("chain {steps}") }
}

/// Messages a simulated worker has received and not handled, and what it has applied.
#[derive(Default)]
struct Worker {
    inbox: VecDeque<Action>,
    planned: BTreeMap<u64, u64>,
    applied: Vec<u64>,
    generation: u64,
}

struct World {
    core: RunState,
    workers: BTreeMap<WorkerId, Worker>,
    now: Duration,
    /// Number of the worker that joins next.
    next_worker: WorkerId,
    committed: Vec<u64>,
    done: Vec<(Milestone, u64)>,
    ending: Option<Ending>,
    /// A worker that is killed while a commit is being written.
    die_in_commit: Option<WorkerId>,
}

impl World {
    fn new(config: CoreConfig) -> Self {
        let count = config.workers as u64;
        let mut world = Self {
            core: RunState::new(config, Duration::ZERO),
            workers: BTreeMap::new(),
            now: Duration::ZERO,
            next_worker: count + 1,
            committed: vec![],
            done: vec![],
            ending: None,
            die_in_commit: None,
        };
        for worker in 1..=count {
            world.workers.insert(worker, Worker::default());
            world.event(Event::Joined { worker, former: None });
        }
        for worker in 1..=count {
            world.event(Event::Ready { worker, held: held(0, "params".into()) });
        }
        world
    }

    /// A worker arrives, and loads the model at once.
    fn join(&mut self) -> WorkerId {
        let worker = self.next_worker;
        self.next_worker += 1;
        self.workers.insert(worker, Worker::default());
        self.event(Event::Joined { worker, former: None });
        self.event(Event::Ready { worker, held: held(0, "of the model folder".into()) });
        worker
    }

    fn event(&mut self, event: Event) {
        for action in self.core.on(event, self.now) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        let workers = match &action {
            Action::Group { workers, .. }
            | Action::Plan { workers, .. }
            | Action::Apply { workers, .. }
            | Action::Abort { workers, .. }
            | Action::Milestone { workers, .. } => workers.clone(),
            Action::Offer { source: worker, .. } | Action::Fetch { joiner: worker, .. } => vec![*worker],
            Action::Refuse { worker, .. } | Action::Evict { worker, .. } => {
                self.workers.remove(worker);
                return;
            }
            Action::Commit { step, .. } => {
                self.committed.push(*step);
                let step = *step;
                if let Some(worker) = self.die_in_commit.take() {
                    self.kill(worker);
                }
                self.event(Event::Committed { step, chain: chain(step + 1) });
                return;
            }
            Action::MilestoneDone { milestone, next_step } => {
                self.done.push((*milestone, *next_step));
                return;
            }
            Action::Ended(ending) => {
                self.ending = Some(ending.clone());
                return;
            }
            _ => return,
        };
        for worker in workers {
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.inbox.push_back(action.clone());
            }
        }
    }

    fn kill(&mut self, worker: WorkerId) {
        if self.workers.remove(&worker).is_some() {
            self.event(Event::Left { worker, reason: "killed".into() });
        }
    }

    /// Lets a worker handle one message, as a real one would. Returns false when it had none.
    fn turn(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        let Some(message) = worker.inbox.pop_front() else { return false };
        match message {
            Action::Group { generation, .. } => {
                worker.generation = generation;
                worker.planned.clear();
            }
            Action::Plan { generation, step, .. } if generation == worker.generation => {
                worker.planned.insert(step, generation);
                if step == worker.applied.len() as u64 {
                    self.vote(id, step);
                }
            }
            Action::Apply { step, generation, .. } => {
                assert_eq!(step, worker.applied.len() as u64, "a step is applied once and in order");
                assert!(self.committed.contains(&step), "a step is applied only after its commit");
                worker.applied.push(step);
                if worker.planned.get(&(step + 1)) == Some(&generation) {
                    self.vote(id, step + 1);
                }
            }
            Action::Abort { .. } => worker.planned.clear(),
            Action::Offer { transfer, next_step, .. } => {
                assert_eq!(next_step, worker.applied.len() as u64, "a source stands where it is asked to");
                let state_hash = format!("state after {next_step}");
                self.event(Event::Offered { worker: id, transfer, state_hash });
            }
            Action::Fetch { source, transfer, next_step, state_hash, .. } => {
                let event = match self.workers.get(&source).map(|source| source.applied.clone()) {
                    Some(applied) if applied.len() as u64 == next_step => {
                        self.workers.get_mut(&id).expect("it has a turn").applied = applied;
                        Event::CaughtUp { worker: id, transfer, state_hash }
                    }
                    _ => Event::FetchFailed { worker: id, transfer, reason: "no such peer".into() },
                };
                self.event(event);
            }
            Action::Milestone { milestone, next_step, request, .. } => {
                assert_eq!(next_step, worker.applied.len() as u64, "a milestone sees the parameters it names");
                let params_hash = Some(format!("after {next_step}"));
                self.event(Event::Done { worker: id, milestone, next_step, request, params_hash });
            }
            _ => {}
        }
        true
    }

    fn vote(&mut self, worker: WorkerId, step: u64) {
        let generation = self.workers[&worker].generation;
        self.event(Event::Reduced { worker, generation, step, gradient_hash: format!("gradient {step}") });
    }

    /// Runs until nobody has anything to do, and nothing is left to be gathered.
    fn settle(&mut self) {
        while self.workers.keys().copied().collect::<Vec<_>>().into_iter().any(|worker| self.turn(worker))
            || self.let_time_pass()
        {}
    }

    /// Lets the core decide what it has gathered. False when it does not gather anything.
    fn let_time_pass(&mut self) -> bool {
        let at = self.core.next_look();
        self.now = at.unwrap_or(self.now).max(self.now);
        if at.is_some() {
            self.event(Event::Tick);
        }
        at.is_some()
    }
}

/// Lets the core decide what it has gathered.
fn settled(core: &mut RunState) -> Vec<Action> {
    let at = core.next_look().expect("it gathers");
    core.on(Event::Tick, at)
}

#[test]
fn a_quiet_run_commits_every_step_once_and_closes() {
    let mut world = World::new(config(4, 3));
    world.settle();
    assert_eq!(world.committed, [0, 1, 2, 3]);
    assert_eq!(world.ending, Some(Ending::Finished));
    assert_eq!(
        world.done,
        [
            (Milestone::Samples, 0),
            (Milestone::Checkpoint, 2),
            (Milestone::Samples, 2),
            (Milestone::Checkpoint, 4),
            (Milestone::Samples, 4),
            (Milestone::Final, 4)
        ]
    );
    assert!(world.workers.values().all(|worker| worker.applied == [0, 1, 2, 3]));
}

#[test]
fn a_stop_finishes_the_step_in_hand_saves_and_draws_nothing() {
    let mut world = World::new(config(100, 2));
    while world.committed.len() < 5 {
        let _ = world.turn(1) | world.turn(2);
    }
    world.event(Event::StopRequested);
    world.settle();
    let next_step = world.committed.len() as u64;
    assert!((5..=6).contains(&next_step), "{next_step}");
    assert_eq!(world.ending, Some(Ending::Interrupted { next_step }));
    assert_eq!(world.done.last(), Some(&(Milestone::Checkpoint, next_step)));
}

#[test]
fn a_stop_before_the_start_ends_at_once() {
    let mut core = RunState::new(config(9, 2), Duration::ZERO);
    let actions = core.on(Event::StopRequested, Duration::ZERO);
    assert_eq!(actions.last(), Some(&Action::Ended(Ending::Interrupted { next_step: 0 })));
}

#[test]
fn a_worker_lost_while_the_commit_is_written_changes_nothing() {
    let mut world = World::new(config(3, 2));
    world.die_in_commit = Some(2);
    world.settle();
    assert_eq!((world.committed, world.ending), (vec![0, 1, 2], Some(Ending::Finished)));
    assert_eq!(world.workers[&1].applied, [0, 1, 2]);
}

#[test]
fn the_last_worker_lost_fails_the_run() {
    let mut world = World::new(config(3, 1));
    world.kill(1);
    let Some(Ending::Failed { reason }) = world.ending else { panic!("{:?}", world.ending) };
    assert!(reason.contains("no worker is left after 0 steps") && reason.contains("killed"), "{reason}");
}

#[test]
fn differing_gradients_are_computed_again_once_and_then_fail() {
    let mut core = World::new(config(3, 2)).core;
    let vote = |core: &mut RunState, worker, generation, hash: &str| {
        let gradient_hash = hash.to_owned();
        core.on(Event::Reduced { worker, generation, step: 0, gradient_hash }, Duration::ZERO)
    };
    vote(&mut core, 1, 1, "a");
    let actions = vote(&mut core, 2, 1, "b");
    assert!(actions.iter().any(|action| matches!(action, Action::Abort { generation: 1, .. })), "{actions:?}");
    assert!(actions.contains(&Action::Plan { generation: 2, step: 0, workers: vec![1, 2] }));
    vote(&mut core, 1, 2, "a");
    let actions = vote(&mut core, 2, 2, "b");
    assert!(matches!(actions.last(), Some(Action::Ended(Ending::Failed { .. }))), "{actions:?}");
}

#[test]
fn stale_votes_do_not_count() {
    let mut core = World::new(config(3, 2)).core;
    let gradient_hash = "g".to_owned();
    let stale = |worker, generation, step| Event::Reduced { worker, generation, step, gradient_hash: "g".into() };
    for event in [stale(1, 0, 0), stale(2, 9, 0), stale(2, 1, 1), stale(77, 1, 0)] {
        assert_eq!(core.on(event, Duration::ZERO), []);
    }
    core.on(stale(1, 1, 0), Duration::ZERO);
    let actions = core.on(stale(2, 1, 0), Duration::ZERO);
    assert_eq!(actions, [Action::Commit { generation: 1, step: 0, gradient_hash, workers: vec![1, 2] }]);
}

#[test]
fn silence_beyond_the_lease_moves_the_slots_to_the_others() {
    let mut world = World::new(config(3, 2));
    world.workers.remove(&2);
    for second in 1..=4 {
        world.now = Duration::from_secs(second);
        world.event(Event::Heard { worker: 1 });
        assert_eq!(world.core.group, [1, 2], "after {second} s");
        world.event(Event::Tick);
    }
    assert_eq!(world.core.group, [1]);
    world.settle();
    assert_eq!((world.committed, world.ending), (vec![0, 1, 2], Some(Ending::Finished)));
}

/// Whoever was stopped and goes on finds its connection intact, and is to know that it can join anew.
#[test]
fn a_silent_worker_may_return_and_one_that_failed_may_not() {
    let evicted = |actions: Vec<Action>| {
        actions.into_iter().find_map(|action| match action {
            Action::Evict { worker, may_return, .. } => Some((worker, may_return)),
            _ => None,
        })
    };
    let mut core = World::new(config(3, 2)).core;
    let silent = (1..=4).map(Duration::from_secs).find_map(|now| {
        core.on(Event::Heard { worker: 1 }, now);
        evicted(core.on(Event::Tick, now))
    });
    assert_eq!(silent, Some((2, true)));
    let mut core = World::new(config(3, 2)).core;
    let failed = core.on(Event::Left { worker: 2, reason: "no memory".to_owned() }, Duration::ZERO);
    assert_eq!(evicted(failed), Some((2, false)));
}

/// A switch that takes hundreds of hosts with it must not cost hundreds of generations, each told to all that are left.
#[test]
fn workers_that_fall_silent_together_end_one_generation() {
    let mut world = World::new(config(3, 4));
    for worker in [2, 3, 4] {
        world.workers.remove(&worker);
    }
    for second in 1..=4 {
        world.now = Duration::from_secs(second);
        world.event(Event::Heard { worker: 1 });
        world.event(Event::Tick);
    }
    world.settle();
    assert_eq!((world.core.group.as_slice(), world.core.generation), ([1].as_slice(), 2));
    assert_eq!((world.committed, world.ending), (vec![0, 1, 2], Some(Ending::Finished)));
}

#[test]
fn too_few_workers_in_time_is_an_error_and_enough_is_a_start() {
    let mut core = RunState::new(config(3, 2), Duration::ZERO);
    let late = Duration::from_secs(61);
    let actions = core.on(Event::Tick, late);
    let Some(Action::Ended(Ending::Failed { reason })) = actions.last() else { panic!("{actions:?}") };
    assert!(reason.contains("0 of 1 worker(s) joined within 60 s"), "{reason}");

    let mut core = RunState::new(config(3, 2), Duration::ZERO);
    core.on(Event::Joined { worker: 5, former: None }, Duration::ZERO);
    core.on(Event::Ready { worker: 5, held: held(0, "p".into()) }, late);
    assert!(core.generation == 1, "{core:?}");
}

#[test]
fn workers_with_other_parameters_stop_the_run_before_it_starts() {
    let mut core = RunState::new(config(3, 2), Duration::ZERO);
    for worker in [1, 2] {
        core.on(Event::Joined { worker, former: None }, Duration::ZERO);
    }
    core.on(Event::Ready { worker: 1, held: held(0, "p".into()) }, Duration::ZERO);
    let actions = core.on(Event::Ready { worker: 2, held: held(0, "q".into()) }, Duration::ZERO);
    assert!(matches!(actions.last(), Some(Action::Ended(Ending::Failed { .. }))), "{actions:?}");
}

#[test]
fn a_coordinator_that_slept_itself_blames_nobody() {
    let mut world = World::new(config(3, 2));
    world.now = Duration::from_secs(3600);
    world.event(Event::Tick);
    assert_eq!(world.core.group, [1, 2]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Law 6, whatever the order of turns, deaths and joins: steps are committed once and in order, applied only after
    /// their commit, and the run ends well as long as one worker lives that holds the state.
    #[test]
    fn deaths_at_any_moment_leave_every_step_committed_once(
        moves in prop::collection::vec((0u64..8, 0u32..40), 0..400),
        stop_step in 1u64..8,
    ) {
        let mut world = World::new(config(stop_step, 4));
        for (worker, what) in moves {
            let holds_state = |worker: &WorkerId| world.core.group.contains(worker);
            let survivors = world.workers.keys().filter(|other| **other != worker && holds_state(other)).count();
            match what {
                0 if survivors > 0 => world.kill(worker),
                1 if survivors > 0 && world.workers.contains_key(&worker) => world.die_in_commit = Some(worker),
                2 => { world.join(); }
                3 | 4 => { world.let_time_pass(); }
                _ => { world.turn(worker); }
            }
            // The worker that is to die must not be the last one by then.
            if world.core.group.len() == 1 { world.die_in_commit = None; }
        }
        world.die_in_commit = None;
        world.settle();
        prop_assert_eq!(&world.committed, &(0..stop_step).collect::<Vec<_>>());
        prop_assert_eq!(&world.ending, &Some(Ending::Finished));
        prop_assert!(world.done.contains(&(Milestone::Final, stop_step)));
        for (_, worker) in world.workers.iter().filter(|(worker, _)| world.core.group.contains(worker)) {
            prop_assert_eq!(&worker.applied, &world.committed);
        }
    }
}
