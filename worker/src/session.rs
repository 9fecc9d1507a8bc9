//! The worker's side of the control protocol: join, route what the coordinator says, leave.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::dataset::DataRoots;
use ballast_common::error_chain;
use ballast_common::rng::Streams;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message as Answer;
use ballast_proto::v1::session_response::Message;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::collective::{self, Endpoint, GroupConfig, Limits, StateCall};
use crate::connect::{Connection, StreamError, connect};
use crate::device_thread::{Command, Desk, DeviceThread, Fetch, Group, ReadState, Start};
use crate::draws::Key;
use crate::error::WorkerError;
use crate::latents::CachedPictures;
use crate::prefetch::{Prefetch, Ticket};
use crate::{WorkerOptions, WorkerOutcome, plan, save, trainer};

/// Commands that may wait for the device thread. Reading must never block behind it, or an Abort would come too late; the
/// coordinator plans at most 64 steps ahead and waits for an answer to all else, so more than this is its mistake.
const COMMANDS_MAX: usize = 256;
/// Answers that may wait for the stream: a vote, a few acknowledgements, heartbeats.
const ANSWERS_MAX: usize = 64;
/// Threads that decode pictures. More would only take cores from the model on a CPU, and a GPU is fed by four.
const DECODE_THREADS_MAX: usize = 4;
/// How long the last words, and the device thread's last computation, may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs one worker from joining until the run is over, it is asked to stop, or something breaks.
///
/// `shutdown` turns true when the worker is to leave. It leaves at once, unless it is writing a checkpoint, which it
/// finishes: a step that was not committed is computed again by the others.
///
/// # Errors
/// When the coordinator cannot be reached, refuses this worker or is lost, and when training cannot go on.
pub async fn run(options: WorkerOptions, shutdown: watch::Receiver<bool>) -> Result<WorkerOutcome, WorkerError> {
    let session = tokio::select! {
        () = requested(shutdown.clone()) => return Ok(WorkerOutcome::Stopped),
        session = Session::join(&options) => session?,
    };
    session.work(shutdown).await
}

/// Resolves when a shutdown is asked for; never when nobody can ask any more.
async fn requested(mut shutdown: watch::Receiver<bool>) {
    if shutdown.wait_for(|requested| *requested).await.is_err() {
        std::future::pending().await
    }
}

/// A worker that was welcomed.
struct Session {
    url: String,
    endpoint: Endpoint,
    welcome: v1::Welcome,
    config: Arc<RunConfig>,
    streams: Streams,
    pictures: Arc<Prefetch>,
    stream: Streaming<v1::SessionResponse>,
    answers: mpsc::Sender<v1::SessionRequest>,
    commands: mpsc::Sender<Command>,
    /// How the device thread ended.
    device: oneshot::Receiver<Result<(), WorkerError>>,
    /// Heartbeats.
    tasks: JoinSet<()>,
    /// True while the device thread has a checkpoint written in the background.
    saving: watch::Receiver<bool>,
    generation: u64,
    rank: u32,
    /// Ends the current generation's work.
    cancel: CancellationToken,
    /// Ends the fetching of a peer's state.
    fetching: CancellationToken,
}

impl Session {
    /// Connects, is welcomed, and starts the device thread, which loads the model.
    async fn join(options: &WorkerOptions) -> Result<Self, WorkerError> {
        let device = trainer::open_device(&options.device)?;
        let failed = |source| WorkerError::Listen { address: options.collective_listen, source };
        let mut endpoint = Endpoint::bind(options.collective_listen).await.map_err(failed)?;
        let join = v1::Join {
            protocol_version: ballast_proto::PROTOCOL_VERSION,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host_name(),
            device: options.device.clone(),
            collective_address: endpoint.address().to_string(),
            process_id: std::process::id(),
        };
        let url = options.coordinator_url.clone();
        let Connection { mut stream, answers } = connect(&url, join, ANSWERS_MAX).await?;
        let welcome = match next_message(&url, &mut stream).await? {
            Message::Welcome(welcome) => welcome,
            Message::Refuse(v1::Refuse { reason }) => return Err(WorkerError::Refused { reason }),
            _ => return Err(protocol("its first message is no welcome")),
        };
        tracing::info!(run = welcome.run_id, worker = welcome.worker_id, device = options.device, "joined the run");
        if welcome.catch_up {
            tracing::info!(
                "the run is under way: once the model is loaded, a peer sends its state after the next step"
            );
        }
        let config = Arc::new(RunConfig::from_toml(&welcome.config_toml)?);
        let root = config.data.root.as_ref().ok_or_else(|| protocol("its config names no data root"))?;
        let roots = DataRoots::new(root).map_err(|_| protocol("its config names data roots that lie in each other"))?;
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let cached = CachedPictures::default();
        let pictures = Arc::new(Prefetch::new(roots, threads.min(DECODE_THREADS_MAX), cached.clone()));
        let mut tasks = JoinSet::new();
        tasks
            .spawn(beat(answers.clone(), Duration::from_millis(welcome.heartbeat_interval_ms.clamp(1, 60_000).into())));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let calls = endpoint.take_state_calls().expect("nobody else takes them");
        let limit = collective_timeout(&welcome);
        tasks.spawn(send_states(calls, welcome.run_id.clone(), limit, commands.clone()));
        let start = Start {
            device,
            threads,
            checkpoint: (!welcome.checkpoint.is_empty()).then(|| PathBuf::from(&welcome.checkpoint)),
            next_step: (!welcome.catch_up).then_some(welcome.next_step),
            cached,
            compare_data: !is_here(&url),
        };
        let (saving_sender, saving) = watch::channel(false);
        let desk = Desk {
            config: Arc::clone(&config),
            run_id: welcome.run_id.clone(),
            pictures: Arc::clone(&pictures),
            commands: inbox,
            answers: answers.clone(),
            saving: saving_sender,
        };
        let device = DeviceThread::spawn(start, desk);
        let streams = Streams::new(config.run.seed);
        let (cancel, fetching) = (CancellationToken::new(), CancellationToken::new());
        let (generation, rank) = (0, 0);
        Ok(Self {
            url,
            endpoint,
            welcome,
            config,
            streams,
            pictures,
            stream,
            answers,
            commands,
            device,
            tasks,
            saving,
            generation,
            rank,
            cancel,
            fetching,
        })
    }

    async fn work(mut self, shutdown: watch::Receiver<bool>) -> Result<WorkerOutcome, WorkerError> {
        let saving = self.saving.clone();
        let leave = async {
            requested(shutdown).await;
            save::settled(saving).await;
        };
        let result = tokio::select! {
            () = leave => Ok(WorkerOutcome::Stopped),
            result = self.converse() => result,
        };
        self.leave(&result).await;
        result
    }

    /// Routes messages until the run is over or something breaks.
    async fn converse(&mut self) -> Result<WorkerOutcome, WorkerError> {
        loop {
            let message = tokio::select! {
                // First, so that the reason is told rather than its consequence.
                biased;
                ended = &mut self.device => return Err(device_ended(ended)),
                message = next_message(&self.url, &mut self.stream) => message?,
            };
            let command = match message {
                Message::Group(group) => Command::Group(self.form_group(group)?),
                Message::Plan(plan) => {
                    self.ask_for_pictures(&plan)?;
                    Command::Plan(plan)
                }
                Message::Commit(commit) => Command::Commit(commit),
                Message::Abort(abort) => {
                    if abort.generation == self.generation {
                        self.end_generation();
                    }
                    Command::Abort(abort)
                }
                Message::Save(save) => Command::Save(save),
                Message::Sample(sample) => Command::Sample(sample),
                Message::Offer(offer) => Command::Offer(offer),
                Message::Fetch(message) => Command::Fetch(self.begin_fetch(message)),
                Message::Finish(v1::Finish { reason }) => return Ok(WorkerOutcome::Finished { reason }),
                Message::Refuse(v1::Refuse { reason }) => return Err(WorkerError::Refused { reason }),
                Message::Welcome(_) => return Err(protocol("it welcomed this worker twice")),
            };
            match self.commands.try_send(command) {
                Ok(()) => {}
                // The device thread has ended; its result is about to arrive.
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(device_ended((&mut self.device).await)),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(protocol("it does not wait for answers")),
            }
        }
    }

    /// Cancels the current generation's work, on whatever thread it is.
    fn end_generation(&mut self) {
        self.cancel.cancel();
        self.pictures.forget(self.generation);
    }

    fn form_group(&mut self, group: v1::Group) -> Result<Group, WorkerError> {
        let v1::Group { generation, rank, peers } = group;
        if rank as usize >= peers.len() || generation <= self.generation {
            return Err(protocol(&format!(
                "it makes this worker rank {rank} of {} in generation {generation}, after generation {}",
                peers.len(),
                self.generation
            )));
        }
        self.end_generation();
        self.cancel = CancellationToken::new();
        (self.generation, self.rank) = (generation, rank);
        let limits = Limits::new(collective_timeout(&self.welcome));
        let addresses = peers.into_iter().map(|peer| peer.collective_address).collect();
        let config = GroupConfig { run_id: self.welcome.run_id.clone(), generation, rank, addresses, limits };
        let collective = collective::form(&self.endpoint, config, &Handle::current(), self.cancel.clone());
        Ok(Group { generation, rank, collective, cancel: self.cancel.clone() })
    }

    /// Gives up an earlier fetch, which the device thread may be waiting for.
    fn begin_fetch(&mut self, message: v1::Fetch) -> Fetch {
        self.fetching.cancel();
        self.fetching = CancellationToken::new();
        let limit = collective_timeout(&self.welcome);
        Fetch { message, limit, runtime: Handle::current(), cancel: self.fetching.clone() }
    }

    /// Has the plan's pictures read ahead.
    fn ask_for_pictures(&self, plan: &v1::Plan) -> Result<(), WorkerError> {
        if plan.generation != self.generation {
            return Ok(()); // stale; the device thread drops it too
        }
        if let Some(problem) = plan::problem(plan, self.rank, &self.config) {
            return Err(protocol(&format!("its plan of step {} is unsound: {problem}", plan.step)));
        }
        for micro_batch in &plan.micro_batches {
            for (index, occurrence) in micro_batch.occurrences.iter().enumerate() {
                let ticket = Ticket { generation: plan.generation, step: plan.step, slot: micro_batch.slot, index };
                let key = Key { streams: &self.streams, epoch: plan.epoch, occurrence };
                self.pictures.request(ticket, key.picture(micro_batch, self.config.data.crop_jitter));
            }
        }
        Ok(())
    }

    /// Says why, stops the device thread and closes the stream.
    async fn leave(mut self, result: &Result<WorkerOutcome, WorkerError>) {
        self.end_generation();
        self.fetching.cancel();
        let failed = match result {
            // The coordinator knows, or is gone.
            Ok(WorkerOutcome::Finished { .. }) | Err(WorkerError::Lost { .. } | WorkerError::Refused { .. }) => None,
            Ok(WorkerOutcome::Stopped) => {
                Some(v1::Failed { reason: "it was asked to stop".to_owned(), hint: String::new() })
            }
            Err(error) => Some(v1::Failed { reason: error_chain(error), hint: error.hint().unwrap_or_default() }),
        };
        if let Some(failed) = failed {
            // Fails when the stream is full or gone; then its end has to say it.
            let _ = self.answers.try_send(v1::SessionRequest { message: Some(Answer::Failed(failed)) });
        }
        let Self { stream, answers, commands, device, mut tasks, .. } = self;
        drop((answers, commands));
        tasks.shutdown().await;
        // The device thread ends between two micro-batches. The coordinator closes its end once it has read everything.
        let read_all = async move {
            let mut stream = stream;
            while let Ok(Some(_)) = stream.message().await {}
        };
        let device_ends = async {
            // It has ended already when its error is what ends this session; a result can be taken only once.
            if !device.is_terminated() {
                let _ = device.await;
            }
        };
        let farewell = async { tokio::join!(device_ends, read_all) };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::debug!("left before the device thread had ended");
        }
    }
}

/// Returns the coordinator's next message.
async fn next_message(url: &str, stream: &mut Streaming<v1::SessionResponse>) -> Result<Message, WorkerError> {
    let lost = |source| WorkerError::Lost { url: url.to_owned(), source };
    let response = stream.message().await.map_err(|status| lost(Some(StreamError::Status(status))))?;
    let response = response.ok_or_else(|| lost(None))?;
    response.message.ok_or_else(|| protocol("it sent a message that this version does not know"))
}

/// How long each wait for a peer may take.
fn collective_timeout(welcome: &v1::Welcome) -> Duration {
    Duration::from_millis(welcome.collective_timeout_ms.into())
}

/// Answers joiners that call for the state, as the device thread allows.
async fn send_states(
    mut calls: mpsc::Receiver<StateCall>,
    run_id: String,
    limit: Duration,
    commands: mpsc::Sender<Command>,
) {
    let mut answering = JoinSet::new();
    while let Some(call) = calls.recv().await {
        while answering.try_join_next().is_some() {}
        let (run_id, commands) = (run_id.clone(), commands.clone());
        answering.spawn(async move {
            let read = |transfer, next_step, first, most| {
                let commands = commands.clone();
                async move {
                    let (reply, block) = oneshot::channel();
                    let read = ReadState { transfer, next_step, first, most, reply };
                    commands.send(Command::ReadState(read)).await.ok()?;
                    block.await.ok()?
                }
            };
            if let Err(error) = call.serve(&run_id, limit, read).await {
                tracing::warn!(reason = error_chain(&error), "a joiner could not be sent the whole state");
            }
        });
    }
}

/// Sends signs of life, whatever the device thread does.
async fn beat(answers: mpsc::Sender<v1::SessionRequest>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let beat = v1::SessionRequest { message: Some(Answer::Heartbeat(v1::Heartbeat {})) };
        if answers.send(beat).await.is_err() {
            return;
        }
    }
}

fn device_ended(ended: Result<Result<(), WorkerError>, oneshot::error::RecvError>) -> WorkerError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) | Err(_) => WorkerError::Panicked { message: "it ended without a reason".to_owned() },
    }
}

/// Says whether the coordinator is on this machine, by its address.
fn is_here(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost:", "[::1]"].iter().any(|here| host.starts_with(here))
}

fn protocol(problem: &str) -> WorkerError {
    WorkerError::Protocol { problem: problem.to_owned() }
}

/// The host's name, for people.
fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = from_kernel.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    name.map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}
