//! `ballast init-model`: a model with random weights, for tests and for training from nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use ballast_common::telemetry::{self, Options, Service};
use ballast_model::{Preset, SavePrecision};

use crate::OutputArgs;
use crate::failure::Failure;
use crate::output::print;
use crate::summary::shown;

/// Writes a model with random weights in the diffusers layout.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// How large: tiny and tiny-v2 are for tests, small trains on a CPU in minutes, sd15 and sd21 are the real ones.
    #[arg(value_parser = Preset::ALL.map(|(_, name)| name))]
    preset: String,
    /// The folder to write. Must not exist.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The seed of the weights. The same seed gives the same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

const AFTER_HELP: &str = "\
Example:
  ballast init-model tiny --out models/tiny --seed 1
  ballast train my.toml --set model.path=models/tiny";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity()));
    if args.out.exists() {
        return Err(Failure::usage(format_args!("{} exists already", args.out.display())).hint("choose another --out"));
    }
    let preset = Preset::from_name(&args.preset).expect("clap lets only the names of presets pass");
    let model = ballast_model::init_model(preset, args.seed);
    model
        .save_diffusers(&args.out, SavePrecision::Fp32)
        .with_context(|| format!("cannot make the model {}", args.out.display()))?;
    print(&shown(&args.out))?;
    Ok(ExitCode::SUCCESS)
}
