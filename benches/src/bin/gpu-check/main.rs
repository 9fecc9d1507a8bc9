//! What `tests/gpu/run` has a GPU do that training alone does not show: operations and whole steps beside the CPU and beside
//! stored numbers, the time of a step, the rate of products of matrices. `--device cpu` runs the same on the CPU.
//!
//! Every line of the output is a JSON object; the exit status is 1 where a comparison failed.

mod device;
mod learner;
mod model;
mod operations;
mod rate;
mod step;

#[path = "../../../../model/tests/support/mod.rs"]
mod support;

use clap::{Parser, Subcommand};

/// Checks and times ballast's training step on a device.
#[derive(Parser)]
struct Args {
    /// `cpu` or `cuda:N`
    #[arg(long, default_value = "cuda:0")]
    device: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Every operation and its gradients beside the CPU
    Operations(operations::Args),
    /// Loss and gradient of whole models beside stored numbers and the CPU
    Model(model::Args),
    /// The time of a training step
    Step(step::Args),
    /// Products of large matrices, as fast as they get
    Rate(rate::Args),
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = device::open(&args.device)?;
    let good = match args.what {
        What::Operations(args) => operations::run(&args, &device),
        What::Model(args) => model::run(&args, &device)?,
        What::Step(args) => step::run(&args, &device)?,
        What::Rate(args) => rate::run(&args, &device)?,
    };
    if !good {
        std::process::exit(1);
    }
    Ok(())
}
