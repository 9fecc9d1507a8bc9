//! The world of a schedule: time, messages on their way, machines, the coordinator with its disk, and what breaks.

mod coordinator;
mod faults;
mod nccl;
mod returns;
mod workers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use ballast_coordinator::run_state::{Action, Event, RunState, WorkerId};

use super::rng::Rng;
use super::worker::Worker;
use super::{Tally, Violation, truth};
use faults::Links;

/// Milliseconds of the simulated clock.
type Millis = u64;

/// How long after the last fault the run may take to its end.
const PATIENCE: Millis = 900_000;
/// Lines that are kept of what happened.
const HISTORY_MAX: usize = 60;

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq)]
enum Happening {
    /// An event reaches the coordinator, if it still is the one that it was sent to.
    Event {
        life: u64,
        worker: Option<WorkerId>,
        event: Event,
    },
    /// What was written is on the disk.
    Written {
        life: u64,
        step: u64,
    },
    /// A message reaches a worker.
    Message {
        worker: WorkerId,
        message: Action,
    },
    /// A worker is done with what it was doing.
    Activity {
        worker: WorkerId,
        number: u64,
    },
    /// A worker holds the sum, or its link to a peer broke.
    Sum {
        worker: WorkerId,
        number: u64,
        broken: Option<Broken>,
    },
    /// The coordinator looks at the clock, because it is gathering something.
    Look {
        life: u64,
    },
    /// A worker says that it lives.
    Heartbeat {
        worker: WorkerId,
    },
    /// A connection breaks, on both sides.
    Broken {
        worker: WorkerId,
    },
    /// A worker looks for the coordinator that it has lost.
    Knock {
        worker: WorkerId,
    },
    /// A checkpoint that a worker wrote from a copy is on the disk.
    Saved {
        worker: WorkerId,
        message: Action,
        file: File,
    },
    Fault,
    StartWorker {
        machine: usize,
    },
    StartCoordinator,
}

/// The link of a worker to a peer broke.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Broken {
    /// Whose.
    rank: u32,
    /// The peer has hung up.
    closed: bool,
}

/// A happening to come; the earliest first, and of two at one time the one that was planned first.
struct Planned {
    key: Reverse<(Millis, u64)>,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// A step in the ledger.
#[derive(Debug, Clone, Copy)]
struct Entry {
    generation: u64,
    gradient: u64,
}

/// A checkpoint in files.
#[derive(Debug, Clone, PartialEq)]
struct File {
    state: u64,
    /// Chain of the ledger that it is of.
    chain: String,
    /// How often steps had been taken back when it was asked for.
    history: u64,
}

/// What outlives the coordinator.
#[derive(Debug, Default)]
struct Disk {
    /// The committed steps.
    ledger: Vec<Entry>,
    /// Checkpoints in the ledger: steps done.
    checkpoints: BTreeSet<u64>,
    /// Checkpoints in files, by steps done. Only whole ones appear.
    files: BTreeMap<u64, File>,
    /// How often steps were taken back.
    history: u64,
    /// Workers of the last generation.
    members: BTreeSet<WorkerId>,
    /// Most steps that were ever taken back.
    rolled_back_from: u64,
    /// The run was stopped in good order: no worker holds its state.
    is_stopped: bool,
    /// The finished model.
    final_state: Option<u64>,
}

/// The world of a schedule.
pub(super) struct World {
    seed: u64,
    rng: Rng,
    now: Millis,
    planned: BinaryHeap<Planned>,
    planned_count: u64,
    /// The true states after 0, 1, 2, … steps.
    truth: Vec<u64>,
    steps: u64,
    slots: usize,
    workers_wanted: usize,
    core: Option<RunState>,
    /// Number of the coordinator's process.
    life: u64,
    /// Connections that the coordinator has.
    sessions: BTreeSet<WorkerId>,
    generation: u64,
    planned_steps: BTreeSet<(u64, u64)>,
    /// Requests for saves after which more steps follow.
    background_saves: BTreeSet<(u64, u64)>,
    /// The commit that is being written.
    writing: Option<Entry>,
    /// Workers outlive their connection, as those of `ballast coordinator` do and those of `ballast train` do not.
    may_return: bool,
    min_workers: usize,
    first_step: u64,
    coordinator_paused_until: Millis,
    clock_offset: Millis,
    disk: Disk,
    workers: BTreeMap<WorkerId, Worker>,
    /// How often steps had been taken back when a worker was welcomed.
    welcomed: BTreeMap<WorkerId, u64>,
    /// Workers that have ended in good order: what they were writing they finish.
    parted: BTreeSet<WorkerId>,
    next_worker: WorkerId,
    machines: usize,
    links: Links,
    nccl: nccl::Nccl,
    enabled_faults: u64,
    faults_end: Millis,
    tally: Tally,
    is_over: bool,
    trace: Option<VecDeque<String>>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let steps = rng.within(4..16);
        let machines = rng.within(1..6) as usize;
        let workers_wanted = rng.within(1..machines as u64 + 1) as usize;
        let (slots, faults_end) = (rng.within(2..6) as usize, rng.within(2_000..30_000));
        let may_return = !rng.one_in(4);
        let min_workers = if rng.one_in(3) { rng.within(1..workers_wanted as u64 + 1) as usize } else { 1 };
        let enabled_faults = rng.within(1..u64::MAX) & rng.within(1..u64::MAX) | 1;
        let mut world = Self {
            seed,
            rng,
            now: 0,
            planned: BinaryHeap::new(),
            planned_count: 0,
            truth: truth::states(steps),
            steps,
            slots,
            workers_wanted,
            core: None,
            life: 0,
            sessions: BTreeSet::new(),
            generation: 0,
            planned_steps: BTreeSet::new(),
            background_saves: BTreeSet::new(),
            writing: None,
            may_return,
            min_workers,
            first_step: 0,
            coordinator_paused_until: 0,
            clock_offset: 0,
            disk: Disk::default(),
            workers: BTreeMap::new(),
            welcomed: BTreeMap::new(),
            parted: BTreeSet::new(),
            next_worker: 1,
            machines,
            links: Links::default(),
            nccl: nccl::Nccl::new(seed, faults_end),
            enabled_faults,
            faults_end,
            tally: Tally::default(),
            is_over: false,
            trace: None,
        };
        world.plan(0, Happening::StartCoordinator);
        for machine in 0..machines {
            let delay = world.rng.within(0..3_000);
            world.plan(delay, Happening::StartWorker { machine });
        }
        let delay = world.rng.within(100..1_500);
        world.plan(delay, Happening::Fault);
        world
    }

    /// Goes through the schedule to its end.
    pub(super) fn run(mut self) -> Result<Tally, Violation> {
        let seed = self.seed;
        match self.go() {
            Ok(()) => Ok(Tally { schedules: 1, ..self.tally }),
            // Once more, now writing down what happens: most schedules need no history.
            Err(_) => {
                let mut again = Self::new(seed);
                again.trace = Some(VecDeque::new());
                let what = again.go().expect_err("a schedule is a function of its seed");
                Err(Violation { seed, what, history: again.trace.unwrap_or_default().into() })
            }
        }
    }

    fn go(&mut self) -> Result<(), String> {
        while !self.is_over {
            let Some(Planned { key: Reverse((time, number)), what }) = self.planned.pop() else {
                return Err("nothing more happens, and the run is not over".to_owned());
            };
            self.now = time;
            if self.now > self.faults_end + PATIENCE {
                return Err(format!("no end within {PATIENCE} ms after the last fault: {:?}", self.core));
            }
            if let Some(later) = self.stands_still_until(&what) {
                self.planned.push(Planned { key: Reverse((later, number)), what });
                continue;
            }
            self.note(|| format!("{what:?}"));
            self.happen(what)?;
        }
        Ok(())
    }

    /// When the one to whom it happens stands still: until when.
    fn stands_still_until(&self, what: &Happening) -> Option<Millis> {
        let until = match what {
            Happening::Event { .. } | Happening::Written { .. } | Happening::Look { .. } => {
                self.coordinator_paused_until
            }
            Happening::Message { worker, .. }
            | Happening::Activity { worker, .. }
            | Happening::Sum { worker, .. }
            | Happening::Knock { worker }
            | Happening::Saved { worker, .. }
            | Happening::Heartbeat { worker } => self.workers.get(worker)?.paused_until,
            _ => return None,
        };
        (until > self.now).then_some(until)
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Event { life, worker, event } => self.on_event(life, worker, event),
            Happening::Written { life, step } => self.on_written(life, step),
            Happening::Message { worker, message } => self.on_message(worker, message),
            Happening::Activity { worker, number } => self.on_activity(worker, number),
            Happening::Sum { worker, number, broken } => self.on_sum(worker, number, broken),
            Happening::Look { life } => self.on_look(life),
            Happening::Saved { worker, message, file } => self.on_saved(worker, message, file),
            Happening::Heartbeat { worker } => {
                if self.workers.get(&worker).is_some_and(|worker| worker.away_since.is_none()) {
                    self.say(worker, Event::Heard { worker });
                    self.plan(1_000, Happening::Heartbeat { worker });
                }
                Ok(())
            }
            Happening::Broken { worker } => self.on_broken(worker),
            Happening::Knock { worker } => self.on_knock(worker),
            Happening::Fault => self.on_fault(),
            Happening::StartWorker { machine } => {
                self.start_worker(machine);
                Ok(())
            }
            Happening::StartCoordinator => {
                self.start_coordinator();
                Ok(())
            }
        }
    }

    fn plan(&mut self, delay: Millis, what: Happening) {
        self.plan_at(self.now + delay, what);
    }

    fn plan_at(&mut self, time: Millis, what: Happening) {
        self.planned_count += 1;
        self.planned.push(Planned { key: Reverse((time, self.planned_count)), what });
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == HISTORY_MAX {
                trace.pop_front();
            }
            trace.push_back(format!("{:>8} ms  {}", self.now, line()));
        }
    }
}
