//! A real run under random faults: real processes on loopback, killed, stopped and started again, and at the end the bits
//! of a run that nobody disturbed.
//!
//! `faults` says what happens when, from a seed; `cluster` holds the processes; `disturbed` does the faults and watches;
//! `liveness` decides, purely, whether the run goes on as promised; `ledger` reads from outside what counts.

mod cluster;
mod disturbed;
mod faults;
mod journal;
mod ledger;
mod liveness;
mod material;
mod process;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use disturbed::{Disturbed, Measured};
use journal::Journal;
use ledger::LedgerReader;
use material::Material;
use process::{Message, Process};

/// How often the processes and the ledger are looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Decides the faults and their moments.
    pub seed: u64,
    /// How many.
    pub faults: u64,
    /// Workers at the start.
    pub workers: usize,
    /// Whether the coordinator is killed and stopped too.
    pub coordinator_faults: bool,
    /// The program; none: see `--help`.
    pub ballast: Option<PathBuf>,
    /// Where to work; none: a folder of its own that is deleted when all went well.
    pub folder: Option<PathBuf>,
    /// Shows the summary alone.
    pub quiet: bool,
}

/// A soak that did not go well.
#[derive(Debug)]
pub struct Failed {
    /// What was wrong.
    pub error: anyhow::Error,
    /// What had happened before, oldest first.
    pub history: Vec<String>,
    /// Where the logs, the run and the undisturbed run are.
    pub folder: PathBuf,
}

/// Ctrl-C, or SIGTERM.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A soak that went well, in one line.
#[derive(Debug)]
pub struct Summary(String);

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Runs a soak.
///
/// # Errors
/// When it could not be run, was interrupted, or something was not as it must be.
pub fn soak(options: &Options) -> Result<Summary, Failed> {
    let kept = |error| Failed { error, history: Vec::new(), folder: PathBuf::new() };
    let own_folder = match &options.folder {
        Some(folder) => std::fs::create_dir_all(folder).map(|()| None),
        None => tempfile::Builder::new().prefix("ballast-soak-").tempdir().map(Some),
    };
    let mut own_folder = own_folder.context("cannot make a folder to work in").map_err(kept)?;
    let folder =
        own_folder.as_ref().map_or_else(|| options.folder.clone().unwrap_or_default(), |own| own.path().into());
    let folder = folder.canonicalize().context("cannot open the folder to work in").map_err(kept)?;
    let mut journal = Journal::new(&folder, options.quiet).context("cannot write a history").map_err(kept)?;
    work(options, &folder, &mut journal).map_err(|error| {
        if let Some(own) = &mut own_folder {
            own.disable_cleanup(true);
        }
        Failed { error, history: journal.lines().to_vec(), folder }
    })
}

fn work(options: &Options, folder: &Path, journal: &mut Journal) -> anyhow::Result<Summary> {
    let steps = faults::steps(options.faults);
    let ballast = material::find_program(options.ballast.clone())?;
    journal.say(&format!(
        "seed {}, {} faults, {steps} steps; logs in {}",
        options.seed,
        options.faults,
        folder.display()
    ));
    let material = Material::make(ballast, folder.to_owned(), options.seed, steps)?;
    let (sender, inbox) = channel();
    obey_signals(sender.clone())?;

    let seconds = undisturbed(&material, steps, &sender, &inbox, journal)?;
    journal.say(&format!("undisturbed: {steps} steps with one worker in {seconds:.1} s"));

    let end = Disturbed::start(options, &material, sender, &inbox, journal)?.run()?;
    check(&material, journal)?;

    let Measured { step, .. } = end.measured;
    let stalls: Vec<String> = end.longest.values().rev().map(ToString::to_string).collect();
    Ok(Summary(format!(
        "soak: ok, seed {}, {} faults ({}), {steps} steps, {} generations, {} rollbacks, longest stall {}; a step takes \
         {:.2} s, all {:.0} s",
        options.seed,
        options.faults,
        end.tally,
        end.generations,
        end.rollbacks,
        stalls.join(", "),
        step.as_secs_f64(),
        journal.now().as_secs_f64(),
    )))
}

/// Makes the run that nobody disturbs. Returns how many seconds it took.
fn undisturbed(
    material: &Material,
    steps: u64,
    messages: &Sender<Message>,
    inbox: &Receiver<Message>,
    journal: &mut Journal,
) -> anyhow::Result<f64> {
    let arguments = ["train", "config.toml", "--workers", "1", "--device", "cpu", "--name", "undisturbed"];
    let log = material.log("undisturbed");
    let mut training = Process::start(&mut material.command(&arguments), &log, messages.clone())?;
    let mut ledger = LedgerReader::new(&material.run("undisturbed"));
    let (mut said, mut seen, mut seen_at) = (0, 0, Instant::now());
    loop {
        if let Ok(Message::Interrupted) = inbox.recv_timeout(GLANCE) {
            bail!(Interrupted);
        }
        if let Some(status) = training.exit() {
            ensure!(status.success(), "the undisturbed run failed with {status}: see {}", training.log.display());
            return Ok(training.started.elapsed().as_secs_f64());
        }
        let next_step = ledger.next_step().unwrap_or_default();
        if next_step != seen {
            (seen, seen_at) = (next_step, Instant::now());
        }
        ensure!(seen_at.elapsed() < Duration::from_secs(60), "the undisturbed run stands still at step {seen}");
        if next_step >= said + 100 {
            said = next_step;
            journal.say(&format!("undisturbed: step {next_step} of {steps}"));
        }
    }
}

/// Checks what the disturbed run has come to.
fn check(material: &Material, journal: &mut Journal) -> anyhow::Result<()> {
    let run = material.run(cluster::RUN);
    let output = material.command(&["verify"]).arg(&run).output().context("cannot start ballast verify")?;
    ensure!(output.status.success(), "ballast verify: {}", String::from_utf8_lossy(&output.stderr).trim());
    journal.say("verify is clean");
    ledger::compare(&run, &material.run("undisturbed"))?;
    journal.say("schedules, gradients, losses and the final model are the undisturbed run's, bit by bit");
    for entry in std::fs::read_dir(&material.folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") && !path.ends_with("history.log") {
            let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let panicked =
                String::from_utf8_lossy(&text).lines().find(|line| line.contains("panicked at")).map(str::to_owned);
            ensure!(panicked.is_none(), "{}: {}", path.display(), panicked.unwrap_or_default());
        }
    }
    Ok(())
}

/// Hands Ctrl-C and SIGTERM on as a message, so that the processes are ended in one place.
fn obey_signals(messages: Sender<Message>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                let _ = messages.send(Message::Interrupted);
            }
        });
    });
    Ok(())
}

/// Takes the messages that wait, after a glance's time.
fn listen(inbox: &Receiver<Message>) -> anyhow::Result<Vec<(u32, String)>> {
    let mut lines = Vec::new();
    let mut next = inbox.recv_timeout(GLANCE);
    loop {
        match next {
            Ok(Message::Line { process_id, text }) => lines.push((process_id, text)),
            Ok(Message::Interrupted) => bail!(Interrupted),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(lines),
        }
        next = inbox.recv_timeout(Duration::ZERO);
    }
}
