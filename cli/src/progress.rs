//! What a person sees of a run: one live line on a terminal, a plain line now and then elsewhere, and messages.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ballast_common::telemetry::TerminalWriter;
use ballast_coordinator::RunEvent;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::meter::Meter;
use crate::summary::shown;

/// Without a terminal a line is written after so many steps, or after so long, whichever comes first.
const PLAIN_LINE_STEPS: u64 = 25;
const PLAIN_LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows a run on stderr.
pub(crate) struct Progress {
    line: LiveLine,
    quiet: bool,
    meter: Meter,
    worker_count: u64,
    last_plain_line: Option<(u64, Instant)>,
    /// Logs of local workers by process id.
    logs: HashMap<u32, PathBuf>,
    /// The last step that counted.
    last_step: Option<u64>,
}

impl Progress {
    /// Starts with nothing shown.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            line: LiveLine::new(quiet),
            quiet,
            meter: Meter::default(),
            worker_count: 0,
            last_plain_line: None,
            logs: HashMap::new(),
            last_step: None,
        }
    }

    /// Takes note of where local workers log.
    pub(crate) fn note_logs(&mut self, logs: HashMap<u32, PathBuf>) {
        self.logs.extend(logs);
    }

    /// Returns a writer for log lines that keeps clear of the live line.
    pub(crate) fn terminal_writer(&self) -> Option<TerminalWriter> {
        let line = self.line.clone();
        line.bar.is_some().then(|| Arc::new(move |bytes: &[u8]| line.write(bytes)) as TerminalWriter)
    }

    /// Writes a message, unless only errors are wanted.
    pub(crate) fn say(&self, text: &str) {
        if !self.quiet {
            self.line.write(format!("{text}\n").as_bytes());
        }
    }

    /// Writes a message even to those who want few.
    pub(crate) fn insist(&self, text: &str) {
        self.line.write(format!("{text}\n").as_bytes());
    }

    /// Returns the step that is being computed, 0-based.
    pub(crate) fn current_step(&self) -> u64 {
        self.last_step.map_or(0, |step| step + 1)
    }

    /// Shows what happened.
    pub(crate) fn show(&mut self, event: &RunEvent) {
        match event {
            RunEvent::WorkerJoined { worker_id, host, device, process_id } => {
                // Numbers go by who joins first, so the log of a local worker is named here.
                let log = self.logs.get(process_id).map_or_else(String::new, |log| format!(", log {}", shown(log)));
                self.say(&format!("worker {worker_id} joined: {device} on {host}, process {process_id}{log}"));
            }
            // Who computes is said when they begin to.
            RunEvent::WorkerLost { .. } | RunEvent::Over => {}
            RunEvent::Waiting { message } => {
                self.line.set(self.current_step(), message.clone());
                self.insist(message);
            }
            RunEvent::Notice { message } => self.insist(message),
            RunEvent::RolledBack { from_step, to_step, reason } => {
                self.last_step = to_step.checked_sub(1);
                self.insist(&format!(
                    "{reason}: steps {to_step} to {from_step} are taken back and computed again, on record in the ledger"
                ));
            }
            RunEvent::Started { world_size, next_step, stop_step, .. } => {
                self.worker_count = u64::from(*world_size);
                self.last_step = next_step.checked_sub(1);
                self.line.start(*next_step, *stop_step);
                let from = if *next_step > 0 { format!(" from step {next_step}") } else { String::new() };
                self.say(&format!("training{from} with {}", counted(self.worker_count, "worker")));
            }
            RunEvent::Stepped { step, stop_step, epoch, epochs, loss, images, duration, .. } => {
                self.last_step = Some(*step);
                self.meter.add(*loss, *images, *duration);
                let done = step + 1;
                let text = format!(
                    "epoch {}/{epochs}  step {done}/{stop_step}  {}  {}",
                    epoch + 1,
                    self.meter.text(stop_step.saturating_sub(done)),
                    counted(self.worker_count, "worker"),
                );
                self.line.set(done, text.clone());
                self.plain_line(done, *stop_step, &text);
            }
            RunEvent::CheckpointSaved { path, .. } => self.say(&format!("checkpoint saved: {}", shown(path))),
            RunEvent::SamplesDrawn { next_step, paths, error: None } => {
                self.say(&format!(
                    "samples drawn after {}: {}",
                    counted(*next_step, "step"),
                    counted(paths.len() as u64, "picture")
                ));
            }
            // The coordinator logs what goes wrong; saying it here too would say it twice.
            RunEvent::SamplesDrawn { .. } | RunEvent::Skipped { .. } => {}
            RunEvent::FinalSaved { .. } => self.line.finish(),
        }
    }

    /// Takes the live line away.
    pub(crate) fn finish(&self) {
        self.line.finish();
    }

    fn plain_line(&mut self, done: u64, total: u64, text: &str) {
        if self.quiet || self.line.bar.is_some() {
            return;
        }
        let now = Instant::now();
        let due = self.last_plain_line.is_none_or(|(step, at)| {
            done >= step + PLAIN_LINE_STEPS || done == total || now.duration_since(at) >= PLAIN_LINE_INTERVAL
        });
        if due {
            self.last_plain_line = Some((done, now));
            self.say(text);
        }
    }
}

/// `1 worker`, `2 workers`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// The live line, or plain stderr.
#[derive(Clone)]
struct LiveLine {
    bar: Option<ProgressBar>,
    /// Before the first step there is nothing to draw, and nothing to keep clear of.
    shown: Arc<AtomicBool>,
}

impl LiveLine {
    fn new(quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let live = std::io::stderr().is_terminal() && !dumb && !quiet;
        let bar = live.then(|| {
            let style =
                ProgressStyle::with_template("{bar:24.cyan/blue} {wide_msg}").expect("the template is well formed");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8)).with_style(style)
        });
        Self { bar, shown: Arc::new(AtomicBool::new(false)) }
    }

    fn start(&self, position: u64, length: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(length);
            bar.set_position(position);
            bar.set_message("before the first step");
            self.shown.store(true, Ordering::Relaxed);
        }
    }

    fn set(&self, position: u64, text: String) {
        if let Some(bar) = self.bar.as_ref().filter(|_| self.shown.load(Ordering::Relaxed)) {
            bar.set_message(text);
            bar.set_position(position);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.bar.as_ref().filter(|_| self.shown.swap(false, Ordering::Relaxed)) {
            bar.abandon();
        }
    }

    fn write(&self, bytes: &[u8]) {
        // A closed terminal must not end a run of days.
        let write = || drop(std::io::stderr().lock().write_all(bytes));
        match self.bar.as_ref().filter(|_| self.shown.load(Ordering::Relaxed)) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}
