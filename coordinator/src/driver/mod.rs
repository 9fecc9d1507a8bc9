//! The shell round the pure core: performs its actions with messages, files and the ledger.

mod actions;
mod commits;
mod inputs;
mod milestones;
mod nccl;
mod planning;
mod sameness;
mod speeds;
mod steps;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_common::checkpoint::HISTORY;
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::RunSchedule;
use ballast_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::checkpoints;
use crate::error::RunError;
use crate::events::{Outcome, RunEvent};
use crate::ledger::{End, Ledger, MemberRow};
use crate::lock::RunLock;
use crate::membership::WorkerId;
use crate::run::PreparedRun;
use crate::run_state::{Action, Ending, Event, Milestone, NcclAbility, RunState};
use crate::schedules::Schedules;
use crate::service::{Input, Outbox};
use crate::wire;
use milestones::MilestoneReport;
use speeds::Speeds;
use steps::PlannedStep;

/// How often the core looks at the clock; well below any lease.
const TICK: Duration = Duration::from_millis(100);

/// A connected worker, as the shell sees it.
struct Session {
    outbox: Outbox,
    row: MemberRow,
    collective_address: String,
    /// What it can do with NCCL.
    nccl: NcclAbility,
    /// Trainable parameters of its model; 0 until it has loaded it.
    params_count: u64,
    /// Hashes of the parts of its model that are not trained.
    untrained: sameness::Untrained,
}

/// Performs a run.
pub(crate) struct Driver {
    core: RunState,
    config: Arc<RunConfig>,
    config_toml: String,
    dataset: Arc<Dataset>,
    run_folder: PathBuf,
    run_id: String,
    checkpoint: Option<PathBuf>,
    first_step: u64,
    stop_step: u64,
    run_schedule: RunSchedule,
    schedules: Schedules,
    ledger: Ledger,
    /// Tells this run from every other.
    run_key: String,
    /// Which start of its coordinator this is.
    incarnation: u64,
    /// How often steps were taken back.
    history: u64,
    sessions: BTreeMap<WorkerId, Session>,
    next_worker: WorkerId,
    planned: BTreeMap<u64, PlannedStep>,
    /// How fast the workers are.
    speeds: Speeds,
    /// The workers of the generation, and how many slots each has.
    group: Vec<WorkerId>,
    slot_counts: Vec<u32>,
    /// The newest generation whose gradients go over NCCL.
    nccl_generation: u64,
    /// What workers reported for a milestone: parameter hash, paths, errors.
    reports: BTreeMap<(Milestone, u64), MilestoneReport>,
    skipped: HashSet<String>,
    /// Trace context of the last committed step: its checkpoint belongs to its trace.
    traceparent: String,
    last_checkpoint: Option<PathBuf>,
    /// When the last save was asked for, or the run began.
    last_save_at: Instant,
    has_noted_foreground_save: bool,
    /// Hashes of the parts that are not trained, of the workers that made the first step of this start.
    untrained: Option<sameness::Untrained>,
    /// Why a worker gave up, with its hint: the best explanation when the run fails.
    last_failure: Option<(String, String)>,
    last_step_at: Instant,
    events: mpsc::UnboundedSender<RunEvent>,
    started_at: Instant,
    /// Last, so that it is let go of when all else is closed.
    _lock: RunLock,
}

impl Driver {
    pub(crate) fn new(
        run: PreparedRun,
        address: Option<SocketAddr>,
        workers: u32,
        events: mpsc::UnboundedSender<RunEvent>,
    ) -> Result<Self, RunError> {
        let core_config = run.core_config(workers)?;
        let (run_id, options) = (run.run_id(), run.schedule_options());
        let stop_step = core_config.stop_step;
        let PreparedRun {
            config,
            dataset,
            run_folder,
            ledger,
            schedule,
            first_step,
            checkpoint,
            lock,
            incarnation,
            ..
        } = run;
        let (dataset, mut ledger) = (Arc::new(dataset), ledger);
        ledger.forget_end()?;
        if let Some(address) = address {
            ledger.record_address(&address.to_string())?;
        }
        Ok(Self {
            core: RunState::new(core_config, Duration::ZERO),
            config_toml: config.to_toml(),
            schedules: Schedules::new(&dataset, options, config.run.epochs),
            config: Arc::new(config),
            dataset,
            run_folder,
            run_id,
            checkpoint,
            first_step,
            stop_step,
            run_schedule: schedule,
            run_key: ledger.run_key()?,
            incarnation,
            history: ledger.rollbacks()?.len() as u64,
            next_worker: ledger.last_worker()? + 1,
            ledger,
            sessions: BTreeMap::new(),
            planned: BTreeMap::new(),
            speeds: Speeds::default(),
            group: Vec::new(),
            slot_counts: Vec::new(),
            nccl_generation: 0,
            reports: BTreeMap::new(),
            skipped: HashSet::new(),
            traceparent: String::new(),
            last_checkpoint: None,
            last_save_at: Instant::now(),
            has_noted_foreground_save: false,
            untrained: None,
            last_failure: None,
            last_step_at: Instant::now(),
            events,
            started_at: Instant::now(),
            _lock: lock,
        })
    }

    /// Runs until the core says that the run has ended.
    pub(crate) async fn drive(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Outcome, RunError> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop_watched = true;
        loop {
            let look_at = self.core.next_look().map(|at| self.started_at + at);
            // Biased, so that signs of life that wait in the queue are heard before anybody is declared silent.
            let event = tokio::select! {
                biased;
                changed = stop.changed(), if stop_watched => {
                    stop_watched = changed.is_ok();
                    if *stop.borrow() { Some(Event::StopRequested) } else { None }
                }
                input = inputs.recv() => match input {
                    Some(input) => self.event_of(input),
                    None => return Err(self.failed("the server ended before the run")),
                },
                () = time(look_at) => Some(Event::Tick),
                _ = ticks.tick() => {
                    self.look_at_the_clock();
                    Some(Event::Tick)
                }
            };
            if let Some(event) = event
                && let Some(ending) = self.handle(event).await?
            {
                return self.end(ending);
            }
        }
    }

    /// Feeds an event, and what follows from it, to the core.
    async fn handle(&mut self, event: Event) -> Result<Option<Ending>, RunError> {
        let mut events = self.with_ability(event);
        while let Some(event) = events.pop() {
            let now = self.started_at.elapsed();
            for action in self.core.on(event, now) {
                match action {
                    Action::Ended(ending) => return Ok(Some(ending)),
                    Action::Commit { step, generation, gradient_hash, .. } => {
                        self.commit(step, generation, &gradient_hash)?;
                        let chain = self.chain_after(step + 1)?;
                        events.push(Event::Committed { step, chain });
                    }
                    Action::RollBack { reason } => events.push(self.roll_back(&reason)?),
                    action => self.perform(action).await?,
                }
            }
        }
        Ok(None)
    }

    /// Takes the ledger back; whoever joins from now on loads the checkpoint.
    fn roll_back(&mut self, reason: &str) -> Result<Event, RunError> {
        let before = self.core.next_step();
        let start = checkpoints::go_back(&mut self.ledger, &self.run_folder, Some(reason))?;
        (self.first_step, self.checkpoint) = (start.next_step, start.checkpoint);
        self.history = self.ledger.rollbacks()?.len() as u64;
        let next_step = self.first_step;
        self.planned.clear();
        self.reports.clear();
        self.emit(RunEvent::RolledBack { from_step: before, to_step: next_step, reason: reason.to_owned() });
        Ok(Event::RolledBack { next_step, chain: self.chain_after(next_step)? })
    }

    fn chain_after(&self, steps: u64) -> Result<String, RunError> {
        Ok(wire::hex(&self.ledger.chain_after(steps)?.unwrap_or_default()))
    }

    /// What the coordinator wants to find again in a checkpoint, but for the chain.
    fn run_state(&self) -> serde_json::Value {
        serde_json::json!({ "fingerprint": self.dataset.fingerprint, (HISTORY): self.history })
    }

    fn end(&mut self, ending: Ending) -> Result<Outcome, RunError> {
        self.emit(RunEvent::Over);
        match ending {
            Ending::Finished => {
                self.ledger.record_end(End::Finished)?;
                Ok(Outcome::Finished { next_step: self.core.next_step() })
            }
            Ending::Interrupted { next_step } => {
                let is_saved = self.ledger.checkpoints()?.last().is_some_and(|(saved, ..)| *saved == next_step);
                if is_saved || next_step == 0 {
                    self.ledger.record_end(End::Stopped)?;
                }
                let computed = next_step > self.first_step;
                let checkpoint = if computed { self.last_checkpoint.clone() } else { self.checkpoint.clone() };
                Ok(Outcome::Interrupted { next_step, checkpoint })
            }
            Ending::Failed { reason } => {
                for worker in self.sessions.keys().copied().collect::<Vec<_>>() {
                    self.send(worker, wire::refuse(&format!("the run has failed: {reason}")));
                }
                Err(self.failed(&reason))
            }
        }
    }

    fn failed(&self, reason: &str) -> RunError {
        let hint = self.last_failure.as_ref().map(|(_, hint)| hint.clone()).filter(|hint| !hint.is_empty());
        RunError::Failed { reason: reason.to_owned(), hint }
    }

    fn send(&mut self, worker: WorkerId, response: v1::SessionResponse) {
        let Some(session) = self.sessions.get_mut(&worker) else { return };
        if let Err(mpsc::error::TrySendError::Full(_)) = session.outbox.try_send(Ok(response)) {
            // Its reader sees the end of the stream and reports the loss.
            tracing::warn!(worker, "a worker does not read its messages; its connection is dropped");
            session.outbox = mpsc::channel(1).0;
        }
    }

    fn send_all(&mut self, workers: &[WorkerId], response: &v1::SessionResponse) {
        for worker in workers {
            self.send(*worker, response.clone());
        }
    }

    fn emit(&self, event: RunEvent) {
        // Nobody may be watching.
        let _ = self.events.send(event);
    }
}

/// Resolves at a time; never when there is none.
async fn time(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
