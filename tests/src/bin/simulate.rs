//! Runs simulated fault schedules; see `ballast_tests::simulation`. Exit code 1 and the seed when something was not as it must be.

use std::process::ExitCode;
use std::time::Instant;

use ballast_tests::simulation::simulate_many;
use clap::Parser;

/// Runs simulated fault schedules of the coordinator's core.
#[derive(Parser)]
struct Args {
    /// Seed of the first schedule; the next one has the next seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many schedules.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    schedules: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let started = Instant::now();
    match simulate_many(args.seed, args.schedules) {
        Ok(tally) => {
            println!("{tally}, no violation, {:.1} s", started.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(violation) => {
            eprintln!("{violation}");
            ExitCode::FAILURE
        }
    }
}
