//! The shell round the pure core: performs its actions with messages, files and the ledger.

mod milestones;
mod sameness;
mod steps;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::RunSchedule;
use ballast_proto::v1::session_request::Message as FromWorker;
use ballast_proto::v1::session_response::Message as ToWorker;
use ballast_proto::{PROTOCOL_VERSION, v1};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::error::RunError;
use crate::events::{Outcome, RunEvent};
use crate::ledger::{Commit, Ledger, MemberRow};
use crate::membership::WorkerId;
use crate::run::PreparedRun;
use crate::run_state::{Action, Ending, Event, Milestone, RunState};
use crate::schedules::Schedules;
use crate::service::{Input, Outbox};
use crate::wire;
use milestones::MilestoneReport;
use steps::{PlannedStep, loss_rows, mean_loss, merge_losses};

/// How often the core looks at the clock; well below any lease.
const TICK: Duration = Duration::from_millis(100);

/// A connected worker, as the shell sees it.
struct Session {
    outbox: Outbox,
    row: MemberRow,
    collective_address: String,
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
    /// Generations of earlier starts of this run; the core counts from 1 at each start.
    generation_offset: u64,
    sessions: BTreeMap<WorkerId, Session>,
    next_worker: WorkerId,
    planned: BTreeMap<u64, PlannedStep>,
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
}

impl Driver {
    pub(crate) fn new(
        run: PreparedRun,
        workers: u32,
        events: mpsc::UnboundedSender<RunEvent>,
    ) -> Result<Self, RunError> {
        let core_config = run.core_config(workers);
        let (run_id, options) = (run.run_id(), run.schedule_options());
        let stop_step = core_config.stop_step;
        let PreparedRun { config, dataset, run_folder, ledger, schedule, first_step, checkpoint } = run;
        let dataset = Arc::new(dataset);
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
            generation_offset: ledger.last_generation()?,
            ledger,
            sessions: BTreeMap::new(),
            next_worker: 1,
            planned: BTreeMap::new(),
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
                _ = ticks.tick() => Some(self.timed_event()),
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
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let now = self.started_at.elapsed();
            for action in self.core.on(event, now) {
                match action {
                    Action::Ended(ending) => return Ok(Some(ending)),
                    Action::Commit { step, generation, gradient_hash, .. } => {
                        self.commit(step, generation, &gradient_hash)?;
                        events.push(Event::Committed { step });
                    }
                    action => self.perform(action).await?,
                }
            }
        }
        Ok(None)
    }

    /// Translates what a connection says; notes what the core does not need to know.
    fn event_of(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Joined { join, remote, outbox, id } => {
                let worker = self.next_worker;
                self.next_worker += 1;
                // Fails only when the connection is gone already; its reader will say so.
                let _ = id.send(worker);
                if join.protocol_version != PROTOCOL_VERSION {
                    let reason = format!(
                        "it speaks protocol {} (ballast {}), this coordinator {PROTOCOL_VERSION} (ballast {})",
                        join.protocol_version,
                        join.program_version,
                        env!("CARGO_PKG_VERSION")
                    );
                    let _ = outbox.try_send(Ok(wire::refuse(&reason)));
                    return None;
                }
                let collective_address = wire::reachable(&join.collective_address, remote);
                let v1::Join { host, device, process_id, .. } = join;
                let row = MemberRow { worker, host, device, process_id };
                self.sessions.insert(
                    worker,
                    Session { outbox, row, collective_address, params_count: 0, untrained: BTreeMap::new() },
                );
                Some(Event::Joined { worker })
            }
            Input::Left { worker, reason } => {
                self.sessions.contains_key(&worker).then_some(Event::Left { worker, reason })
            }
            Input::Message { worker, message } if self.sessions.contains_key(&worker) => {
                self.event_of_message(worker, message)
            }
            Input::Message { .. } => None,
        }
    }

    fn event_of_message(&mut self, worker: WorkerId, message: FromWorker) -> Option<Event> {
        Some(match message {
            FromWorker::Ready(ready) => {
                if let Some(reason) = self.difference(worker, &ready) {
                    return Some(Event::Left { worker, reason });
                }
                let v1::Ready { next_step, params_hash, params_count, .. } = ready;
                self.sessions.get_mut(&worker)?.params_count = params_count;
                Event::Ready { worker, next_step, params_hash }
            }
            FromWorker::Reduced(reduced) => {
                let v1::Reduced { generation, step, gradient_hash, gradient_norm, losses } = reduced;
                let generation = generation.checked_sub(self.generation_offset)?;
                if let Some(planned) = self.planned.get_mut(&step) {
                    planned.losses.insert(worker, losses);
                    planned.gradient_norm = gradient_norm;
                }
                Event::Reduced { worker, generation, step, gradient_hash }
            }
            FromWorker::CollectiveFailed(v1::CollectiveFailed { generation, step, reason }) => {
                let generation = generation.checked_sub(self.generation_offset)?;
                Event::CollectiveFailed { worker, generation, step, reason }
            }
            FromWorker::Saved(saved) => self.saved(worker, saved)?,
            FromWorker::Sampled(v1::Sampled { next_step, paths, error, request }) => {
                let milestone = Milestone::Samples;
                if let Some(report) = self.report(milestone, next_step, request) {
                    report.paths.extend(paths.into_iter().map(PathBuf::from));
                    if !error.is_empty() {
                        report.error = Some(error);
                    }
                }
                Event::Done { worker, milestone, next_step, request, params_hash: None }
            }
            FromWorker::Offered(v1::Offered { transfer, state_hash }) => {
                Event::Offered { worker, transfer, state_hash }
            }
            FromWorker::CaughtUp(v1::CaughtUp { transfer, state_hash }) => {
                tracing::info!(worker, "a worker has caught up");
                Event::CaughtUp { worker, transfer, state_hash }
            }
            FromWorker::FetchFailed(v1::FetchFailed { transfer, reason }) => {
                tracing::warn!(worker, reason, "a worker could not be sent the state; another source is tried");
                Event::FetchFailed { worker, transfer, reason }
            }
            FromWorker::Failed(v1::Failed { reason, hint }) => {
                self.last_failure = Some((reason.clone(), hint));
                Event::Left { worker, reason }
            }
            FromWorker::Heartbeat(_) | FromWorker::Applied(_) => Event::Heard { worker },
            FromWorker::Join(_) => Event::Left { worker, reason: "it joined twice".to_owned() },
        })
    }

    async fn perform(&mut self, action: Action) -> Result<(), RunError> {
        match action {
            Action::Refuse { worker, reason } => {
                self.send(worker, wire::refuse(&reason));
                self.sessions.remove(&worker);
                tracing::warn!(worker, reason, "a worker was refused");
            }
            Action::Welcome { worker, catch_up } => {
                let welcome = self.welcome(worker, catch_up);
                self.send(worker, wire::response(ToWorker::Welcome(welcome)));
                let MemberRow { host, device, process_id, .. } = self.sessions[&worker].row.clone();
                self.emit(RunEvent::WorkerJoined { worker_id: worker, host, device, process_id });
            }
            Action::Group { generation, workers } => self.form_group(generation, &workers)?,
            Action::Plan { generation, step, workers } => self.plan(generation, step, &workers).await?,
            Action::Apply { generation, step, gradient_hash, workers } => {
                let planned = self.planned.remove(&step);
                self.traceparent =
                    planned.map(|planned| ballast_proto::current_traceparent(&planned.span)).unwrap_or_default();
                let traceparent = self.traceparent.clone();
                let generation = self.wire_generation(generation);
                let commit = v1::Commit { generation, step, gradient_hash, traceparent };
                self.send_all(&workers, &wire::response(ToWorker::Commit(commit)));
            }
            Action::Abort { generation, reason, workers } => {
                let generation = self.wire_generation(generation);
                self.planned.clear();
                self.send_all(&workers, &wire::response(ToWorker::Abort(v1::Abort { generation, reason })));
            }
            Action::Offer { source, joiner, transfer, next_step } => {
                tracing::info!(worker = joiner, source, next_step, "a worker is sent the state");
                self.send(source, wire::response(ToWorker::Offer(v1::Offer { transfer, next_step })));
            }
            Action::Fetch { joiner, source, transfer, next_step, state_hash } => {
                let Some(Session { collective_address, params_count, .. }) = self.sessions.get(&source) else {
                    return Ok(()); // its reader is about to report the loss
                };
                let (address, params_count) = (collective_address.clone(), *params_count);
                let fetch = v1::Fetch { transfer, next_step, state_hash, address, params_count };
                self.send(joiner, wire::response(ToWorker::Fetch(fetch)));
            }
            Action::Milestone { milestone, next_step, request, workers } => {
                self.start_milestone(milestone, next_step, request, &workers)?;
            }
            Action::CheckpointSkipped { next_step, busy_with } => {
                tracing::warn!(next_step, busy_with, "a checkpoint is left out: an earlier one is still being written");
            }
            Action::MilestoneDone { milestone, next_step } => self.finish_milestone(milestone, next_step)?,
            Action::Evict { worker, rank, reason } => {
                let host = self.sessions.get(&worker).map(|session| session.row.host.clone());
                tracing::warn!(worker, rank, host, reason, "a worker was lost");
                self.send(worker, wire::refuse(&reason));
                self.sessions.remove(&worker);
                self.emit(RunEvent::WorkerLost { worker_id: worker, rank, reason });
            }
            Action::Finish { workers, reason } => {
                self.send_all(&workers, &wire::response(ToWorker::Finish(v1::Finish { reason: reason.to_owned() })));
            }
            Action::Commit { .. } | Action::Ended(_) => unreachable!("handle() takes these"),
        }
        Ok(())
    }

    fn welcome(&self, worker: WorkerId, catch_up: bool) -> v1::Welcome {
        // By the time somebody joins late, the checkpoint of the start may have been deleted for newer ones.
        let checkpoint = self.checkpoint.as_deref().filter(|_| !catch_up).map(wire::path_text).unwrap_or_default();
        v1::Welcome {
            run_id: self.run_id.clone(),
            worker_id: worker,
            config_toml: self.config_toml.clone(),
            checkpoint,
            next_step: self.core.next_step(),
            heartbeat_interval_ms: wire::milliseconds(self.config.cluster.heartbeat_interval),
            collective_timeout_ms: wire::milliseconds(self.config.cluster.collective_timeout),
            catch_up,
        }
    }

    fn form_group(&mut self, generation: u64, workers: &[WorkerId]) -> Result<(), RunError> {
        self.settle_untrained(workers);
        let generation = self.wire_generation(generation);
        let members: Vec<_> = workers.iter().map(|worker| self.sessions[worker].row.clone()).collect();
        self.ledger.record_members(generation, &members)?;
        let peer = |worker: &WorkerId| v1::Peer {
            worker_id: *worker,
            collective_address: self.sessions[worker].collective_address.clone(),
        };
        let peers: Vec<_> = workers.iter().map(peer).collect();
        for (rank, worker) in workers.iter().enumerate() {
            let group = v1::Group { generation, rank: rank as u32, peers: peers.clone() };
            self.send(*worker, wire::response(ToWorker::Group(group)));
        }
        self.emit(RunEvent::Started {
            generation,
            world_size: workers.len() as u32,
            next_step: self.core.next_step(),
            stop_step: self.stop_step,
        });
        Ok(())
    }

    async fn plan(&mut self, generation: u64, step: u64, workers: &[WorkerId]) -> Result<(), RunError> {
        let generation = self.wire_generation(generation);
        let (epoch, step_in_epoch) = self.run_schedule.locate(step).expect("steps are planned up to the last");
        let span = tracing::info_span!(parent: None, "step", step = step as i64, epoch = epoch as i64, generation = generation as i64);
        let plan_span = tracing::info_span!(parent: &span, "plan");
        let (schedule, is_new) = self.schedules.get(epoch).await;
        let _entered = plan_span.enter();
        if is_new {
            let first_step = step - step_in_epoch;
            self.ledger.record_epoch(epoch, &schedule.hash(), schedule.occurrences(), first_step, schedule.steps())?;
            tracing::info!(epoch, schedule_hash = schedule.hash(), "epoch scheduled");
            if self.config.data.write_schedule {
                let path = self.run_folder.join("logs").join(format!("ep{}_batch_schedule.txt", epoch));
                schedule.write_file(&self.dataset, &path).map_err(|source| RunError::File {
                    action: "write",
                    path,
                    source,
                })?;
            }
        }
        let plan = schedule.step(step_in_epoch);
        let traceparent = ballast_proto::current_traceparent(&span);
        let context = wire::PlanContext {
            config: &self.config,
            dataset: &self.dataset,
            generation,
            step,
            epoch,
            total_steps: self.run_schedule.steps(),
            traceparent: &traceparent,
            world_size: workers.len() as u32,
        };
        let plans: Vec<_> = (0..context.world_size).map(|rank| context.plan_for(&plan, rank)).collect();
        for (worker, plan) in workers.iter().zip(plans) {
            self.send(*worker, wire::response(ToWorker::Plan(plan)));
        }
        drop(_entered);
        let planned = PlannedStep { plan, epoch, span, losses: BTreeMap::new(), gradient_norm: 0.0 };
        self.planned.insert(step, planned);
        Ok(())
    }

    /// Writes a step to the ledger. When this returns, the step counts.
    fn commit(&mut self, step: u64, generation: u64, gradient_hash: &str) -> Result<(), RunError> {
        let planned = self.planned.get(&step).expect("a step that was voted on was planned");
        let span = tracing::info_span!(parent: &planned.span, "commit");
        let _entered = span.enter();
        let losses = merge_losses(&planned.plan, &planned.losses).map_err(|reason| self.failed(&reason))?;
        let rows = loss_rows(&planned.plan, &losses);
        let mean = mean_loss(&losses);
        let commit = Commit {
            step,
            epoch: planned.epoch,
            first_position: planned.plan.first_position,
            positions: rows.len() as u64,
            generation: self.wire_generation(generation),
            gradient_hash: wire::bytes_of_hex(gradient_hash)
                .ok_or_else(|| self.failed("a gradient hash is not hexadecimal"))?,
            gradient_norm: planned.gradient_norm,
            losses: rows,
        };
        let ledger = &mut self.ledger;
        tokio::task::block_in_place(|| ledger.commit(&commit))?;
        drop(_entered);
        self.report_step(&commit, mean);
        Ok(())
    }

    fn report_step(&mut self, commit: &Commit, loss: f64) {
        for row in commit.losses.iter().filter(|row| row.skipped.is_some()) {
            let path = self.dataset.samples[row.sample as usize].path.clone();
            let reason = row.skipped.clone().unwrap_or_default();
            if self.skipped.insert(path.clone()) {
                tracing::warn!(path, reason, "a picture could not be used and is skipped");
                self.emit(RunEvent::Skipped { path, reason });
            }
        }
        let (epoch, step_in_epoch) = self.run_schedule.locate(commit.step).expect("it was planned");
        let now = Instant::now();
        let duration = now - std::mem::replace(&mut self.last_step_at, now);
        let total_steps = self.run_schedule.steps();
        let factor = crate::lr_schedule::lr_factor(&self.config.lr_schedule, commit.step, total_steps);
        let unet_lr = self.config.optimizer.lr * factor;
        tracing::debug!(step = commit.step, loss, gradient_norm = commit.gradient_norm, "step committed");
        self.emit(RunEvent::Stepped {
            step: commit.step,
            stop_step: self.stop_step,
            epoch,
            epochs: self.run_schedule.epochs(),
            step_in_epoch,
            steps_in_epoch: self.run_schedule.steps_in(epoch),
            loss,
            images: commit.positions,
            unet_lr,
            gradient_norm: commit.gradient_norm,
            duration,
        });
    }

    fn end(&mut self, ending: Ending) -> Result<Outcome, RunError> {
        self.emit(RunEvent::Over);
        match ending {
            Ending::Finished => Ok(Outcome::Finished { next_step: self.core.next_step() }),
            Ending::Interrupted { next_step } => {
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

    fn wire_generation(&self, generation: u64) -> u64 {
        self.generation_offset + generation
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
