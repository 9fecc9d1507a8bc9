//! One thread owns the model, the optimizer and the device. It takes commands in the order in which the coordinator sent
//! them and answers on the session's stream; tokio only moves the messages.

mod absence;
mod catch_up;
mod data_fingerprint;
mod saving;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ballast_common::config::RunConfig;
use ballast_common::error_chain;
use ballast_model::Device;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Span, info_span};

use crate::collective::{Collective, CollectiveError, LinkError, Reduction};
use crate::device_watch::DeviceWatch;
use crate::engine::{Engine, Formed, HostEngine, Measure};
use crate::error::WorkerError;
use crate::latents::{CachedPictures, Encoder};
use crate::out_of_memory;
use crate::prefetch::Prefetch;
use crate::samples;
use crate::save::Background;
use crate::trainer::{self, Trainer};
use absence::NO_CHAIN;
pub(crate) use absence::{Attach, SaveAlone};
use catch_up::CatchUp;
pub(crate) use catch_up::{Fetch, ReadState};
use data_fingerprint::DataFingerprint;

/// What the device thread is told.
pub(crate) enum Command {
    Group(Group),
    Plan(v1::Plan),
    Commit(v1::Commit),
    Abort(v1::Abort),
    Save(v1::Save),
    Sample(v1::Sample),
    Offer(v1::Offer),
    Fetch(Fetch),
    ReadState(ReadState),
    Attach(Attach),
    SaveAlone(SaveAlone),
}

/// A generation that has begun.
pub(crate) struct Group {
    pub(crate) generation: u64,
    pub(crate) rank: u32,
    pub(crate) collective: Formed,
    /// Cancelled by the session as soon as the generation ends, while this thread may still be computing.
    pub(crate) cancel: CancellationToken,
}

/// What the thread begins with.
pub(crate) struct Start {
    /// What the device is called.
    pub(crate) name: String,
    pub(crate) device: Device,
    /// Threads that the model's operations may use.
    pub(crate) threads: usize,
    /// The checkpoint to go on from; none: the config's model.
    pub(crate) checkpoint: Option<PathBuf>,
    /// Where the coordinator stands; none: the state comes from a peer.
    pub(crate) next_step: Option<u64>,
    /// Chain of the ledger at that step.
    pub(crate) chain: String,
    pub(crate) cached: CachedPictures,
    /// Whether the data is to be looked through and compared with the coordinator's.
    pub(crate) compare_data: bool,
}

/// What the thread works with.
pub(crate) struct Desk {
    pub(crate) config: Arc<RunConfig>,
    pub(crate) run_id: String,
    pub(crate) pictures: Arc<Prefetch>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) answers: mpsc::Sender<v1::SessionRequest>,
    /// True while a checkpoint is written in the background.
    pub(crate) saving: watch::Sender<bool>,
}

/// The generation that the thread works in.
struct Current<S> {
    generation: u64,
    rank: u32,
    collective: Box<dyn Collective<S>>,
    cancel: CancellationToken,
}

/// A reduced step that waits for its commit.
struct Pending<S> {
    plan: v1::Plan,
    gradient: S,
    norm: f64,
    hash: String,
    span: Span,
    waiting: Span,
}

/// The thread's state between two commands.
struct DeviceThread<E: Engine> {
    trainer: Trainer<E>,
    desk: Desk,
    group: Option<Current<E::Flat>>,
    plans: VecDeque<v1::Plan>,
    pending: Option<Pending<E::Flat>>,
    catch_up: CatchUp,
    /// Chain of the ledger that the state belongs to: the history it is of.
    chain: String,
    background: Background,
    fingerprint: DataFingerprint,
    watch: DeviceWatch,
}

/// The session has gone; its own error says why.
struct Closed;

/// Starts the thread, which loads the model, says `Ready`, and works until the session closes its end.
///
/// It is a thread of a pool of its own, so that every parallel operation of the model stays within the worker's share of
/// the machine.
pub(crate) fn spawn(start: Start, desk: Desk) -> oneshot::Receiver<Result<(), WorkerError>> {
    let (ended, receiver) = oneshot::channel();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(start.threads).thread_name(|n| format!("device-{n}"));
    let pool = pool.build().expect("the system has threads to spare");
    let name = start.name.clone();
    let work = move || {
        let work = AssertUnwindSafe(|| run(start, desk));
        let result = catch_unwind(work).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned();
            Err(out_of_memory::death(name, message))
        });
        let _ = ended.send(result); // fails when the session did not wait for it
    };
    pool.spawn(work);
    receiver
}

/// Works with the engine of the device.
fn run(start: Start, desk: Desk) -> Result<(), WorkerError> {
    #[cfg(feature = "cuda")]
    if start.device != ballast_model::cpu_device() {
        type OnGpu = crate::engine::DeviceEngine<ballast_model::cuda::CubeMemory>;
        return DeviceThread::<OnGpu>::load(start, desk)?.run();
    }
    DeviceThread::<HostEngine>::load(start, desk)?.run()
}

impl<E: Engine> DeviceThread<E> {
    fn load(start: Start, desk: Desk) -> Result<Self, WorkerError> {
        let watch = DeviceWatch::start();
        let Start { device, checkpoint, next_step, chain, cached, compare_data, .. } = start;
        let fingerprint = DataFingerprint::start(compare_data.then(|| desk.config.data.clone()));
        let encoder = Encoder::new(cached);
        let trainer = trainer::load(&desk.config, checkpoint.as_deref(), encoder, &device)?;
        if let Some(next_step) = next_step.filter(|next_step| trainer.next_step() != *next_step) {
            let problem = format!("it wants step {next_step} next, its checkpoint holds {} steps", trainer.next_step());
            return Err(WorkerError::Protocol { problem });
        }
        tracing::info!(parameters = trainer.elements(), next_step, "model loaded");
        let background = Background::new(desk.config.checkpoint.background, desk.saving.clone());
        let (plans, catch_up) = (VecDeque::new(), CatchUp::default());
        // Who is to be sent the state holds none of the run, whatever its own model is.
        let chain = if next_step.is_some() { chain } else { NO_CHAIN.to_owned() };
        Ok(Self { trainer, desk, group: None, plans, pending: None, catch_up, chain, background, fingerprint, watch })
    }

    fn run(mut self) -> Result<(), WorkerError> {
        self.say_ready()?;
        loop {
            // Everything that has arrived comes first: it may say that the next step is not wanted any more.
            let command = match self.desk.commands.try_recv() {
                Ok(command) => Some(command),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
                Err(mpsc::error::TryRecvError::Empty) => match self.next_plan() {
                    Some(plan) => {
                        self.step(plan)?;
                        continue;
                    }
                    None => self.desk.commands.blocking_recv(),
                },
            };
            let Some(command) = command else { return Ok(()) };
            self.obey(command)?;
        }
    }

    fn obey(&mut self, command: Command) -> Result<(), WorkerError> {
        match command {
            Command::Group(group) => {
                self.end_generation();
                let Group { generation, rank, collective, cancel } = group;
                tracing::info!(generation, rank, "generation formed");
                let collective = self.trainer.engine().collective(collective);
                self.group = Some(Current { generation, rank, collective, cancel });
            }
            Command::Plan(plan) => self.plans.push_back(plan),
            Command::Commit(commit) => self.commit(&commit)?,
            Command::Abort(abort) if self.group.as_ref().is_some_and(|group| group.generation == abort.generation) => {
                tracing::info!(generation = abort.generation, reason = abort.reason, "generation aborted");
                self.end_generation();
            }
            Command::Abort(_) => {} // of a generation that has ended already
            Command::Save(save) => self.save(&save)?,
            Command::Sample(sample) => self.sample(&sample),
            Command::Offer(offer) => self.offer(&offer)?,
            Command::Fetch(fetch) => self.fetch(fetch)?,
            Command::ReadState(read) => self.read_state(read),
            Command::Attach(attach) => self.attach(attach)?,
            Command::SaveAlone(save) => self.save_alone(save)?,
        }
        Ok(())
    }

    /// Drops what a generation has not committed, and its collective.
    fn end_generation(&mut self) {
        self.pending = None;
        self.plans.clear();
        self.group = None;
        self.catch_up.offers.clear();
    }

    /// Returns the plan to compute now: the next step's, unless a reduced step still waits for its commit.
    fn next_plan(&mut self) -> Option<v1::Plan> {
        let group = self.group.as_ref()?;
        if self.pending.is_some() {
            return None;
        }
        let next_step = self.trainer.next_step();
        self.plans.retain(|plan| plan.generation == group.generation && plan.step >= next_step);
        self.plans.pop_front_if(|plan| plan.step == next_step)
    }

    /// Computes this worker's slots of a step, reduces the gradient with the peers and votes.
    fn step(&mut self, plan: v1::Plan) -> Result<(), WorkerError> {
        let group = self.group.as_mut().expect("plans are kept within a generation only");
        let span =
            info_span!("worker.step", rank = group.rank, step = plan.step as i64, generation = plan.generation as i64);
        ballast_proto::set_parent(&span, &plan.traceparent);
        let entered = span.enter();
        let started = Instant::now();
        let Some(computed) = self.trainer.compute(&plan, &self.desk.pictures, &group.cancel)? else {
            return Ok(()); // the Abort that says why is on its way
        };
        let compute_seconds = started.elapsed().as_secs_f64();
        self.watch.stepped(plan.step, compute_seconds, &self.trainer.model().device());
        let filled = &plan.slot_ranks[..plan.filled_slots as usize]; // plan.rs has checked it
        let reduction =
            Reduction { step: plan.step, slot_ranks: filled, elements: self.trainer.engine().flat_elements() };
        let reduced = info_span!("all_reduce").in_scope(|| group.collective.all_reduce(reduction, computed.parts));
        let gradient = match reduced {
            Ok(gradient) => gradient,
            Err(error @ CollectiveError::Wedged { .. }) => return Err(WorkerError::Collective(error)),
            Err(error) => {
                drop(entered);
                self.collective_failed(&plan, &error);
                return Ok(());
            }
        };
        let Measure { norm, hash } = self.trainer.engine().measure(&gradient);
        if !norm.is_finite() {
            return Err(WorkerError::Overflow { step: plan.step });
        }
        let reduced = v1::Reduced {
            generation: plan.generation,
            step: plan.step,
            gradient_hash: hash.clone(),
            gradient_norm: norm,
            losses: computed.losses,
            compute_seconds,
        };
        let waiting = info_span!("commit");
        drop(entered);
        if self.answer(Message::Reduced(reduced)).is_ok() {
            self.pending = Some(Pending { plan, gradient, norm, hash, span, waiting });
        }
        Ok(())
    }

    /// Reports a broken collective, unless it was cancelled: then the coordinator knows.
    fn collective_failed(&mut self, plan: &v1::Plan, error: &CollectiveError) {
        let is_over = self.group.as_ref().is_none_or(|group| group.cancel.is_cancelled());
        if matches!(error, CollectiveError::Cancelled) || is_over {
            return;
        }
        let reason = error_chain(error);
        tracing::warn!(step = plan.step, generation = plan.generation, reason, "collective failed");
        let (generation, step) = (plan.generation, plan.step);
        let failed =
            v1::CollectiveFailed { generation, step, reason, peer_rank: error.peer(), peer_closed: is_closed(error) };
        let _ = self.answer(Message::CollectiveFailed(failed));
    }

    fn commit(&mut self, commit: &v1::Commit) -> Result<(), WorkerError> {
        let Some(pending) = self.pending.take() else {
            let problem = format!("it committed step {}, which this worker did not vote for", commit.step);
            return Err(WorkerError::Protocol { problem });
        };
        let Pending { plan, gradient, norm, hash, span, waiting } = pending;
        drop(waiting);
        // Of whatever generation: after an absence the others may have computed the step anew, to the same gradient.
        if plan.step != commit.step {
            let problem = format!("it committed step {} instead of step {}", commit.step, plan.step);
            return Err(WorkerError::Protocol { problem });
        }
        if hash != commit.gradient_hash {
            let (step, committed) = (plan.step, commit.gradient_hash.clone());
            return Err(WorkerError::CommitMismatch { step, committed, held: hash });
        }
        self.chain.clone_from(&commit.chain);
        span.in_scope(|| info_span!("optimizer").in_scope(|| self.trainer.apply(gradient, norm, &plan)));
        let _ = self.answer(Message::Applied(v1::Applied { generation: plan.generation, step: plan.step }));
        Ok(())
    }

    fn sample(&mut self, sample: &v1::Sample) {
        let folder = Path::new(&sample.folder);
        let (paths, error) =
            samples::draw(self.trainer.model(), &self.desk.config, sample.next_step, &sample.prompts, folder);
        if let Some(error) = &error {
            tracing::warn!(error, "a sample could not be drawn");
        }
        let paths = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let (next_step, error) = (sample.next_step, error.unwrap_or_default());
        let _ = self.answer(Message::Sampled(v1::Sampled { next_step, paths, error, request: sample.request }));
    }

    /// Sends a message. Fails when the session has ended; the loop notices by itself.
    fn answer(&self, message: Message) -> Result<(), Closed> {
        let request = v1::SessionRequest { message: Some(message) };
        self.desk.answers.blocking_send(request).map_err(|_| Closed)
    }
}

/// Whether the peer has hung up: it has a reason of its own, which it tells itself.
fn is_closed(error: &CollectiveError) -> bool {
    matches!(
        error,
        CollectiveError::Connect { source: LinkError::Closed, .. }
            | CollectiveError::Link { source: LinkError::Closed, .. }
    )
}
