//! The ledger at scale: bytes on disk per step, and how long `ballast verify` takes to prove that every position counts once.
//!
//! A data root of small pictures is made, and a run over it whose steps nobody computed: its commits are made up, but written
//! by the coordinator's own code. What each table takes is SQLite's own account (`dbstat`, pages included); the losses of
//! single samples are counted apart, since there are as many as a step has samples. Exit code 1: a limit is missed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use ballast_benches::{cpu_seconds, made_up_run, median, peak_memory};
use ballast_coordinator::{LEDGER_FILE, PreparedRun, verify};
use clap::Parser;

/// Of a step on the disk, without the losses of its samples.
const BYTES_PER_STEP_MAX: f64 = 100.0;
/// Of verifying, for a million steps.
const VERIFY_SECONDS_MAX: f64 = 5.0;
const MILLION: f64 = 1e6;

/// Measures the size of a ledger of N steps, and how long it takes to verify.
#[derive(Parser)]
struct Args {
    /// How many steps.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    steps: u64,
    /// Pictures of the data root.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    images: u64,
    /// Samples of a step: slots of one sample each.
    #[arg(long, value_name = "N", default_value_t = 1)]
    samples_per_step: u32,
    /// How often the verification is measured; the median is shown.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Where to make the run [default: the system's temporary folder]. It is deleted afterwards.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let folder = match &args.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let run_folder = folder.path().join("run");
    let start = Instant::now();
    let run = prepare(&args, folder.path())?;
    let steps = args.steps.min(run.total_steps());
    run.fill_ledger(steps)?;
    println!("{steps} steps of {} sample(s), made in {:.1} s", args.samples_per_step, start.elapsed().as_secs_f64());
    let bytes_per_step = report_size(&run_folder.join(LEDGER_FILE), steps)?;
    let seconds = (0..args.repeat.max(1)).map(|_| measure_verify(&run_folder, steps)).collect::<Result<Vec<_>, _>>()?;
    let seconds = median(seconds);
    let allowed = VERIFY_SECONDS_MAX * (steps as f64 / MILLION).max(1.0);
    println!("peak memory of this process: {:.0} MB", peak_memory() as f64 / 1e6);
    let mut is_good = true;
    let mut judge = |what: &str, found: f64, limit: f64| {
        let holds = found <= limit;
        println!("{what}: {found:.2}, at most {limit:.2}: {}", if holds { "holds" } else { "missed" });
        is_good &= holds;
    };
    judge("bytes per step, without the losses of samples", bytes_per_step, BYTES_PER_STEP_MAX);
    judge("seconds to verify", seconds, allowed);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes a run that has at least the steps that are wanted.
fn prepare(args: &Args, folder: &Path) -> anyhow::Result<PreparedRun> {
    let steps_per_epoch = args.images.div_ceil(args.samples_per_step.into());
    let settings = [
        ("step.slots", args.samples_per_step.to_string()),
        ("run.epochs", args.steps.div_ceil(steps_per_epoch).to_string()),
    ];
    made_up_run(folder, args.images, &settings)
}

/// Prints what the file and each table take; returns the bytes per step of all that is not samples or their losses.
fn report_size(ledger: &Path, steps: u64) -> anyhow::Result<f64> {
    let connection = rusqlite::Connection::open(ledger)?;
    // What still lies in the log beside the file belongs to it.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let file = std::fs::metadata(ledger)?.len();
    println!("file: {file} bytes, {:.1} per step", file as f64 / steps as f64);
    let mut query = connection
        .prepare("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC")
        .context("SQLite was built without dbstat")?;
    let tables = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut per_step = 0.0;
    for table in tables {
        let (name, bytes) = table?;
        let bytes = bytes as f64 / steps as f64;
        println!("  {name}: {bytes:.1} bytes per step");
        // Samples and folders are written once; losses are the samples', not the step's.
        let is_apart = ["losses", "samples", "folders"].iter().any(|word| name.contains(word));
        per_step += if is_apart { 0.0 } else { bytes };
    }
    Ok(per_step)
}

fn measure_verify(run_folder: &Path, steps: u64) -> anyhow::Result<f64> {
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    let report = verify::verify(run_folder)?;
    let seconds = start.elapsed().as_secs_f64();
    anyhow::ensure!(report.committed_steps == steps, "{} of {steps} steps verified", report.committed_steps);
    println!("verify: {seconds:.2} s, {:.2} s of CPU", cpu_seconds() - cpu_start);
    Ok(seconds)
}
