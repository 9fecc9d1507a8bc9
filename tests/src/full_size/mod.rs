//! A model of full size, trained by the program itself in a process of its own: how much memory that takes, and whether
//! what is saved has the names and shapes of the real model's files.
//!
//! Linux alone says how much memory a process has taken at most (`VmHWM`), so this runs there.

mod memory;
mod names;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

/// Models of full size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// Stable Diffusion 1.5.
    Sd15,
    /// Stable Diffusion 2.1.
    Sd21,
}

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program.
    pub ballast: PathBuf,
    /// Which model.
    pub size: Size,
    /// Side of the pictures.
    pub resolution: u32,
    /// Optimizer steps.
    pub steps: u32,
    /// Slots of a step, each of one picture.
    pub slots: u32,
    /// What the worker may take at most.
    pub limit_bytes: u64,
    /// `model.gradient_checkpointing`
    pub gradient_checkpointing: bool,
    /// `model.train_text_encoder`
    pub train_text_encoder: bool,
    /// Whether a checkpoint is saved and resumed from.
    pub resume: bool,
    /// A folder for the model and the run, which is removed at the end.
    pub scratch: PathBuf,
}

/// How it went, when nothing was wrong.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All is as it must be.
    Done(String),
    /// The machine is too small.
    Skipped(String),
}

/// What the machine must have free beside the worker's memory, so that nothing else suffers.
const MARGIN_BYTES: u64 = 1_500_000_000;

/// One training run may take so long on two cores.
const TIME_MAX: Duration = Duration::from_secs(600);

/// Makes the model, trains it, and compares.
///
/// # Errors
/// When a command fails, the worker takes more memory than it may, or a saved file has other names or shapes.
pub fn run(settings: &Settings) -> anyhow::Result<Outcome> {
    let needed = settings.limit_bytes + MARGIN_BYTES;
    match memory::available() {
        Some(free) if free < needed => {
            return Ok(Outcome::Skipped(format!(
                "{:.1} GB of memory are free, {:.1} GB are needed",
                free as f64 / 1e9,
                needed as f64 / 1e9
            )));
        }
        Some(_) => {}
        None => return Ok(Outcome::Skipped("this system has no /proc/meminfo".to_owned())),
    }
    ensure!(settings.ballast.is_file(), "{} is missing: cargo build --release --locked", settings.ballast.display());
    let folder = Scratch::new(&settings.scratch)?;
    let mut account = String::new();
    prepare(settings, &folder.0, &mut account)?;
    let peak = train(settings, &folder.0, settings.steps, false, &mut account)?;
    check_peak(peak, settings.limit_bytes, "training")?;
    if settings.resume {
        let peak = train(settings, &folder.0, settings.steps + 1, true, &mut account)?;
        check_peak(peak, settings.limit_bytes, "resuming")?;
    }
    let saved = folder.0.join("runs/full");
    let lists = names::Lists::of(settings.size)?;
    writeln!(account, "{}", lists.check_folder(&saved.join("final"))?)?;
    writeln!(account, "{}", lists.check_single_file(&saved.join("final.safetensors"))?)?;
    Ok(Outcome::Done(account))
}

fn check_peak(peak: u64, limit: u64, what: &str) -> anyhow::Result<()> {
    ensure!(peak <= limit, "{what} took {:.2} GB of memory at its peak, {:.2} GB are allowed", gb(peak), gb(limit));
    Ok(())
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// A folder that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path)?.join(std::process::id().to_string());
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // best effort: nothing depends on it
    }
}

/// Writes model, pictures and config.
fn prepare(settings: &Settings, folder: &Path, account: &mut String) -> anyhow::Result<()> {
    let name = match settings.size {
        Size::Sd15 => "sd15",
        Size::Sd21 => "sd21",
    };
    let mut init = Command::new(&settings.ballast);
    init.args(["init-model", name, "--out"]).arg(folder.join("model"));
    let done = watch(init, &folder.join("init-model.log"))?;
    writeln!(account, "init-model {name}: {:.0} s, {:.2} GB at the peak", done.seconds, gb(done.peak))?;
    let data = folder.join("data");
    fs::create_dir(&data)?;
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pictures");
    let mut found = Vec::new();
    find_pictures(&pictures, &mut found).with_context(|| format!("cannot list {}", pictures.display()))?;
    found.sort();
    for (number, from) in found.iter().take(4).enumerate() {
        fs::copy(from, data.join(format!("{number}.png")))?;
    }
    fs::write(folder.join("run.toml"), config(settings, folder))?;
    Ok(())
}

fn find_pictures(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_pictures(&path, found)?;
        } else if path.extension().is_some_and(|ending| ending == "png") {
            found.push(path);
        }
    }
    Ok(())
}

fn config(settings: &Settings, folder: &Path) -> String {
    // Fewer bytes on the disk; the names and shapes are those of every precision. Checkpoints are always fp32.
    format!(
        "[run]\nepochs = 100\n\n[data]\nroot = {:?}\nresolution = {}\n\n\
         [model]\npath = {:?}\ntrain_text_encoder = {}\ngradient_checkpointing = {}\n\n\
         [step]\nmicro_batch_size = 1\nslots = {}\n\n[precision]\nsave = \"fp16\"\n\n\
         [checkpoint]\nevery_steps = {}\nbackground = \"off\"\n\n[sample]\nprompts = []\n",
        folder.join("data"),
        settings.resolution,
        folder.join("model"),
        settings.train_text_encoder,
        settings.gradient_checkpointing,
        settings.slots,
        if settings.resume { settings.steps } else { 1_000_000 },
    )
}

/// Trains up to `steps` steps in all and returns the worker's peak.
fn train(settings: &Settings, folder: &Path, steps: u32, resume: bool, account: &mut String) -> anyhow::Result<u64> {
    let mut train = Command::new(&settings.ballast);
    train.arg("train").arg(folder.join("run.toml")).args(["--workers", "1", "--device", "cpu", "--name", "full"]);
    train.arg("--out").arg(folder.join("runs")).args(["--max-steps", &steps.to_string()]);
    if resume {
        train.arg("--resume");
    }
    let done = watch(train, &folder.join("train.log"))?;
    let what = if resume { "resumed up to" } else { "trained" };
    writeln!(
        account,
        "{what} {steps} steps of {} slots at {} pixels and saved: {:.0} s, {:.0} s of CPU, {:.2} GB at the peak \
         (the coordinator {:.2} GB)",
        settings.slots,
        settings.resolution,
        done.seconds,
        done.cpu_seconds,
        gb(done.peak_of_children),
        gb(done.peak),
    )?;
    Ok(done.peak_of_children)
}

/// What a command has taken.
struct Done {
    seconds: f64,
    /// Of the process and its children.
    cpu_seconds: f64,
    /// Of the process itself.
    peak: u64,
    /// Of the largest process that it started.
    peak_of_children: u64,
}

/// Runs a command to its end, with what it says in `log`, and watches its memory.
fn watch(mut command: Command, log: &Path) -> anyhow::Result<Done> {
    let started = Instant::now();
    let output = fs::File::create(log)?;
    // Whatever this process was given to configure ballast by is not meant for the check.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BALLAST_")) {
        command.env_remove(name);
    }
    let home = log.parent().expect("a file in a folder");
    command.env("HOME", home).env("XDG_CACHE_HOME", home.join("cache"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut done = Done { seconds: 0.0, cpu_seconds: 0.0, peak: 0, peak_of_children: 0 };
    let status = loop {
        let found = memory::Usage::of(child.id());
        done.peak = done.peak.max(found.peak);
        done.peak_of_children = done.peak_of_children.max(found.peak_of_children);
        done.cpu_seconds = done.cpu_seconds.max(found.cpu_seconds);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > TIME_MAX {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} took more than {} s\n{}", TIME_MAX.as_secs(), end_of(log));
        }
        // How often the system is asked, not a wait for something to be ready.
        std::thread::sleep(Duration::from_millis(50));
    };
    ensure!(status.success(), "{command:?} ended with {status}\n{}", end_of(log));
    done.seconds = started.elapsed().as_secs_f64();
    Ok(done)
}

fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
