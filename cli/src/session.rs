//! What `ballast train` and `ballast coordinator` have in common: a checked run, its terminal, and its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::telemetry::{self, Service, Style, TelemetryGuard, TracesSetting};
use ballast_coordinator::PreparedRun;
use ballast_coordinator::report::{ReportOptions, report};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::OutputArgs;
use crate::failure::{EXIT_INTERRUPTED, Failure};
use crate::progress::{Progress, counted};
use crate::run_loop::{RunEnd, drive};
use crate::scan::scan;
use crate::summary::{BALANCE_FILE, LOG_FILE, LOSS_CURVE_FILE, Summary, resume_command, shown};
use crate::worker_processes::WorkerProcesses;
use crate::{loss_curve, model_path, output, run_folder};

/// Which run a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A new one.
    New,
    /// An earlier one, from its newest checkpoint.
    Resume,
    /// The one that a coordinator left behind, where its ledger stands, or a new one. With `resume` also one that has ended.
    Continue { resume: bool },
}

/// A run whose config, data and model were found to be good.
pub(crate) struct Session {
    pub(crate) config: RunConfig,
    pub(crate) run_folder: PathBuf,
    dataset: Option<Dataset>,
    pub(crate) progress: Progress,
    telemetry: TelemetryGuard,
    started: Instant,
    opening: Opening,
    /// Whether there is a run in the folder already.
    exists: bool,
}

impl Session {
    /// Checks data, model and run folder, and shows the balance table. Writes nothing.
    pub(crate) async fn open(
        mut config: RunConfig,
        config_file: Option<&Path>,
        opening: Opening,
        output_args: OutputArgs,
    ) -> Result<Self, Failure> {
        let progress = Progress::new(output_args.verbosity() < 0);
        let telemetry = telemetry::init(
            Service::Coordinator,
            telemetry::Options {
                verbosity: output_args.verbosity(),
                style: Style::Person,
                terminal: progress.terminal_writer(),
                traces: TracesSetting::On {
                    endpoint: config.telemetry.otlp_endpoint.clone(),
                    namespace: config.telemetry.service_namespace.clone(),
                    quiet: false,
                },
            },
        );
        let (run_folder, exists) = match opening {
            Opening::New => (run_folder::for_new_run(&config.run, config_file)?, false),
            Opening::Resume => (run_folder::to_resume(&config.run, config_file)?, true),
            Opening::Continue { resume } => run_folder::to_continue(&config.run, config_file, resume)?,
        };
        // So that the config in the run folder finds the run again by itself.
        config.run.name = run_folder.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(model) = &config.model.path {
            model_path::check_for(model, &config.model)?;
        }
        let dataset = scan(&config)?;
        Ok(Self {
            config,
            run_folder,
            dataset: Some(dataset),
            progress,
            telemetry,
            started: Instant::now(),
            opening,
            exists,
        })
    }

    /// Makes or reopens the run folder.
    pub(crate) fn prepare(&mut self) -> Result<PreparedRun, Failure> {
        let dataset = self.dataset.take().expect("a session prepares its run once");
        let table = crate::plan::balance_table(&self.config, &dataset);
        self.progress.say(&table);
        let (config, folder) = (self.config.clone(), self.run_folder.clone());
        let run = match (self.opening, self.exists) {
            (Opening::Resume, _) => PreparedRun::resume(config, dataset, folder)?,
            (Opening::New, _) => PreparedRun::create(config, dataset, folder)?,
            (Opening::Continue { .. }, true) => PreparedRun::take_over(config, dataset, folder)?,
            (Opening::Continue { .. }, false) => PreparedRun::create(config, dataset, folder)?.with_returning_workers(),
        };
        match self.opening {
            Opening::Continue { resume: false } if self.exists => {
                self.progress.insist(&format!("run {} was cut short: going on with it", shown(&self.run_folder)));
            }
            Opening::Continue { resume: true } if !self.exists => {
                self.progress
                    .insist(&format!("run {} begins: there is nothing to go on with", shown(&self.run_folder)));
            }
            _ => {}
        }
        let log = self.run_folder.join(LOG_FILE);
        self.telemetry.log_to_file(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let balance = self.run_folder.join(BALANCE_FILE);
        std::fs::write(&balance, table).with_context(|| format!("cannot write {}", balance.display()))?;
        let (steps, epochs) = (counted(run.stop_step(), "step"), counted(self.config.run.epochs, "epoch"));
        self.progress.say(&format!("run {}: {steps}, {epochs}", shown(&self.run_folder)));
        Ok(run)
    }

    /// Says that a run has come to its end already, if it has.
    pub(crate) fn end_if_complete(&self, run: &PreparedRun) -> Result<Option<ExitCode>, Failure> {
        if !run.is_complete() {
            return Ok(None);
        }
        self.progress.say(&format!("all {} are done: nothing is left to do", counted(run.stop_step(), "step")));
        let summary = self.summary(run);
        output::print(summary.text().trim_end())?;
        Ok(Some(ExitCode::SUCCESS))
    }

    /// Returns what there will be to say of the run at its end.
    fn summary(&self, run: &PreparedRun) -> Summary {
        Summary {
            run_folder: self.run_folder.clone(),
            prompt: self.config.sample.prompts.first().cloned(),
            picture_size: self.config.sample_size(),
            steps: run.stop_step(),
            new_steps: run.stop_step().saturating_sub(run.next_step()),
            elapsed: self.started.elapsed(),
            cut_short: run.stop_step() < run.total_steps(),
        }
    }

    /// Runs to the end and says how it went.
    pub(crate) async fn carry_out(
        mut self,
        run: PreparedRun,
        listener: TcpListener,
        worker_count: u32,
        workers: Option<WorkerProcesses>,
    ) -> Result<ExitCode, Failure> {
        let summary = self.summary(&run);
        let end = drive(listener, run, worker_count, &mut self.progress, workers).await;
        self.progress.finish();
        let telemetry = self.telemetry;
        let _ = tokio::task::spawn_blocking(|| telemetry.shutdown()).await;
        match end? {
            RunEnd::Finished => {
                if let Err(error) = draw_loss_curve(&self.run_folder) {
                    output::say(&format!("warning: there is no loss curve: {error:#}"));
                }
                let summary = Summary { elapsed: self.started.elapsed(), ..summary };
                output::print(summary.text().trim_end())?;
                Ok(ExitCode::SUCCESS)
            }
            RunEnd::Interrupted { next_step, checkpoint } => {
                let saved = match checkpoint {
                    Some(path) => format!("saved in {}", shown(&path)),
                    None if next_step == 0 => "nothing to save".to_owned(),
                    None => "not saved: no worker is here that holds the state".to_owned(),
                };
                output::say(&format!("stopped after {}; {saved}", counted(next_step, "step")));
                output::say(&format!("hint: go on with: {}", resume_command(&self.run_folder)));
                Ok(ExitCode::from(EXIT_INTERRUPTED))
            }
            RunEnd::StoppedAtOnce => {
                output::say(match self.opening {
                    Opening::Continue { .. } => {
                        "stopped at once; its workers keep the state for a while: a coordinator that is started soon goes on with it"
                    }
                    _ => "stopped at once; what was not yet in a checkpoint is lost",
                });
                output::say(&format!("hint: go on with: {}", resume_command(&self.run_folder)));
                Ok(ExitCode::from(EXIT_INTERRUPTED))
            }
        }
    }
}

/// Draws the losses that the ledger holds, unless they are too few.
fn draw_loss_curve(run_folder: &Path) -> anyhow::Result<()> {
    let path = run_folder.join(LOSS_CURVE_FILE);
    match loss_curve::svg(&report(run_folder, &ReportOptions::default())?) {
        Some(svg) => std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display())),
        None => Ok(()),
    }
}

/// Makes the runtime: sockets, timers and channels only, so two threads are plenty.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    Ok(runtime.context("cannot start the asynchronous runtime")?)
}

/// Opens the port of a coordinator that was started again: where its workers look for it, when the config leaves the choice.
pub(crate) async fn listen_again(address: SocketAddr, run_folder: &Path) -> Result<TcpListener, Failure> {
    let former = PreparedRun::last_address(run_folder).filter(|former| former.ip() == address.ip());
    if let Some(former) = former.filter(|_| address.port() == 0)
        && let Ok(listener) = TcpListener::bind(former).await
    {
        return Ok(listener);
    }
    listen(address).await
}

/// Opens the coordinator's port.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; choose another port, or port 0 for any free one"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address",
            _ => "choose another address or port",
        };
        Failure::from(anyhow::Error::new(error).context(format!("the coordinator cannot listen on {address}")))
            .hint(hint)
    })
}
