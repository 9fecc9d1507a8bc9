//! `ballast balance`: proposes multipliers that reach a goal, shows what they would do, and writes them when asked to.

mod files;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::schedule::{BalanceReport, EpochSize, Goal, GoalError, ScheduleOptions, Weigh};
use ballast_common::telemetry::{self, Options, Service};
use serde_json::json;

use crate::OutputArgs;
use crate::config_args::{Flags, SetArgs, load};
use crate::failure::Failure;
use crate::output::{print, text_options};
use crate::plan::Format;
use crate::progress::counted;
use crate::scan::scan;
use files::Change;

/// Proposes multipliers from a goal, and shows the balance before and after.
///
/// Nothing is written without --write. Without a goal every folder is to come up equally often.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The config. May be left out when --data is given.
    config: Option<PathBuf>,
    /// The folder with the images. May be given several times.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Makes these folders equal to each other, with commas between them; without names all folders. May be given again for another group.
    #[arg(long, value_name = "A,B", num_args = 0..=1, default_missing_value = "", help_heading = "Goal")]
    equal: Vec<String>,
    /// Gives a folder this part of the epoch, as in preservation=10%. May be given for several.
    #[arg(long, value_name = "FOLDER=N%", value_parser = share, help_heading = "Goal")]
    share: Vec<(String, f64)>,
    /// Lets the folders that are not named keep their proportions, instead of making them equal.
    #[arg(long, help_heading = "Goal")]
    keep: bool,
    /// Makes an epoch this many occurrences long. Without it: as long as today.
    #[arg(long, value_name = "N", help_heading = "Goal")]
    epoch_size: Option<u64>,
    /// Uses each folder exactly this many times per epoch.
    #[arg(long, value_name = "N", conflicts_with_all = ["equal", "share", "keep", "epoch_size", "weigh"], help_heading = "Goal",
          value_parser = clap::value_parser!(u64).range(1..))]
    per_folder: Option<u64>,
    /// What is balanced: how often images come up, or that × their loss scale.
    #[arg(long, value_enum, default_value_t = Weighed::Count, help_heading = "Goal")]
    weigh: Weighed,
    /// How many epochs the run has. Without it: the config's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    epochs: Option<u64>,
    /// Writes the multiply.txt files.
    #[arg(long)]
    write: bool,
    /// Lets --write change a multiply.txt that is there already.
    #[arg(long, requires = "write")]
    force: bool,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Shows lists to their end, however long.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    set: SetArgs,
}

/// Most files that are listed.
const LINES_MAX: usize = 20;

/// What is balanced.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Weighed {
    /// How often images come up.
    Count,
    /// How often they come up × their loss scale: the effective share.
    Loss,
}

const AFTER_HELP: &str = "\
Examples:
  ballast balance train.toml                                      every folder equally often
  ballast balance train.toml --equal cats,dogs                    these two; the others stay as they are
  ballast balance train.toml --equal cats,dogs --share preservation=10%
  ballast balance train.toml --share preservation=10% --keep      the others keep their proportions
  ballast balance train.toml --share 'styles/=30%'                styles and all folders below it get 30 % together
  ballast balance --data pictures --per-folder 25                 25 pictures of each subject per epoch
  ballast balance train.toml --epoch-size 2000 --weigh loss       loss_scale.txt counts in
  ballast balance train.toml --write                              writes the multiply.txt files

A folder is named by its path below the data root, or by its last part where only one folder ends so. A name means that
folder alone; with a slash at its end (styles/, or styles/**) also all folders below.

A multiplier has as few decimals as give exactly the shown count in every epoch of the run. Folders that need no change
are left alone. --write never changes a multiply.txt that is there without --force, and then says what it was.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    // What lies beside the pictures is `ballast plan`'s to say; here it would hide the table.
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity() - 1));
    let flags = Flags::default().with_paths("data.root", &args.data).with("run.epochs", args.epochs);
    let config = load(args.config.as_deref(), &args.set, flags)?;
    let dataset = scan(&config)?;
    let epochs = config.run.epochs;
    let proposals = args.goal().propose(&dataset, epochs).map_err(refused)?;
    let report = BalanceReport::compute(&dataset, &proposals, &ScheduleOptions::from(&config), epochs);
    let mut changes = files::changes(&dataset, &report)?;
    if args.write {
        files::write(&mut changes, args.force)?;
        check_written(&config, &report)?;
    }
    match args.format {
        Format::Json => print(&json_text(&report, &changes))?,
        Format::Text => print(text(&args, &report, &changes).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn goal(&self) -> Goal {
        let names = |group: &String| group.split(',').map(|name| name.trim().to_owned()).collect();
        let size = match (self.epoch_size, self.per_folder) {
            (Some(count), _) => EpochSize::Occurrences(count),
            (None, Some(count)) => EpochSize::PerFolder(count),
            (None, None) => EpochSize::Today,
        };
        Goal {
            equal: self.equal.iter().filter(|group| !group.is_empty()).map(names).collect(),
            shares: self.share.clone(),
            keep: self.keep,
            size,
            weigh: if self.weigh == Weighed::Loss { Weigh::Loss } else { Weigh::Count },
        }
    }
}

/// Reads `preservation=10%`.
fn share(text: &str) -> Result<(String, f64), String> {
    let expected = "expected FOLDER=PERCENT%, as in preservation=10%";
    let (name, percent) = text.rsplit_once('=').ok_or(expected)?;
    let percent: f64 =
        percent.trim().strip_suffix('%').and_then(|number| number.trim().parse().ok()).ok_or(expected)?;
    Ok((name.trim().to_owned(), percent / 100.0))
}

fn refused(error: GoalError) -> Failure {
    let is_file = |name: &str| Path::new(name).is_file();
    let hint = match &error {
        GoalError::UnknownFolder { name, .. } if is_file(name) => {
            Some(format!("a config stands in front of the goal: ballast balance {name} --equal"))
        }
        GoalError::UnknownFolder { .. } => Some("`ballast plan` lists the folders".to_owned()),
        _ => None,
    };
    let failure = Failure::usage(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Reads the data root again: what counts is what training will find.
fn check_written(config: &RunConfig, report: &BalanceReport) -> Result<(), Failure> {
    let dataset: Dataset = scan(config)?;
    for row in &report.folders {
        let found = dataset.folders.iter().find(|folder| folder.path == row.path).map(|folder| folder.multiply);
        if found != Some(row.multiply.after) {
            let found = found.map_or("nothing".to_owned(), |multiply| multiply.to_string());
            let message = format!(
                "{}: multiply.txt was written with {}, but {found} holds: another file beside it goes over it",
                row.path, row.multiply.after
            );
            return Err(Failure::failed(message).hint("`ballast plan` lists the files that are applied"));
        }
    }
    Ok(())
}

fn text(args: &Args, report: &BalanceReport, changes: &[Change]) -> String {
    let mut text = format!("before → after\n\n{}", report.text(&text_options(args.all)));
    for warning in &report.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    if changes.is_empty() {
        return text + "\nNothing has to change.\n";
    }
    let title = if args.write { "written" } else { "proposed" };
    text += &format!("\n{title} ({})\n", changes.len());
    let shown = if args.all { changes.len() } else { changes.len().min(LINES_MAX) };
    for change in &changes[..shown] {
        text += &format!("  {}\n", change.line());
    }
    if shown < changes.len() {
        text += &format!("  … and {} more (--all shows them)\n", changes.len() - shown);
    }
    if !args.write {
        let force = if changes.iter().any(Change::needs_force) { " --force" } else { "" };
        let refused = changes.iter().filter(|change| change.is_refused()).count() as u64;
        text += &match refused {
            0 => format!("\nNothing was written: --write{force} does it.\n"),
            count => {
                format!("\nNothing was written, and --write would refuse: see {} above.\n", counted(count, "folder"))
            }
        };
    }
    text
}

fn json_text(report: &BalanceReport, changes: &[Change]) -> String {
    let mut value = json!(report);
    value["files"] = changes.iter().map(Change::json).collect();
    serde_json::to_string_pretty(&value).expect("a report is plain data")
}
