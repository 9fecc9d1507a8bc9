//! Runs a soak: a real run under random faults; see `ballast_tests::soak`. Exit code 0 only when everything held.

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_tests::soak::{Interrupted, Options, soak};
use clap::Parser;

/// Kills, stops and restarts the real processes of a real run, and checks that nothing was lost.
///
/// Makes a tiny model and a few pictures, and trains them twice with the same seed: once undisturbed, with one worker; and
/// once with a coordinator and several workers on loopback, at which faults are thrown: workers and the coordinator are
/// killed (SIGKILL) and started again, or stopped and continued (SIGSTOP, SIGCONT) for less and for more than the lease;
/// all workers die at once; workers are added and removed; some die while they save a checkpoint or are sent the state.
#[derive(Parser)]
#[command(name = "soak", after_help = AFTER_HELP)]
struct Args {
    /// Decides which faults are done, to whom, and after which step.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many faults; the run has as many steps as they need.
    #[arg(long, value_name = "N", default_value_t = 100)]
    faults: u64,
    /// How many workers the run begins with.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=4))]
    workers: u8,
    /// Leaves the coordinator alone: faults of workers only.
    #[arg(long)]
    spare_coordinator: bool,
    /// The program to test [default: built by cargo when this is run by cargo, else the one beside this program].
    #[arg(long, value_name = "PATH")]
    ballast: Option<PathBuf>,
    /// Works here and leaves everything there [default: a temporary folder, kept only when something was wrong].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Shows the last line alone.
    #[arg(short, long)]
    quiet: bool,
}

const AFTER_HELP: &str = "\
What must hold, or the exit code is 1 and the seed, the history and the logs are named:
  - the final model, and every step's gradient, losses and pictures, are the undisturbed run's, bit by bit
  - `ballast verify` finds every position of every epoch exactly once
  - no stall: while a coordinator and a worker run, the next commit comes within 3 s of a closed connection and within
    lease + 1 s of a silence, plus what a step, a catch-up and a start take, which is measured undisturbed and shown
  - no process ends without a reason, and none outlives the run

Examples:
  cargo run --release -p ballast-tests --bin soak -- --seed 7 --faults 100
  cargo run --release -p ballast-tests --bin soak -- --faults 1000 --out soak-1000      about half an hour

The seed decides the faults and the steps after which they come; the exact moment is the clock's, so a seed that failed may
take several tries to fail again. Ctrl-C ends everything that was started here, and nothing else (exit code 130).";

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        seed: args.seed,
        faults: args.faults,
        workers: args.workers.into(),
        coordinator_faults: !args.spare_coordinator,
        ballast: args.ballast,
        folder: args.out,
        quiet: args.quiet,
    };
    match soak(&options) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(failed) if failed.error.is::<Interrupted>() => {
            eprintln!("soak: interrupted, seed {}; logs in {}", options.seed, failed.folder.display());
            ExitCode::from(130)
        }
        Err(failed) => {
            if options.quiet {
                failed.history.iter().for_each(|line| eprintln!("{line}"));
            }
            eprintln!("logs, the run and the undisturbed run: {}", failed.folder.display());
            println!("soak: FAILED, seed {}: {:#}", options.seed, failed.error);
            ExitCode::FAILURE
        }
    }
}
