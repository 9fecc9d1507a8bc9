//! `ballast plan`: what would be trained, folder by folder, without a GPU and without a model; and what a change changes.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::{Changes, EpochReport, EpochSchedule, Epochs, PlanReport, Planned, ScheduleOptions};
use ballast_common::telemetry::{self, Options, Service};

use crate::OutputArgs;
use crate::config_args::{Flags, SetArgs, load};
use crate::failure::Failure;
use crate::memory::{GpuMemory, MemoryReport};
use crate::output::{print, text_options};
use crate::scan::{duplicates, scan};

/// Shows what would be trained: the balance of the folders, buckets, padding, steps and the schedule's hash.
///
/// With two configs, or two folders of images, it shows what changes from the first to the second.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The config, or a folder with images. May be left out when --data is given.
    config: Option<PathBuf>,
    /// A second config or folder: shows what is different there.
    #[arg(conflicts_with_all = ["data", "out"])]
    other: Option<PathBuf>,
    /// The folder with the images. May be given several times.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// How many epochs to count out, from the first; the run is taken to be so long. Without it: the first of the config's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
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
    /// Shows lists to their end, however long.
    #[arg(long)]
    all: bool,
    /// Also works out how much memory each worker will take; reads the headers of the model's files.
    #[arg(long, conflicts_with = "other")]
    memory: bool,
    /// With --memory: says whether it fits a card of this size, as 24GB or 80GiB, and what would help. Without it: the
    /// smallest card of this machine, where it trains on cards.
    #[arg(long, value_name = "SIZE", requires = "memory")]
    gpu_memory: Option<GpuMemory>,
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

/// Columns of a table where no terminal says how many there are.
const WIDE: usize = 160;

const AFTER_HELP: &str = "\
Examples:
  ballast plan --data pictures
  ballast plan train.toml --epochs 20 --out schedules
  ballast plan train.toml --set step.micro_batch_size=8
  ballast plan train.toml --memory --gpu-memory 24GB
  ballast plan before.toml after.toml
  ballast plan pictures pictures-new
  ballast plan train.toml --format json | jq '.epochs[0].folders[] | [.path, .scheduled]'

A multiply.txt in a folder says how often its images are used per epoch: 2 is twice, 0.05 is every twentieth image.
Of each folder the table shows
  multiply    its multiply.txt, or 1
  scheduled   how often its images are used in an epoch, all together
  share       its part of the epoch
  scale       its loss_scale.txt, or 1: the weight of each image's loss
  effective   its part of count × scale; these are what the folders weigh against each other
  repeats     how often each of its images comes up in the run, on average

`ballast balance` proposes multipliers that reach a goal.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    // The report says what was applied and what is odd: on a terminal that need not be there twice.
    let is_said_there = args.format == Format::Text && std::io::stdout().is_terminal() && output.verbosity() == 0;
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity() - i8::from(is_said_there)));
    let plan = Plan::make(args.config.as_deref(), &args)?;
    let memory = args.memory.then(|| MemoryReport::new(&plan.config, &plan.dataset, args.gpu_memory)).transpose()?;
    let text = match (&args.other, args.format) {
        (None, Format::Json) => json(&with_memory(serde_json::json!(plan.report), memory.as_ref())),
        (None, Format::Text) => {
            let options = text_options(args.all);
            let memory = memory.map(|memory| memory.text(options.width.unwrap_or(WIDE)));
            [Some(plan.report.text(&options)), memory].into_iter().flatten().collect::<Vec<_>>().join("\n")
        }
        (Some(other), format) => compared(&plan, &Plan::make(Some(other), &args)?, format, args.all),
    };
    print(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the balance of the first epoch as text.
pub(crate) fn balance_table(config: &RunConfig, dataset: &Dataset) -> String {
    let schedule = EpochSchedule::compute(dataset, &ScheduleOptions::from(config), 0);
    EpochReport::new(dataset, &schedule).to_string()
}

/// A plan with what it was made of.
struct Plan {
    name: String,
    config: RunConfig,
    dataset: Dataset,
    report: PlanReport,
}

impl Plan {
    fn make(source: Option<&Path>, args: &Args) -> Result<Self, Failure> {
        let (file, data) = match source {
            Some(folder) if folder.is_dir() => (None, vec![folder.to_owned()]),
            source => (source, args.data.clone()),
        };
        if let (Some(folder), None, Some(data)) = (source, file, args.data.first()) {
            let (folder, data) = (folder.display(), data.display());
            return Err(Failure::usage(format!("{folder} is a folder, and --data names another: {data}"))
                .hint("to compare two folders: ballast plan A B"));
        }
        let flags = Flags::default().with_paths("data.root", &data).with("run.seed", args.seed);
        let config = load(file, &args.set, flags)?;
        let dataset = scan(&config)?;
        let epochs = Epochs { shown: args.epochs.unwrap_or(1), run: args.epochs.unwrap_or(config.run.epochs) };
        let mut report = report(&config, &dataset, epochs, args.out.as_ref())?;
        report = report.with_duplicates(&dataset, duplicates(&config, &dataset));
        if args.samples {
            report = report.with_samples(&dataset, &config.data);
        }
        let name = match source {
            Some(source) => source.display().to_string(),
            None => "the defaults".to_owned(),
        };
        Ok(Self { name, config, dataset, report })
    }

    fn planned(&self) -> Planned<'_> {
        let Self { name, config, dataset, report } = self;
        Planned { name, config, dataset, report }
    }
}

fn compared(a: &Plan, b: &Plan, format: Format, all: bool) -> String {
    let changes = Changes::between(&a.planned(), &b.planned());
    match format {
        Format::Json => json(&serde_json::json!({ "a": a.report, "b": b.report, "changes": changes })),
        Format::Text => changes.text(&text_options(all)),
    }
}

fn report(config: &RunConfig, dataset: &Dataset, epochs: Epochs, out: Option<&PathBuf>) -> Result<PlanReport, Failure> {
    let write = |schedule: &EpochSchedule| -> anyhow::Result<()> {
        let Some(out) = out else { return Ok(()) };
        let path = out.join(format!("ep{}_batch_schedule.txt", schedule.epoch()));
        schedule.write_file(dataset, &path).with_context(|| format!("cannot write {}", path.display()))
    };
    Ok(PlanReport::compute(dataset, &ScheduleOptions::from(config), epochs, write)?)
}

fn with_memory(mut report: serde_json::Value, memory: Option<&MemoryReport>) -> serde_json::Value {
    if let Some(memory) = memory {
        report["memory"] = serde_json::json!(memory);
    }
    report
}

fn json(report: &serde_json::Value) -> String {
    serde_json::to_string_pretty(report).expect("a report is plain data")
}
