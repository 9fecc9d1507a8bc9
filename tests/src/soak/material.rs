//! What the soak trains: a model of random weights, a few pictures, a config. All small, and the same for the same seed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use image::{Rgb, RgbImage};

/// How often a checkpoint is saved. [`super::faults::STEPS_AFTER`] is longer.
pub(super) const CHECKPOINT_EVERY: u64 = 10;

/// How long a silent worker counts as alive: what users have, too.
pub(super) const LEASE_SECONDS: u64 = 3;

/// How long the run waits for workers that hold the state when it has lost all of them. By default ten times as long: here
/// nobody comes back who is not back at once.
pub(super) const REJOIN_SECONDS: u64 = 2;

/// A program and a folder to run it in.
#[derive(Debug, Clone)]
pub(super) struct Material {
    pub(super) ballast: PathBuf,
    pub(super) folder: PathBuf,
}

impl Material {
    /// Writes `config.toml`, `data/` and `model/` for a run of so many steps.
    pub(super) fn make(ballast: PathBuf, folder: PathBuf, seed: u64, steps: u64) -> anyhow::Result<Self> {
        for (name, pictures, multiply) in [("boats", 3, "2"), ("cats", 5, "1"), ("trees", 6, "0.5")] {
            let data = folder.join("data").join(name);
            std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
            std::fs::write(data.join("multiply.txt"), multiply)?;
            for number in 0..pictures {
                picture(name.len() as u32, number).save(data.join(format!("{number}.png")))?;
            }
        }
        // An epoch has 14 pictures, hence four steps: more epochs than enough. Should this program itself be killed, nothing
        // that it started waits for longer than the last two keys say.
        let config = format!(
            "[run]\nseed = {seed}\nepochs = {epochs}\nmax_steps = {steps}\n\n\
             [data]\nroot = \"data\"\nresolution = 64\nflip_p = 0.5\ncond_dropout = 0.2\n\n\
             [model]\npath = \"model\"\n\n\
             [step]\nmicro_batch_size = 1\nslots = 4\n\n\
             [optimizer]\nlr = 1e-4\n\n\
             [sample]\nprompts = []\n\n\
             [checkpoint]\nevery_steps = {CHECKPOINT_EVERY}\n\n\
             [cluster]\nlease = \"{LEASE_SECONDS}s\"\nrejoin_timeout = \"{REJOIN_SECONDS}s\"\n\
             max_wait = \"60s\"\ncoordinator_timeout = \"60s\"\n",
            epochs = steps.div_ceil(3) + 1,
        );
        std::fs::write(folder.join("config.toml"), config)?;
        let material = Self { ballast, folder };
        let output = material.command(&["init-model", "tiny", "--seed", "7", "--out", "model"]).output()?;
        ensure!(output.status.success(), "cannot make the model: {}", String::from_utf8_lossy(&output.stderr));
        Ok(material)
    }

    /// Prepares `ballast ARGS` in the folder, out of reach of the variables and caches of whoever runs the soak.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.ballast);
        command.args(args).current_dir(&self.folder);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["BALLAST_", "OTEL_", "SLURM_", "LOCAL_RANK", "RUST_LOG"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("XDG_CACHE_HOME", self.folder.join(".cache")).env("HOME", &self.folder).env("NO_COLOR", "1");
        command
    }

    /// The folder of a run by its name.
    pub(super) fn run(&self, name: &str) -> PathBuf {
        self.folder.join("runs").join(name)
    }

    /// Where a process writes its lines.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

/// A small picture of one of two shapes, with its own colours.
fn picture(tint: u32, number: u32) -> RgbImage {
    let (width, height) = [(64, 64), (96, 64)][number as usize % 2];
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 3 + tint * 40) as u8, (y * 2 + number * 50) as u8, (x * y / 8 + tint * 9 + number) as u8])
    })
}

/// Finds the program: named, or built by the cargo that runs this program, or lying beside it.
pub(super) fn find_program(named: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(named) = named {
        return named.canonicalize().with_context(|| format!("{} is not there", named.display()));
    }
    let own = std::env::current_exe().context("cannot find out where this program lies")?;
    let beside = own.parent().unwrap_or(Path::new(".")).join("ballast");
    // So that what is tested is what the sources say.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let profile = own.parent().unwrap_or(Path::new("."));
        let mut build = Command::new(cargo);
        build.args(["build", "--locked"]).args(profile.ends_with("release").then_some("--release"));
        build.args(profile.parent().map(|target| format!("--target-dir={}", target.display())));
        build.current_dir(crate::repository());
        let status = build.status().context("cannot start cargo")?;
        ensure!(status.success(), "cargo cannot build ballast");
    }
    ensure!(beside.is_file(), "{} is not there: cargo build --release --locked, or --ballast PATH", beside.display());
    Ok(beside)
}
