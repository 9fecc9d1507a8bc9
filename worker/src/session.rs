//! The worker's side of the control protocol: join, route what the coordinator says, come back when the connection breaks,
//! leave.
//!
//! A session outlives its connections: the device thread keeps the state while `away` looks for the coordinator. `leaving` is its
//! end, `joiners` are peers that are sent the state.

mod away;
mod joiners;
mod leaving;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::dataset::DataRoots;
use ballast_common::rng::Streams;
use ballast_model::Device;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message as Answer;
use ballast_proto::v1::session_response::Message;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::collective::{Endpoint, GroupConfig, Limits, StateCall};
use crate::connect::{self, Backoff, Connection, Patience, connect};
use crate::device_thread::{Command, Desk, Fetch, Group, Start, spawn};
use crate::devices::{self, Opened};
use crate::draws::Key;
use crate::error::WorkerError;
use crate::forming::{AwaitedId, Means, collective_for};
use crate::latents::CachedPictures;
use crate::nccl::NcclAbility;
use crate::prefetch::{Prefetch, Ticket};
use crate::{WorkerOptions, WorkerOutcome, kernel_cache, plan, save};

/// Commands that may wait for the device thread. Reading must never block behind it, or an Abort would come too late; the
/// coordinator plans at most 64 steps ahead and waits for an answer to all else, so more than this is its mistake.
const COMMANDS_MAX: usize = 256;
/// Answers that may wait for the stream: a vote, a few acknowledgements, heartbeats.
const ANSWERS_MAX: usize = 64;
/// Threads that decode pictures. More would only take cores from the model on a CPU, and a GPU is fed by four.
const DECODE_THREADS_MAX: usize = 4;

/// Runs one worker from joining until the run is over, it is asked to stop, or something breaks.
///
/// `shutdown` turns true when the worker is to leave. It leaves at once: a step that was not committed is computed again by
/// the others. A checkpoint that it is writing it finishes; while its coordinator is gone it saves its state first.
///
/// # Errors
/// When the coordinator cannot be reached, refuses this worker or stays away, and when training cannot go on.
pub async fn run(options: WorkerOptions, shutdown: watch::Receiver<bool>) -> Result<WorkerOutcome, WorkerError> {
    let place = Place::open(&options).await?;
    let mut backoff = Backoff::default();
    let mut patience = Patience::default();
    loop {
        let session = tokio::select! {
            () = requested(shutdown.clone()) => return Ok(WorkerOutcome::Stopped),
            session = Session::join(&options, &place, patience) => session?,
        };
        let end = match session {
            Joined::Session(session) => {
                patience = session.patience();
                session.work(&place, shutdown.clone()).await?
            }
            Joined::NotYet { reason } => End::StartOver { reason },
        };
        match end {
            End::Outcome(outcome) => return Ok(outcome),
            End::StartOver { reason } => {
                tracing::warn!(reason, "this worker drops what it holds and joins anew");
                backoff.wait().await;
            }
        }
    }
}

/// How a session ends when nothing broke.
#[derive(Debug)]
enum End {
    Outcome(WorkerOutcome),
    /// The coordinator has no use for what this worker holds, only for itself.
    StartOver {
        reason: String,
    },
}

/// What came of joining.
enum Joined {
    Session(Box<Session>),
    /// The coordinator is busy with something else.
    NotYet {
        reason: String,
    },
}

/// Where a worker sits: the same for all its sessions.
struct Place {
    device: Device,
    /// What can be done with NCCL there.
    nccl: Option<NcclAbility>,
    endpoint: Endpoint,
    /// Calls of joiners that want the state, for the session in hand.
    state_calls: Arc<Mutex<mpsc::Receiver<StateCall>>>,
}

impl Place {
    async fn open(options: &WorkerOptions) -> Result<Self, WorkerError> {
        let name = options.device.clone();
        let open = move || {
            kernel_cache::open(&name);
            devices::open(&name)
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.unwrap_or_else(|panic| Err(devices::panicked(&options.device, &panic)));
        let Opened { device, nccl } = opened?;
        let nccl = options.nccl.clone().or(nccl);
        let failed = |source| WorkerError::Listen { address: options.collective_listen, source };
        let mut endpoint = Endpoint::bind(options.collective_listen).await.map_err(failed)?;
        let calls = endpoint.take_state_calls().expect("nobody else takes them");
        Ok(Self { device, nccl, endpoint, state_calls: Arc::new(Mutex::new(calls)) })
    }

    /// What this worker says of itself.
    fn join(&self, device: &str) -> v1::Join {
        v1::Join {
            protocol_version: ballast_proto::PROTOCOL_VERSION,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: host_name(),
            device: device.to_owned(),
            collective_address: self.endpoint.address().to_string(),
            process_id: std::process::id(),
            run_key: String::new(),
            former_worker_id: 0,
            nccl: self.nccl.as_ref().map(NcclAbility::said),
        }
    }
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
    /// As the first message said it.
    join: v1::Join,
    welcome: v1::Welcome,
    /// What the coordinator wants to find in a checkpoint of the state that this worker holds.
    state_json: String,
    config: Arc<RunConfig>,
    streams: Streams,
    pictures: Arc<Prefetch>,
    /// None while the coordinator is gone.
    stream: Option<Streaming<v1::SessionResponse>>,
    answers: mpsc::Sender<v1::SessionRequest>,
    commands: mpsc::Sender<Command>,
    /// How the device thread ended.
    device: oneshot::Receiver<Result<(), WorkerError>>,
    /// Answers to joiners.
    tasks: JoinSet<()>,
    /// Heartbeats of the present connection.
    beating: JoinSet<()>,
    /// True while the device thread has a checkpoint written in the background.
    saving: watch::Receiver<bool>,
    generation: u64,
    rank: u32,
    /// The current generation's NCCL id, if it is on its way.
    awaited_id: AwaitedId,
    /// Ends the current generation's work.
    cancel: CancellationToken,
    /// Ends the fetching of a peer's state.
    fetching: CancellationToken,
}

impl Session {
    /// Connects, is welcomed, and starts the device thread, which loads the model.
    async fn join(options: &WorkerOptions, place: &Place, patience: Patience) -> Result<Joined, WorkerError> {
        let join = place.join(&options.device);
        let url = options.coordinator_url.clone();
        let (first, Connection { stream, answers }) = connect(&url, &join, ANSWERS_MAX, patience).await?;
        let welcome = match first {
            Message::Welcome(welcome) => welcome,
            Message::Refuse(v1::Refuse { reason, start_over: true }) => return Ok(Joined::NotYet { reason }),
            Message::Refuse(v1::Refuse { reason, .. }) => return Err(WorkerError::Refused { reason }),
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
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let mut tasks = JoinSet::new();
        let (calls, limit) = (Arc::clone(&place.state_calls), collective_timeout(&welcome));
        tasks.spawn(joiners::send_states(calls, welcome.run_id.clone(), limit, commands.clone()));
        let start = Start {
            name: options.device.clone(),
            device: place.device.clone(),
            threads,
            checkpoint: (!welcome.checkpoint.is_empty()).then(|| PathBuf::from(&welcome.checkpoint)),
            next_step: (!welcome.catch_up).then_some(welcome.next_step),
            chain: welcome.chain.clone(),
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
        let device = spawn(start, desk);
        let mut session = Self {
            url,
            join,
            streams: Streams::new(config.run.seed),
            state_json: welcome.run_state_json.clone(),
            welcome,
            config,
            pictures,
            stream: Some(stream),
            answers,
            commands,
            device,
            tasks,
            beating: JoinSet::new(),
            saving,
            generation: 0,
            rank: 0,
            awaited_id: AwaitedId::default(),
            cancel: CancellationToken::new(),
            fetching: CancellationToken::new(),
        };
        session.start_beating();
        Ok(Joined::Session(Box::new(session)))
    }

    /// How long to look for the coordinator of this run.
    fn patience(&self) -> Patience {
        Patience::of_a_run(Duration::from_millis(self.welcome.coordinator_timeout_ms))
    }

    fn start_beating(&mut self) {
        let interval = Duration::from_millis(self.welcome.heartbeat_interval_ms.clamp(1, 60_000).into());
        self.beating = JoinSet::new(); // ends the one before
        self.beating.spawn(beat(self.answers.clone(), interval));
    }

    async fn work(mut self: Box<Self>, place: &Place, shutdown: watch::Receiver<bool>) -> Result<End, WorkerError> {
        let result = loop {
            let (shutdown_asked, saving) = (requested(shutdown.clone()), self.saving.clone());
            let leave = async {
                shutdown_asked.await;
                save::settled(saving).await;
            };
            let result = tokio::select! {
                () = leave => Ok(End::Outcome(WorkerOutcome::Stopped)),
                result = self.converse(place) => result,
            };
            let Err(WorkerError::Lost { source, .. }) = result else { break result };
            match self.come_back(source, shutdown.clone()).await {
                Ok(None) => {}
                Ok(Some(end)) => break Ok(end),
                Err(error) => break Err(error),
            }
        };
        self.leave(&result).await;
        result
    }

    /// Routes messages until the run is over or something breaks.
    async fn converse(&mut self, place: &Place) -> Result<End, WorkerError> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Err(WorkerError::Lost { url: self.url.clone(), source: None });
            };
            let message = tokio::select! {
                // First, so that the reason is told rather than its consequence.
                biased;
                ended = &mut self.device => return Err(device_ended(ended)),
                message = next_message(&self.url, stream) => message?,
            };
            let command = match message {
                Message::Group(group) => {
                    // Who takes part holds the state of the present history, whatever it held before.
                    self.state_json.clone_from(&self.welcome.run_state_json);
                    Command::Group(self.form_group(place, group)?)
                }
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
                Message::NcclId(id) => {
                    self.awaited_id.arrive(id)?;
                    continue;
                }
                Message::Finish(v1::Finish { reason }) => {
                    return Ok(End::Outcome(WorkerOutcome::Finished { reason }));
                }
                Message::Refuse(v1::Refuse { reason, start_over: true }) => return Ok(End::StartOver { reason }),
                Message::Refuse(v1::Refuse { reason, .. }) => return Err(WorkerError::Refused { reason }),
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

    fn form_group(&mut self, place: &Place, group: v1::Group) -> Result<Group, WorkerError> {
        let transport = group.transport();
        let v1::Group { generation, rank, peers, .. } = group;
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
        let means = Means {
            endpoint: &place.endpoint,
            nccl: place.nccl.as_ref().and_then(NcclAbility::library),
            is_on_device: place.device != ballast_model::cpu_device(),
            cluster: &self.config.cluster,
            answers: &self.answers,
        };
        let (collective, awaited_id) = collective_for(&means, config, transport, self.cancel.clone())?;
        self.awaited_id = awaited_id;
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
}

/// Returns the coordinator's next message.
async fn next_message(url: &str, stream: &mut Streaming<v1::SessionResponse>) -> Result<Message, WorkerError> {
    connect::next_message(stream)
        .await
        .map_err(|source| WorkerError::Lost { url: url.to_owned(), source: Some(source) })?
        .ok_or_else(|| protocol("it sent a message that this version does not know"))
}

/// How long each wait for a peer may take.
fn collective_timeout(welcome: &v1::Welcome) -> Duration {
    Duration::from_millis(welcome.collective_timeout_ms.into())
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
