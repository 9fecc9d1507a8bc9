//! `ballast plan`: what would be trained, folder by folder, without a GPU and without a model.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::{EpochReport, EpochSchedule, PlanReport, RunSchedule, ScheduleOptions};
use ballast_common::telemetry::{self, Options, Service};

use crate::OutputArgs;
use crate::config_args::{Flags, SetArgs, load};
use crate::failure::Failure;
use crate::output::print;
use crate::scan::scan;

/// Shows what would be trained: the balance of the folders, buckets, padding, steps and the schedule's hash.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The config. May be left out when --data is given.
    config: Option<PathBuf>,
    /// The folder with the images, or a .json manifest. May be given several times.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// How many epochs to show, from the first.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// The run's seed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Writes each epoch's schedule to DIR/ep{N}_batch_schedule.txt.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Shows every image too: its caption, settings and bucket.
    #[arg(long)]
    samples: bool,
    #[command(flatten)]
    set: SetArgs,
}

/// How a command reports.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

const AFTER_HELP: &str = "\
Examples:
  ballast plan --data pictures
  ballast plan train.toml --epochs 20 --out schedules
  ballast plan train.toml --format json | jq '.epochs[0].folders[] | [.path, .scheduled]'

A multiply.txt in a folder says how often its images are used per epoch: 2 is twice, 0.05 is every twentieth image.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    // The report says what was applied and what is odd: on a terminal that need not be there twice.
    let is_said_there = args.format == Format::Text && std::io::stdout().is_terminal() && output.verbosity() == 0;
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity() - i8::from(is_said_there)));
    let flags = Flags::default().with_paths("data.root", &args.data).with("run.seed", args.seed);
    let config = load(args.config.as_deref(), &args.set, flags)?;
    let dataset = scan(&config)?;
    let mut report = report(&config, &dataset, args.epochs, args.out.as_ref())?;
    if args.samples {
        report = report.with_samples(&dataset, &config.data);
    }
    match args.format {
        Format::Json => print(&serde_json::to_string_pretty(&report).expect("a report is plain data"))?,
        Format::Text => {
            let steps = RunSchedule::total_steps(&dataset, &ScheduleOptions::from(&config), config.run.epochs);
            print(&format!("{report}\n{} epochs of this config are {steps} steps", config.run.epochs))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the balance of the first epoch as text.
pub(crate) fn balance_table(config: &RunConfig, dataset: &Dataset) -> String {
    let schedule = EpochSchedule::compute(dataset, &ScheduleOptions::from(config), 0);
    EpochReport::new(dataset, &schedule).to_string()
}

fn report(config: &RunConfig, dataset: &Dataset, epochs: u64, out: Option<&PathBuf>) -> Result<PlanReport, Failure> {
    let write = |schedule: &EpochSchedule| -> anyhow::Result<()> {
        let Some(out) = out else { return Ok(()) };
        let path = out.join(format!("ep{}_batch_schedule.txt", schedule.epoch()));
        schedule.write_file(dataset, &path).with_context(|| format!("cannot write {}", path.display()))
    };
    Ok(PlanReport::compute(dataset, &ScheduleOptions::from(config), epochs, write)?)
}
