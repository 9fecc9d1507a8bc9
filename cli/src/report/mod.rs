//! `ballast report`: what a run delivered to each folder and image, and how well it is learned.

mod plots;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_coordinator::report::{ReportOptions, RunReport, report};

use crate::OutputArgs;
use crate::failure::Failure;
use crate::output::{print, say};
use crate::plan::Format;
use crate::summary::shown;
use crate::table::line_width;

/// The report within the folder of `--out`.
const REPORT_FILE: &str = "report.json";

/// Shows what a run has delivered: uses and weight of each folder against what was intended, and losses over time.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's folder. The run may be going on; the pictures may be gone.
    run: PathBuf,
    /// How many images the lists of the highest and the most erratic losses have.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// How many folders a table shows; all are in the JSON.
    #[arg(long, value_name = "N", default_value_t = 30)]
    rows: usize,
    /// Lists every image too.
    #[arg(long)]
    images: bool,
    /// Writes report.json and the plots (SVG) into this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

const AFTER_HELP: &str = "\
Examples:
  ballast report runs/quickstart
  ballast report runs/quickstart --out report       plots of it, and report.json
  ballast report runs/quickstart --format json | jq '.folders[] | [.path, .delivered, .intended]'

All of it comes from the ledger, so it says what was delivered and not what was planned. Steps that were rolled back are in
no number.

A loss depends far more on the timestep that was drawn than on the picture. So each loss is also shown adjusted: divided by the
run's mean loss in its band of timesteps (50 bands of 20 timesteps; 10 of 100 while there are fewer than 5000 losses). 1 is
what the run as a whole had there; a folder at 0.9 is learned better than the rest, one that falls faster is learned faster.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let found = report(&args.run, &ReportOptions { top: args.top, every_image: args.images })?;
    if let Some(out) = &args.out {
        let written = write(&found, out)?;
        if output.verbosity() >= 0 {
            say(&format!("written to {}: {}", shown(out), written.join(", ")));
        }
    }
    match args.format {
        Format::Json => print(&json(&found))?,
        Format::Text => {
            let mut text = text::text(&found, args.rows, line_width());
            if args.out.is_none() && found.run.committed_steps > 0 {
                text += &format!("\nplots and {REPORT_FILE}: add --out DIR\n");
            }
            print(text.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(report: &RunReport) -> String {
    serde_json::to_string_pretty(report).expect("a report is plain data")
}

/// Writes the report and its plots, and returns the names of the files.
fn write(report: &RunReport, out: &Path) -> anyhow::Result<Vec<&'static str>> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut files = vec![(REPORT_FILE, json(report) + "\n")];
    files.extend(plots::plots(report));
    for (name, text) in &files {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(files.into_iter().map(|(name, _)| name).collect())
}
