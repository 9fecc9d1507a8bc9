//! Trains a model of full size for some steps and checks what that takes: see `ballast_tests::full_size`. Exit code 1 when
//! memory or what was saved is not as it must be; 0, and a line that says so, where the machine is too small to try.

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_tests::full_size::{Outcome, Settings, Size, run};
use clap::Parser;

/// Makes a random model of full size, trains it on the CPU, and compares memory and saved names with what they must be.
#[derive(Parser)]
struct Args {
    /// The program.
    #[arg(long, default_value = "target/release/ballast")]
    ballast: PathBuf,
    /// Which model.
    #[arg(long, value_enum, default_value = "sd15")]
    model: Size,
    /// Side of the pictures.
    #[arg(long, default_value_t = 512)]
    resolution: u32,
    /// Optimizer steps. From the second on, a step finds the optimizer's buffers in memory.
    #[arg(long, default_value_t = 2)]
    steps: u32,
    /// Most memory that the worker may take, in GB of 10⁹ bytes.
    #[arg(long, default_value_t = 16.0)]
    limit: f64,
    /// Slots of a step, each of one picture.
    #[arg(long, default_value_t = 1)]
    slots: u32,
    /// Computes activations again instead of keeping them.
    #[arg(long)]
    gradient_checkpointing: bool,
    /// Trains the text encoder, too.
    #[arg(long)]
    train_text_encoder: bool,
    /// Saves a checkpoint after the steps and resumes from it for one step more.
    #[arg(long)]
    resume: bool,
    /// Where the model and the run go: about 20 GB. Removed at the end.
    #[arg(long, default_value = "target/full-size")]
    scratch: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = Settings {
        ballast: args.ballast,
        size: args.model,
        resolution: args.resolution,
        steps: args.steps,
        slots: args.slots,
        limit_bytes: (args.limit * 1e9) as u64,
        gradient_checkpointing: args.gradient_checkpointing,
        train_text_encoder: args.train_text_encoder,
        resume: args.resume,
        scratch: args.scratch,
    };
    match run(&settings) {
        Ok(Outcome::Done(account)) => {
            println!("{account}");
            ExitCode::SUCCESS
        }
        Ok(Outcome::Skipped(reason)) => {
            println!("SKIPPED, nothing was checked: {reason}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("FAILED: {problem:#}");
            ExitCode::FAILURE
        }
    }
}
