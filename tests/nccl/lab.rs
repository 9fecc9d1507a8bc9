//! A folder with a tiny model and tiny pictures, and a run in it: its coordinator and its workers, all in this process.

use std::path::PathBuf;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_coordinator::{Outcome, PreparedRun, RunError, RunEvent, serve};
use ballast_model::{Preset, SavePrecision, init_model};
use ballast_worker::{NcclAbility, WorkerError, WorkerOptions, WorkerOutcome};
use image::{Rgb, RgbImage};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Far beyond what any run needs, so that only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(120);

/// A place to train in, removed when dropped.
pub(crate) struct Lab(TempDir);

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        init_model(Preset::Tiny, 7).save_diffusers(&lab.path("model"), SavePrecision::Fp32).unwrap();
        std::fs::create_dir(lab.path("data")).unwrap();
        for number in 0..6_u32 {
            let picture = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 4) as u8, (y * 3 + number * 40) as u8, 9]));
            picture.save(lab.path("data").join(format!("picture_{number}.png"))).unwrap();
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn prepare(&self, name: &str, settings: &[(&str, &str)]) -> PreparedRun {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        let (data, model) = (path("data"), path("model"));
        let basis = [
            ("data.root", data.as_str()),
            ("model.path", model.as_str()),
            ("data.resolution", "64"),
            ("step.slots", "3"),
            ("step.micro_batch_size", "1"),
            ("optimizer.lr", "1e-4"),
            ("run.epochs", "3"),
            ("cluster.reduction", "exact"),
        ];
        let all: Vec<_> = [&basis, settings].concat();
        let all: Vec<_> = all.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let config = RunConfig::load(None, &all, []).unwrap();
        let dataset = Dataset::scan(&config.data).unwrap();
        PreparedRun::create(config, dataset, self.path("runs").join(name)).unwrap()
    }

    /// The model that one worker makes, which nobody disturbs.
    pub(crate) async fn alone(&self) -> Vec<u8> {
        let (outcome, _) = Crew::start(self, "alone", &[], vec![None]).await.finish().await;
        assert!(matches!(outcome, Ok(Outcome::Finished { .. })), "{outcome:?}");
        self.model("alone")
    }

    /// The finished model of a run.
    pub(crate) fn model(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path("runs").join(name).join("final.safetensors")).unwrap()
    }
}

struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<WorkerOutcome, WorkerError>>,
}

/// A coordinator and its workers.
pub(crate) struct Crew {
    url: String,
    coordinator: JoinHandle<Result<Outcome, RunError>>,
    /// Keeps the run from being told to stop.
    _stop: watch::Sender<bool>,
    events: mpsc::UnboundedReceiver<RunEvent>,
    seen: Vec<RunEvent>,
    workers: Vec<Worker>,
}

impl Crew {
    /// Starts a run that waits for so many workers.
    pub(crate) async fn open(lab: &Lab, name: &str, settings: &[(&str, &str)], workers: u32) -> Self {
        let run = lab.prepare(name, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, events) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let coordinator = tokio::spawn(serve(listener, run, workers, sender, stopped));
        Self { url, coordinator, _stop: stop, events, seen: Vec::new(), workers: Vec::new() }
    }

    /// Starts a run with all its workers, which join in this order.
    pub(crate) async fn start(
        lab: &Lab,
        name: &str,
        settings: &[(&str, &str)],
        abilities: Vec<Option<NcclAbility>>,
    ) -> Self {
        let mut crew = Self::open(lab, name, settings, abilities.len() as u32).await;
        for ability in abilities {
            crew.join(ability).await;
        }
        crew
    }

    fn spawn(&self, nccl: Option<NcclAbility>) -> Worker {
        let options = WorkerOptions {
            coordinator_url: self.url.clone(),
            device: "cpu".to_owned(),
            collective_listen: "127.0.0.1:0".parse().unwrap(),
            threads: Some(1),
            nccl,
        };
        let (stop, stopped) = watch::channel(false);
        Worker { stop, task: tokio::spawn(ballast_worker::run(options, stopped)) }
    }

    /// Starts a worker and waits until it has joined.
    pub(crate) async fn join(&mut self, nccl: Option<NcclAbility>) {
        let worker = self.spawn(nccl);
        self.workers.push(worker);
        let number = self.workers.len();
        let joined = |event: &RunEvent| matches!(event, RunEvent::WorkerJoined { .. });
        while self.seen.iter().filter(|event| joined(event)).count() < number {
            self.wait_for(joined).await;
        }
    }

    /// Starts a worker and waits for its end.
    pub(crate) async fn try_join(&mut self, nccl: Option<NcclAbility>) -> Result<WorkerOutcome, WorkerError> {
        tokio::time::timeout(DEADLINE, self.spawn(nccl).task).await.expect("it ends").unwrap()
    }

    /// Waits until something happens that has not been seen yet.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&RunEvent) -> bool) {
        loop {
            let event = tokio::time::timeout(DEADLINE, self.events.recv()).await;
            let event = event.expect("it happens").expect("it happens before the run is over");
            self.seen.push(event);
            if self.seen.last().is_some_and(&wanted) {
                return;
            }
        }
    }

    /// Has a worker leave, by the order in which they joined, and waits until it has.
    pub(crate) async fn stop(&mut self, worker: usize) {
        let worker = self.workers.remove(worker);
        let _ = worker.stop.send(true);
        let outcome = tokio::time::timeout(DEADLINE, worker.task).await.expect("it leaves").unwrap();
        assert!(matches!(outcome, Ok(WorkerOutcome::Stopped)), "{outcome:?}");
    }

    /// Waits for the end of the run and of all its workers.
    pub(crate) async fn finish(mut self) -> (Result<Outcome, RunError>, Vec<RunEvent>) {
        let outcome = tokio::time::timeout(DEADLINE, self.coordinator).await.expect("the run ends").unwrap();
        for worker in self.workers {
            let ended = tokio::time::timeout(DEADLINE, worker.task).await.expect("workers end").unwrap();
            assert!(matches!(ended, Ok(WorkerOutcome::Finished { .. })), "{ended:?}");
            drop(worker.stop);
        }
        while let Ok(event) = self.events.try_recv() {
            self.seen.push(event);
        }
        (outcome, self.seen)
    }
}
