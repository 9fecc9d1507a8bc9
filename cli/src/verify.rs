//! `ballast verify`: proves from the ledger that every position of every epoch was trained exactly once.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ballast_common::telemetry::{self, Options, Service};
use ballast_coordinator::verify::{Progress, VerifyError, VerifyReport, verify_with};

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
    let teller = Teller::new(output.verbosity() < 0);
    let result = verify_with(&args.run, &|progress| teller.tell(progress));
    teller.finish();
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

/// After so long, and then every so often, somebody who waits is told how far it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells on stderr how far a long check is: on a terminal in one line that changes.
struct Teller {
    /// When the next word is due; none: nobody wants to hear.
    due: Option<Mutex<Instant>>,
    is_terminal: bool,
}

impl Teller {
    fn new(quiet: bool) -> Self {
        let due = (!quiet).then(|| Mutex::new(Instant::now() + PATIENCE));
        Self { due, is_terminal: std::io::stderr().is_terminal() }
    }

    fn tell(&self, progress: Progress<'_>) {
        let Some(mut due) = self.due.as_ref().and_then(|due| due.try_lock().ok()) else { return };
        if Instant::now() < *due {
            return;
        }
        let interval = if self.is_terminal { PATIENCE / 8 } else { PATIENCE };
        *due = Instant::now() + interval;
        let text = progress_text(progress);
        write(&if self.is_terminal { format!("\r\x1b[K{text}") } else { format!("{text}\n") });
    }

    fn finish(&self) {
        if self.is_terminal && self.due.is_some() {
            write("\r\x1b[K");
        }
    }
}

/// A terminal that is gone is no reason to end.
fn write(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn progress_text(progress: Progress<'_>) -> String {
    match progress {
        Progress::Steps { done, of } => format!("{done} of {of} steps checked"),
        Progress::Checkpoint { path } => format!("reading {path}"),
    }
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
    let steps: Vec<_> = report.checkpoints.iter().map(u64::to_string).collect();
    text += &match steps.len() {
        0 => "  no checkpoints\n".to_owned(),
        count => format!(
            "  {} sound and of these commits, after {} steps\n",
            counted(count as u64, "checkpoint"),
            steps.join(", ")
        ),
    };
    for stranger in &report.strangers {
        text += &format!("  {stranger} is not in the ledger, so it is not part of the proof\n");
    }
    text
}
