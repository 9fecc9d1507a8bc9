//! A run before it starts: config, data, schedule, run folder and ledger, all checked.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ballast_common::config::{ClusterConfig, CollectiveKind, DeviceKind, Reduction, RunConfig};
use ballast_common::dataset::Dataset;
use ballast_common::schedule::{RunSchedule, ScheduleOptions};

use crate::checkpoints;
use crate::error::RunError;
use crate::ledger::{End, LastCommit, Ledger, SampleRow};
use crate::lock::{RunLock, this_process};
use crate::run_state::{CoreConfig, Head, LeftBehind};
use crate::wire;

/// File of the resolved config within a run folder.
pub const CONFIG_FILE: &str = "config.toml";
/// File of the ledger within a run folder.
pub const LEDGER_FILE: &str = "ledger.sqlite";
/// Folder of the checkpoints within a run folder.
pub const CHECKPOINTS_FOLDER: &str = "checkpoints";

/// How long a running run waits for joiners to be sent the state: 10 GB at 20 MB/s, and a joiner that is slower would hold
/// the others up more than it helps.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(600);

/// A run that can start: everything that can be wrong beforehand has been checked.
pub struct PreparedRun {
    pub(crate) config: RunConfig,
    pub(crate) dataset: Dataset,
    pub(crate) run_folder: PathBuf,
    pub(crate) ledger: Ledger,
    pub(crate) schedule: RunSchedule,
    pub(crate) first_step: u64,
    /// Folder of the checkpoint to start from; none: the config's model.
    pub(crate) checkpoint: Option<PathBuf>,
    /// Held until the run has ended.
    pub(crate) lock: RunLock,
    /// Which start of the run's coordinator this is.
    pub(crate) incarnation: u64,
    /// What a coordinator that was cut short has left to this one.
    pub(crate) left_behind: Option<LeftBehind>,
    /// Workers outlive their connection, and may come back.
    pub(crate) workers_may_return: bool,
}

impl PreparedRun {
    /// Checks everything, then makes the run folder with its config and an empty ledger.
    ///
    /// # Errors
    /// When the config is incomplete, there is nothing to train or no model, or the folder holds a run already.
    /// Then nothing has been written.
    pub fn create(config: RunConfig, dataset: Dataset, run_folder: PathBuf) -> Result<Self, RunError> {
        let schedule = check(&config, &dataset)?;
        if holds_run(&run_folder) {
            return Err(RunError::RunExists { path: run_folder });
        }
        for folder in ["", CHECKPOINTS_FOLDER, "logs", "samples"] {
            let path = run_folder.join(folder);
            fs::create_dir_all(&path).map_err(|source| RunError::File { action: "create", path, source })?;
        }
        let run_folder = absolute(run_folder)?;
        let lock = RunLock::take(&run_folder)?;
        write_atomically(&run_folder.join(CONFIG_FILE), config.to_toml().as_bytes())?;
        let (ledger, incarnation) = create_ledger(&run_folder, &dataset, &schedule)?;
        Ok(Self::new((config, dataset, schedule), (run_folder, lock), (ledger, incarnation)))
    }

    /// Opens an existing run where its newest sound checkpoint stands. Steps committed after it are taken back, with a
    /// record in the ledger; they will be computed again, to the same bits.
    ///
    /// # Errors
    /// When there is no run, when another coordinator has it in hand, when the data or what is learned has changed, or when
    /// no checkpoint can be read although there are some.
    pub fn resume(config: RunConfig, dataset: Dataset, run_folder: PathBuf) -> Result<Self, RunError> {
        let (mut run, _) = Self::reopen(config, dataset, run_folder)?;
        run.go_back()?;
        Ok(run)
    }

    /// Opens an existing run where its ledger stands, for workers that may still hold the state; see
    /// [`PreparedRun::with_returning_workers`]. A run that has ended in good order has no such workers: it is resumed.
    ///
    /// # Errors
    /// As [`PreparedRun::resume`].
    pub fn take_over(config: RunConfig, dataset: Dataset, run_folder: PathBuf) -> Result<Self, RunError> {
        let (run, ended) = Self::reopen(config, dataset, run_folder)?;
        let mut run = run.with_returning_workers();
        match run.ledger.last_commit()? {
            Some(commit) if ended.is_none() => run.go_on_after(commit)?,
            _ => run.go_back()?,
        }
        Ok(run)
    }

    /// Lets workers come back whose connection broke: they outlive it, as those of `ballast train` do not.
    pub fn with_returning_workers(mut self) -> Self {
        self.workers_may_return = true;
        self
    }

    /// A run in the hands of this process, at its first step.
    fn new(
        (config, dataset, schedule): (RunConfig, Dataset, RunSchedule),
        (run_folder, lock): (PathBuf, RunLock),
        (ledger, incarnation): (Ledger, u64),
    ) -> Self {
        Self {
            config,
            dataset,
            run_folder,
            ledger,
            schedule,
            first_step: 0,
            checkpoint: None,
            lock,
            incarnation,
            left_behind: None,
            workers_may_return: false,
        }
    }

    /// Opens a run and makes this process its coordinator. Returns how it had ended, too.
    fn reopen(config: RunConfig, dataset: Dataset, run_folder: PathBuf) -> Result<(Self, Option<End>), RunError> {
        let schedule = check(&config, &dataset)?;
        for missing in [CONFIG_FILE, LEDGER_FILE] {
            if !run_folder.join(missing).exists() {
                return Err(RunError::NoRun { path: run_folder, missing });
            }
        }
        let run_folder = absolute(run_folder)?;
        let lock = RunLock::take(&run_folder)?;
        check_unchanged(&config, &read_config(&run_folder)?)?;
        let mut ledger = Ledger::open(&run_folder.join(LEDGER_FILE))?;
        let expected = ledger.fact("fingerprint")?.unwrap_or_default();
        if expected != dataset.fingerprint {
            let roots = dataset.roots.clone();
            return Err(RunError::DataChanged { roots, found: dataset.fingerprint, expected });
        }
        let ended = ledger.end()?;
        let incarnation = ledger.begin_incarnation(&this_process(), &new_run_key())?;
        checkpoints::delete_leftovers(&run_folder);
        write_atomically(&run_folder.join(CONFIG_FILE), config.to_toml().as_bytes())?;
        let run = Self::new((config, dataset, schedule), (run_folder, lock), (ledger, incarnation));
        Ok((run, ended))
    }

    /// Starts from the newest sound checkpoint.
    fn go_back(&mut self) -> Result<(), RunError> {
        let start = checkpoints::go_back(&mut self.ledger, &self.run_folder, None)?;
        (self.first_step, self.checkpoint) = (start.next_step, start.checkpoint);
        Ok(())
    }

    /// Starts where the ledger stands.
    fn go_on_after(&mut self, commit: LastCommit) -> Result<(), RunError> {
        self.first_step = commit.step + 1;
        // A damaged checkpoint is of no consequence as long as workers hold the state.
        let newest = checkpoints::newest_sound(&self.run_folder, &mut self.ledger).unwrap_or_default();
        let at_head = newest.checkpoint.filter(|_| newest.next_step == self.first_step);
        self.left_behind = Some(LeftBehind {
            head: Head {
                step: commit.step,
                generation: commit.generation,
                gradient_hash: wire::hex(&commit.gradient_hash),
                previous_chain: wire::hex(&commit.previous_chain),
            },
            members: self.ledger.last_members()?.into_iter().collect(),
            is_saved: at_head.is_some(),
            is_complete: self.is_done(),
        });
        self.checkpoint = at_head;
        Ok(())
    }

    /// Steps of all epochs, whatever `run.max_steps` says.
    pub fn total_steps(&self) -> u64 {
        self.schedule.steps()
    }

    /// One past the last step that this start will compute.
    pub fn stop_step(&self) -> u64 {
        self.config.run.max_steps.unwrap_or(u64::MAX).min(self.total_steps())
    }

    /// First step that this start will compute.
    pub fn next_step(&self) -> u64 {
        self.first_step
    }

    /// The run folder, absolute.
    pub fn run_folder(&self) -> &Path {
        &self.run_folder
    }

    /// The resolved config.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Whether all steps are done and the final model is there: nothing is left to do, and nobody to be told.
    pub fn is_complete(&self) -> bool {
        self.is_done() && self.left_behind.is_none()
    }

    /// Where the coordinator of this run listened the last time.
    pub fn last_address(run_folder: &Path) -> Option<SocketAddr> {
        let ledger = Ledger::open_to_read(&run_folder.join(LEDGER_FILE)).ok()?;
        ledger.address().ok()??.parse().ok()
    }

    fn is_done(&self) -> bool {
        self.first_step >= self.stop_step() && self.run_folder.join("final.safetensors").exists()
    }

    pub(crate) fn run_id(&self) -> String {
        run_id(&self.run_folder)
    }

    pub(crate) fn schedule_options(&self) -> ScheduleOptions {
        ScheduleOptions::from(&self.config)
    }

    /// What the pure core needs to know.
    pub(crate) fn core_config(&self, workers: u32) -> Result<CoreConfig, RunError> {
        let RunConfig { cluster, checkpoint, sample, .. } = &self.config;
        let stop_step = self.stop_step();
        let every = |steps: u64| (1..=stop_step).filter(move |done| steps > 0 && done.is_multiple_of(steps));
        let is_due = |epochs: &u64| checkpoint.every_epochs > 0 && epochs.is_multiple_of(checkpoint.every_epochs);
        let from = checkpoint.from_epochs.max(1);
        let epochs = (from..=self.schedule.epochs()).filter(is_due).map(|epochs| self.schedule.first_step(epochs));
        let mut sample_at = BTreeSet::new();
        if !sample.prompts.is_empty() {
            sample_at.extend(every(sample.every_steps));
            if sample.at_start && self.first_step == 0 {
                sample_at.insert(0);
            }
        }
        Ok(CoreConfig {
            first_step: self.first_step,
            stop_step: stop_step.max(self.first_step),
            checkpoint_at: every(checkpoint.every_steps).chain(epochs).collect(),
            sample_at,
            workers: workers as usize,
            min_workers: (cluster.min_workers as usize).min(workers as usize),
            join_timeout: cluster.join_timeout,
            lease: cluster.lease,
            plan_ahead: u64::from(cluster.plan_ahead),
            slots: self.config.step.slots as usize,
            collective: cluster.collective,
            catch_up_timeout: CATCH_UP_TIMEOUT,
            last_generation: self.ledger.last_generation()?,
            chain: wire::hex(&self.ledger.chain_after(self.first_step)?.unwrap_or_default()),
            rolled_back_from: self.ledger.rolled_back_from()?,
            may_return: self.workers_may_return,
            rejoin_timeout: cluster.rejoin_timeout,
            max_wait: cluster.max_wait,
            reunion: self.left_behind.clone(),
        })
    }
}

/// How a run folder stands, for a command line that does not say whether it begins a run or goes on with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunStanding {
    /// There is none.
    None,
    /// It has ended.
    Over,
    /// Its coordinator ended without a word: killed, or its machine went down.
    CutShort,
    /// A coordinator has it in hand.
    InUse,
}

/// Says how the run of a folder stands. Changes nothing.
pub fn standing(run_folder: &Path) -> RunStanding {
    if RunLock::is_held(run_folder) {
        return RunStanding::InUse;
    }
    if !holds_run(run_folder) {
        return RunStanding::None;
    }
    let Ok(ledger) = Ledger::open_to_read(&run_folder.join(LEDGER_FILE)) else { return RunStanding::Over };
    if ledger.run_key().is_ok_and(|key| !key.is_empty()) && ledger.end().is_ok_and(|end| end.is_none()) {
        RunStanding::CutShort
    } else {
        RunStanding::Over
    }
}

/// Makes a name that no other run has. It decides on nothing but who belongs to whom.
fn new_run_key() -> String {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), this_process());
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{random:016x}{:016x}", time.as_nanos() as u64)
}

/// Whether a folder holds anything of a run that is worth keeping. A coordinator that was killed while it made the folder
/// leaves a config alone.
fn holds_run(run_folder: &Path) -> bool {
    let has_checkpoints =
        || fs::read_dir(run_folder.join(CHECKPOINTS_FOLDER)).is_ok_and(|mut all| all.next().is_some());
    run_folder.join(LEDGER_FILE).exists() || (run_folder.join(CONFIG_FILE).exists() && has_checkpoints())
}

/// Makes the run's ledger, which appears under its name when it is complete. It holds all that `report` needs, so that the
/// pictures may be gone by then.
fn create_ledger(run_folder: &Path, dataset: &Dataset, schedule: &RunSchedule) -> Result<(Ledger, u64), RunError> {
    let facts = [
        ("run_id", run_id(run_folder)),
        ("fingerprint", dataset.fingerprint.clone()),
        ("epochs", schedule.epochs().to_string()),
        ("total_steps", schedule.steps().to_string()),
    ];
    let facts: Vec<_> = facts.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let folders: Vec<_> = dataset.folders.iter().map(|folder| folder.path.as_str()).collect();
    let samples = dataset.samples.iter().map(|sample| SampleRow {
        path: &sample.path,
        folder: sample.folder,
        multiply: sample.multiply,
        loss_scale: sample.loss_scale,
    });
    let (path, partial) = (run_folder.join(LEDGER_FILE), run_folder.join(".ledger.partial"));
    for suffix in ["", "-wal", "-shm"] {
        // Left by a coordinator that was killed here, if it is there at all.
        let _ = fs::remove_file(run_folder.join(format!(".ledger.partial{suffix}")));
    }
    let mut ledger = Ledger::create(&partial, &facts, &folders, samples)?;
    let incarnation = ledger.begin_incarnation(&this_process(), &new_run_key())?;
    drop(ledger); // writes everything into the one file
    let renamed = fs::rename(&partial, &path).and_then(|()| fs::File::open(run_folder)?.sync_all());
    renamed.map_err(|source| RunError::File { action: "create", path: path.clone(), source })?;
    Ok((Ledger::open(&path)?.in_incarnation(incarnation), incarnation))
}

/// Reads the resolved config of a run folder.
pub(crate) fn read_config(run_folder: &Path) -> Result<RunConfig, RunError> {
    let path = run_folder.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).map_err(|source| RunError::File { action: "read", path, source })?;
    Ok(RunConfig::from_toml(&text)?)
}

fn check(config: &RunConfig, dataset: &Dataset) -> Result<RunSchedule, RunError> {
    config.require_training()?;
    let model = config.model.path.clone().expect("require_training() saw it");
    const MODEL_INDEX: &str = "model_index.json";
    // A single file is a model too; whether it is a good one is seen by those who can read it.
    if !model.is_file() && !model.join(MODEL_INDEX).is_file() {
        return Err(RunError::NoModel { path: model, missing: MODEL_INDEX });
    }
    let schedule = RunSchedule::compute(dataset, &ScheduleOptions::from(config), config.run.epochs);
    let ClusterConfig { collective, device, reduction, .. } = config.cluster;
    if reduction == Some(Reduction::Fast) && (collective == CollectiveKind::Tcp || device == DeviceKind::Cpu) {
        tracing::warn!("cluster.reduction = \"fast\" is for NCCL, which this run does not use: sums are exact");
    }
    if schedule.steps() == 0 {
        return Err(RunError::NoSteps { epochs: config.run.epochs });
    }
    Ok(schedule)
}

/// Refuses a config that would learn something else. What only says how long, where and how fast may change.
fn check_unchanged(config: &RunConfig, before: &RunConfig) -> Result<(), RunError> {
    let learned = |config: &RunConfig| {
        let mut config = config.clone();
        let fresh = RunConfig::default();
        config.run =
            ballast_common::config::RunSettings { seed: config.run.seed, epochs: config.run.epochs, ..fresh.run };
        config.data.root = None;
        config.data.scan_cache = fresh.data.scan_cache;
        config.data.write_schedule = fresh.data.write_schedule;
        config.model.path = None;
        config.precision.save = fresh.precision.save;
        config.checkpoint = fresh.checkpoint;
        config.sample = fresh.sample;
        config.telemetry = fresh.telemetry;
        let reduction = config.cluster.reduction;
        config.cluster = ClusterConfig { reduction, ..fresh.cluster };
        config.to_toml()
    };
    let (now, before) = (learned(config), learned(before));
    let keys: Vec<_> = now
        .lines()
        .zip(before.lines())
        .filter(|(now, before)| now != before)
        .map(|(now, before)| format!("`{now}` (the run has `{before}`)"))
        .collect();
    if now != before { Err(RunError::ConfigChanged { keys }) } else { Ok(()) }
}

fn absolute(path: PathBuf) -> Result<PathBuf, RunError> {
    path.canonicalize().map_err(|source| RunError::File { action: "open", path, source })
}

fn run_id(run_folder: &Path) -> String {
    run_folder.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Writes a file so that it is whole or absent under its name, also after a power cut.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let partial = path.with_extension("partial");
    let write = || {
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        fs::File::open(path.parent().expect("a file lies in a folder"))?.sync_all()
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&partial);
        RunError::File { action: "write", path: path.to_owned(), source }
    })
}
