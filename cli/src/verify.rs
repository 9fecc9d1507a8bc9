//! `ballast verify`: proves from the ledger that every position of every epoch was trained exactly once.

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_common::telemetry::{self, Options, Service};
use ballast_coordinator::verify::{VerifyError, VerifyReport, verify};

use crate::OutputArgs;
use crate::failure::{EXIT_FAILED, Failure};
use crate::output::print;
use crate::plan::Format;
use crate::progress::counted;
use crate::summary::shown;

/// Checks a run's ledger against its schedule: every position of every epoch exactly once.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's folder.
    run: PathBuf,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const AFTER_HELP: &str = "\
Example:
  ballast verify runs/quickstart && echo all good

The ledger is one SQLite file that any tool can open. Exit code 1 and the first violation if something is wrong.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    // What lies beside the pictures was said when the run began.
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity() - 1));
    let result = verify(&args.run);
    match (result, args.format) {
        (Ok(report), Format::Text) => print(text(&report).trim_end())?,
        (Ok(report), Format::Json) => print(&serde_json::to_string_pretty(&report).expect("a report is plain data"))?,
        (Err(VerifyError::Violation(violation)), Format::Json) => {
            print(&serde_json::json!({ "violation": violation }).to_string())?;
            return Ok(ExitCode::from(EXIT_FAILED));
        }
        (Err(VerifyError::Violation(violation)), Format::Text) => return Err(Failure::failed(violation)),
        (Err(VerifyError::Run(error)), _) => return Err(error.into()),
        (Err(VerifyError::Dataset(error)), _) => return Err(ballast_common::UsageError::from(error).into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &VerifyReport) -> String {
    let VerifyReport { run_folder, committed_steps, total_steps, positions, complete_epochs, .. } = report;
    let mut text = format!("{}: {committed_steps} of {total_steps} steps are committed\n", shown(run_folder));
    text += &format!("  every one of their {positions} positions was trained exactly once, as the schedule says\n");
    text += &format!("  {} covered whole\n", counted(*complete_epochs, "epoch"));
    if report.skipped > 0 {
        text += &format!("  {} could not be decoded and had no weight\n", counted(report.skipped, "picture"));
    }
    for (from, to) in &report.rollbacks {
        text += &format!("  rolled back once from step {from} to step {to}, and computed again\n");
    }
    text += &format!("  {} sound\n", counted(report.checkpoints.len() as u64, "checkpoint"));
    text
}
