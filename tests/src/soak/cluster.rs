//! The processes of a run: a coordinator and workers on loopback, started, killed, stopped and started again.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::material::{LEASE_SECONDS, Material};
use super::process::{Message, Process};

/// Name of the disturbed run.
pub(super) const RUN: &str = "soak";

/// Lines of the coordinator that are kept to explain its end.
const LAST_WORDS: usize = 30;

/// How far a worker process has come, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// Started; loads the model.
    Starting,
    /// Has loaded the model.
    Loaded,
    /// Was in a generation, and has not been given up since: it holds the state.
    Member,
}

/// A worker's place: its process comes and goes.
pub(super) struct Worker {
    pub(super) number: usize,
    pub(super) process: Option<Process>,
    pub(super) stage: Stage,
    /// Since when it is stopped.
    pub(super) stopped: Option<Instant>,
    /// Whether it was stopped since it last took part in a generation: then it may have been given up.
    was_stopped: bool,
    /// When it is to be started again.
    pub(super) start_at: Option<Instant>,
    /// When it is to go on.
    pub(super) continue_at: Option<Instant>,
    /// How many coordinators there had been when it last took part in a generation.
    coordinators: u32,
}

/// The processes.
pub(super) struct Cluster {
    material: Material,
    address: SocketAddr,
    messages: Sender<Message>,
    pub(super) coordinator: Option<Process>,
    /// Since when the coordinator is stopped.
    pub(super) coordinator_stopped: bool,
    pub(super) coordinator_start_at: Option<Instant>,
    pub(super) coordinator_continue_at: Option<Instant>,
    /// How often a coordinator was started.
    pub(super) coordinators: u32,
    /// What the coordinator said last.
    pub(super) last_words: VecDeque<String>,
    pub(super) workers: Vec<Worker>,
}

impl Cluster {
    pub(super) fn new(material: Material, messages: Sender<Message>) -> anyhow::Result<Self> {
        // A port that is free now. It is taken again at once, and again by each coordinator that follows.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
        Ok(Self {
            material,
            address: listener.local_addr()?,
            messages,
            coordinator: None,
            coordinator_stopped: false,
            coordinator_start_at: None,
            coordinator_continue_at: None,
            coordinators: 0,
            last_words: VecDeque::new(),
            workers: Vec::new(),
        })
    }

    /// Starts the coordinator: the first one makes the run and waits for so many workers, later ones continue it.
    pub(super) fn start_coordinator(&mut self, workers: usize) -> anyhow::Result<()> {
        let (listen, workers) = (self.address.to_string(), workers.to_string());
        let mut command = self.material.command(&["coordinator", "config.toml", "--name", RUN, "--listen", &listen]);
        command.args(["--workers", &workers]).args((self.coordinators > 0).then_some("--resume"));
        self.last_words.clear();
        self.coordinator =
            Some(Process::start(&mut command, &self.material.log("coordinator"), self.messages.clone())?);
        self.coordinator_start_at = None;
        self.coordinators += 1;
        Ok(())
    }

    /// Makes a place for one more worker, which is started at once.
    pub(super) fn add_worker(&mut self) -> anyhow::Result<usize> {
        let number = self.workers.last().map_or(1, |worker| worker.number + 1);
        self.workers.push(Worker::new(number, None));
        let index = self.workers.len() - 1;
        self.start_worker(index)?;
        Ok(index)
    }

    pub(super) fn start_worker(&mut self, index: usize) -> anyhow::Result<()> {
        let url = format!("http://{}", self.address);
        // A worker ends with its standard input: should this program be killed, so are they.
        let arguments = ["worker", "--coordinator", &url, "--device", "cpu", "--threads", "1", "--until-stdin-ends"];
        let worker = &mut self.workers[index];
        let log = self.material.log(&format!("worker-{}", worker.number));
        let process = Process::start(&mut self.material.command(&arguments), &log, self.messages.clone())?;
        *worker = Worker::new(worker.number, Some(process));
        Ok(())
    }

    /// SIGKILL. Returns what it was, for the history.
    pub(super) fn kill_worker(&mut self, index: usize, start_at: Option<Instant>) -> String {
        let worker = &mut self.workers[index];
        let name = worker.name();
        if let Some(mut process) = worker.process.take() {
            process.kill();
        }
        (worker.stopped, worker.continue_at, worker.start_at) = (None, None, start_at);
        name
    }

    pub(super) fn stop_worker(&mut self, index: usize, continue_at: Instant) {
        let worker = &mut self.workers[index];
        if let Some(process) = &worker.process {
            process.signal("STOP");
            (worker.stopped, worker.was_stopped, worker.continue_at) = (Some(Instant::now()), true, Some(continue_at));
            if continue_at.saturating_duration_since(Instant::now()) > Duration::from_secs(LEASE_SECONDS) {
                worker.stage = Stage::Loaded;
            }
        }
    }

    pub(super) fn continue_worker(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if let Some(process) = &worker.process {
            process.signal("CONT");
        }
        (worker.stopped, worker.continue_at) = (None, None);
    }

    /// Workers that have a process, whatever it does.
    pub(super) fn alive(&self) -> Vec<usize> {
        self.which(|worker| worker.process.is_some())
    }

    /// Workers whose process runs.
    pub(super) fn running(&self) -> Vec<usize> {
        self.which(Worker::is_running)
    }

    /// Whether anybody could commit: a coordinator that runs, and a worker that does.
    pub(super) fn can_commit(&self) -> bool {
        self.coordinator.is_some() && !self.coordinator_stopped && self.workers.iter().any(Worker::is_running)
    }

    /// Whether no worker that runs holds the state.
    pub(super) fn is_orphaned(&self) -> bool {
        !self.workers.iter().any(|worker| worker.is_running() && worker.stage == Stage::Member)
    }

    pub(super) fn by_process(&self, process_id: u32) -> Option<usize> {
        let is_meant = |worker: &Worker| worker.process.as_ref().is_some_and(|process| process.id() == process_id);
        self.workers.iter().position(is_meant)
    }

    /// Takes note of what a worker says of itself.
    pub(super) fn worker_said(&mut self, index: usize, text: &str) {
        let worker = &mut self.workers[index];
        if text.contains("model loaded") {
            worker.stage = worker.stage.max(Stage::Loaded);
        } else if text.contains("generation formed") {
            (worker.stage, worker.coordinators) = (Stage::Member, self.coordinators);
            // What it said before it was stopped may be read later.
            worker.was_stopped = worker.stopped.is_some();
        }
    }

    pub(super) fn coordinator_said(&mut self, text: &str) {
        self.last_words.truncate(LAST_WORDS - 1);
        self.last_words.push_front(text.to_owned());
    }

    /// Takes the workers that have ended by themselves: which, and how.
    pub(super) fn reap_workers(&mut self) -> Vec<(usize, String)> {
        let mut ended = Vec::new();
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            let Some(status) = worker.process.as_mut().and_then(Process::exit) else { continue };
            ended.push((index, format!("{} ended by itself: {status}", worker.name())));
            worker.process = None;
            (worker.stopped, worker.continue_at) = (None, None);
        }
        ended
    }

    /// Says whether the run is over: the coordinator has ended, and well.
    ///
    /// # Errors
    /// When it ended in any other way, which it has no reason to.
    pub(super) fn is_over(&mut self) -> anyhow::Result<bool> {
        let Some(status) = self.coordinator.as_mut().and_then(Process::exit) else { return Ok(false) };
        self.coordinator = None;
        if status.success() {
            return Ok(true);
        }
        let said = self.last_words.iter().find(|line| line.starts_with("error: ")).cloned().unwrap_or_default();
        bail!("the coordinator ended by itself: {status}: {said}")
    }

    /// Whether a worker that runs undisturbed belongs to the run, hence has to end with it.
    pub(super) fn ends_with_the_run(&self, index: usize) -> bool {
        let worker = &self.workers[index];
        !worker.was_stopped && worker.stage == Stage::Member && worker.coordinators == self.coordinators
    }

    fn which(&self, is_meant: impl Fn(&Worker) -> bool) -> Vec<usize> {
        (0..self.workers.len()).filter(|index| is_meant(&self.workers[*index])).collect()
    }
}

impl Worker {
    fn new(number: usize, process: Option<Process>) -> Self {
        Self {
            number,
            process,
            stage: Stage::Starting,
            stopped: None,
            was_stopped: false,
            start_at: None,
            continue_at: None,
            coordinators: 0,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some() && self.stopped.is_none()
    }

    /// `worker 3 (process 4711)`.
    pub(super) fn name(&self) -> String {
        match &self.process {
            Some(process) => format!("worker {} (process {})", self.number, process.id()),
            None => format!("worker {}", self.number),
        }
    }
}

/// Longer than a lease, so that a worker that stands still for so long is given up.
pub(super) fn beyond_the_lease(length: f64) -> Duration {
    Duration::from_secs_f64(LEASE_SECONDS as f64 * (1.2 + 0.4 * length))
}

/// So short that no worker is given up for it: a lease less two heartbeats.
pub(super) fn within_the_lease(length: f64) -> Duration {
    Duration::from_secs_f64((LEASE_SECONDS as f64 - 2.0).max(0.2) * (0.1 + 0.9 * length))
}
