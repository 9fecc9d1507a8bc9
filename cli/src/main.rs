//! The `ballast` binary, as a table of contents: each command is one file that loads the config, calls a crate, and
//! says how it went.

mod balance;
mod config_args;
mod convert;
mod coordinator;
mod devices;
mod doctor;
mod failure;
mod init_model;
mod loss_curve;
mod memory;
mod meter;
mod model_path;
mod output;
mod plan;
mod plot;
mod progress;
mod report;
mod run_folder;
mod run_loop;
mod sample;
mod scan;
mod session;
mod sheet;
mod signals;
mod summary;
mod table;
mod train;
mod verify;
mod worker;
mod worker_processes;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Fine-tunes Stable Diffusion on many GPUs, with the data balanced by small text files beside the images.
#[derive(Parser)]
#[command(name = "ballast", version, propagate_version = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: OutputArgs,
}

const AFTER_HELP: &str = "\
Start here:
  ballast plan examples/quickstart.toml      what would be trained, folder by folder, in a second
  ballast train examples/quickstart.toml     trains it, on all GPUs or on the CPU
  ballast verify runs/quickstart             proves from the ledger that every picture was used exactly as planned
  ballast report runs/quickstart             what each folder and picture got, and how well it is learned

Exit codes: 0 done, 1 failed, 2 wrong usage, config or data, 130 interrupted (after a clean checkpoint).";

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Coordinator(coordinator::Args),
    Worker(worker::Args),
    Plan(plan::Args),
    Balance(balance::Args),
    Verify(verify::Args),
    Report(report::Args),
    Sample(sample::Args),
    Convert(convert::Args),
    InitModel(init_model::Args),
    Doctor(doctor::Args),
}

/// How much is said.
#[derive(Args, Clone, Copy)]
struct OutputArgs {
    /// Says more; twice: much more. RUST_LOG sets it in detail.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
    /// Says only what went wrong.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    quiet: u8,
}

impl OutputArgs {
    fn verbosity(self) -> i8 {
        self.verbose.min(100) as i8 - self.quiet.min(100) as i8
    }
}

fn main() -> ExitCode {
    let Cli { command, output } = Cli::parse();
    let result = match command {
        Command::Train(args) => train::run(args, output),
        Command::Coordinator(args) => coordinator::run(args, output),
        Command::Worker(args) => worker::run(args, output),
        Command::Plan(args) => plan::run(args, output),
        Command::Balance(args) => balance::run(args, output),
        Command::Verify(args) => verify::run(args, output),
        Command::Report(args) => report::run(args, output),
        Command::Sample(args) => sample::run(args, output),
        Command::Convert(args) => convert::run(args, output),
        Command::InitModel(args) => init_model::run(args, output),
        Command::Doctor(args) => doctor::run(args, output),
    };
    result.unwrap_or_else(|failure| failure.report())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
