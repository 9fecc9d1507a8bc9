//! `ballast train`: coordinator and workers on this machine.
//!
//! Everything that can be wrong is checked before anything is written: config, data, model, run folder, port.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::OutputArgs;
use crate::config_args::{Flags, SetArgs, load};
use crate::coordinator::allow;
use crate::devices::{LocalDevices, local_devices};
use crate::failure::Failure;
use crate::output::say;
use crate::session::{Opening, Session, listen, runtime};
use crate::worker_processes::{WorkerProcesses, WorkerSettings};

/// Trains on this machine: a coordinator and one worker process per GPU, or CPU workers where there is none.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's config, a TOML file.
    config: Option<PathBuf>,
    /// How many worker processes [default: one per GPU; 2 on a CPU]. Changes the speed, never the result.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workers")]
    workers: Option<u32>,
    /// What the workers compute on [default: GPUs where there are any, else the CPU].
    #[arg(long, value_name = "cuda|cpu", value_parser = ["cuda", "cpu", "auto"], help_heading = "Workers")]
    device: Option<String>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    set: SetArgs,
}

/// Which run, and how far.
#[derive(clap::Args, Clone)]
pub(crate) struct RunArgs {
    /// The folder that holds the runs [default: runs].
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    out: Option<PathBuf>,
    /// The run's name [default: the config file's, with a number if that is taken].
    #[arg(long, help_heading = "Run")]
    name: Option<String>,
    /// The seed of everything that is random.
    #[arg(long, help_heading = "Run")]
    seed: Option<u64>,
    /// Stops, saves and finishes after K steps in all. Learning-rate schedules keep the config's length.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Run")]
    max_steps: Option<u64>,
    /// Goes on with the newest run of that name, from its newest whole checkpoint.
    #[arg(long, help_heading = "Run")]
    pub(crate) resume: bool,
}

const AFTER_HELP: &str = "\
Examples:
  ballast train examples/quickstart.toml
  ballast train my.toml --name cats --set optimizer.lr=2e-6 --set run.epochs=20
  ballast train my.toml --name cats --resume          goes on where it was stopped
  ballast train my.toml --workers 4 --device cuda     four GPUs, the same result as one

Ctrl-C finishes the step, saves a checkpoint and exits with 130; a second one stops at once.
With OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317 each step is one trace in any OpenTelemetry viewer.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let flags = args.run.flags().with("cluster.workers", args.workers).with("cluster.device", args.device.as_ref());
    let config = load(args.config.as_deref(), &args.set, flags)?;
    config.require_training()?;
    // Its workers are on this machine, so nobody else has any business there.
    allow(config.cluster.listen, false)?;
    let LocalDevices { devices, notices } = local_devices(&config)?;
    notices.iter().for_each(|notice| say(notice));

    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let opening = if args.run.resume { Opening::Resume } else { Opening::New };
        let mut session = Session::open(config, args.config.as_deref(), opening, output).await?;
        let listener = listen(session.config.cluster.listen).await?;
        let run = session.prepare()?;
        if let Some(exit_code) = session.end_if_complete(&run)? {
            return Ok(exit_code);
        }
        let worker_count = devices.len() as u32;
        let workers = WorkerProcesses::start(WorkerSettings {
            coordinator: listener.local_addr().context("cannot read the coordinator's own address")?,
            threads: threads_per_worker(devices.len()),
            devices,
            run_folder: session.run_folder.clone(),
            verbosity: output.verbosity(),
            telemetry: session.config.telemetry.clone(),
        })?;
        session.carry_out(run, listener, worker_count, Some(workers)).await
    });
    // A second Ctrl-C does not wait for work that is still going on.
    runtime.shutdown_background();
    result
}

impl RunArgs {
    /// Returns the flags as keys of the config.
    pub(crate) fn flags(&self) -> Flags {
        Flags::default()
            .with_path("run.out", self.out.as_ref())
            .with("run.name", self.name.as_ref())
            .with("run.seed", self.seed)
            .with("run.max_steps", self.max_steps)
    }
}

/// Shares the cores among the workers.
fn threads_per_worker(workers: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / workers).max(1)
}
