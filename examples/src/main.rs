//! Draws the example pictures, and the world that the example model was pretrained on.

mod caption;
mod examples;
mod paint;
mod picture;
mod scene;
mod subjects;
mod things;
mod world;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Draws storybook pictures with captions. The same arguments give the same pictures.
#[derive(Parser)]
#[command(name = "draw")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pictures of ordinary things for pretraining, with a caption file beside each
    World {
        /// How many pictures
        #[arg(long)]
        count: u64,
        /// Seed of the motifs and of every detail
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Folder to write to
        #[arg(long)]
        out: PathBuf,
    },
    /// The committed example pictures: two made-up subjects and a preservation set
    Examples {
        /// Folder to write to
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::World { count, seed, out } => world::write(&out, count, seed),
        Command::Examples { out } => examples::write(&out),
    }
}
