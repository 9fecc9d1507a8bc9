//! The worker processes that `ballast train` starts, each with a log file, none outliving this process.
//!
//! A worker ends when its standard input does, which happens even when this process is killed; a clean end kills what is
//! left. One that dies while the others go on is started again, a few times: it joins anew and a peer sends it the state.
//! Each has a process group of its own, so that Ctrl-C in a terminal reaches only the parent, who then asks for a
//! clean stop.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ballast_common::config::TelemetryConfig;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// Lines that may come from a worker before anyone reads them; a worker that says more waits.
const WARNINGS_MAX: usize = 256;
/// Lines of an error that are kept: a message, its causes and a hint, or a panic.
const ERROR_LINES_MAX: usize = 40;

/// Its number on every Unix.
const SIGKILL: i32 = 9;

/// A worker is started again so often within [`RESTARTS_WITHIN`], and then left alone: something is wrong with it.
const RESTARTS_MAX: usize = 3;
const RESTARTS_WITHIN: Duration = Duration::from_secs(600);

/// What each worker is started with.
pub(crate) struct WorkerSettings {
    pub(crate) coordinator: SocketAddr,
    /// One worker per device: `cpu`, `cuda:0`, `cuda:1`, …
    pub(crate) devices: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) run_folder: PathBuf,
    pub(crate) verbosity: i8,
    pub(crate) telemetry: TelemetryConfig,
}

/// The running workers. Dropping it kills them.
pub(crate) struct WorkerProcesses {
    program: PathBuf,
    settings: WorkerSettings,
    running: JoinSet<WorkerExit>,
    /// Ends the watching, and with it the process, by process id.
    watchers: HashMap<u32, AbortHandle>,
    warning_sender: mpsc::Sender<String>,
    warnings: mpsc::Receiver<String>,
    shown: HashSet<String>,
    logs: HashMap<u32, PathBuf>,
    restarts: Vec<Restarts>,
}

/// When a worker was started again.
#[derive(Debug, Clone, Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Says which restart of those allowed this one is. None: it has had them all.
    fn take(&mut self, now: Instant) -> Option<usize> {
        while self.0.front().is_some_and(|earlier| now.duration_since(*earlier) >= RESTARTS_WITHIN) {
            self.0.pop_front();
        }
        (self.0.len() < RESTARTS_MAX).then(|| {
            self.0.push_back(now);
            self.0.len()
        })
    }
}

/// What happens to a worker process.
pub(crate) enum WorkerEvent {
    /// It has a warning for the person.
    Warning(String),
    /// It has ended.
    Exit(WorkerExit),
}

/// A worker process has ended.
pub(crate) struct WorkerExit {
    /// 1-based, as in its log's name.
    pub(crate) number: usize,
    pub(crate) status: ExitStatus,
    /// What it said last, if that was an error.
    pub(crate) error: Vec<String>,
    pub(crate) log: PathBuf,
}

impl WorkerProcesses {
    /// Starts one worker per device, from this very program.
    pub(crate) fn start(settings: WorkerSettings) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let (warning_sender, warnings) = mpsc::channel(WARNINGS_MAX);
        let count = settings.devices.len();
        let mut workers = Self {
            program,
            settings,
            running: JoinSet::new(),
            watchers: HashMap::new(),
            warning_sender,
            warnings,
            shown: HashSet::new(),
            logs: HashMap::new(),
            restarts: vec![Restarts::default(); count],
        };
        for number in 1..=count {
            workers.start_one(number)?;
        }
        Ok(workers)
    }

    fn start_one(&mut self, number: usize) -> anyhow::Result<()> {
        let log = self.settings.run_folder.join(format!("worker-{number}.log"));
        let log_file = File::options().create(true).append(true).open(&log);
        let log_file = log_file.with_context(|| format!("cannot open {}", log.display()))?;
        let child = command(&self.program, &self.settings, &self.settings.devices[number - 1])
            .stdout(log_file.try_clone().context("cannot share a log file")?)
            .spawn()
            .with_context(|| format!("cannot start worker {number} ({})", self.program.display()))?;
        let process_id = child.id();
        let watcher = self.running.spawn(watch(number, child, log.clone(), log_file, self.warning_sender.clone()));
        if let Some(process_id) = process_id {
            self.logs.insert(process_id, log);
            self.watchers.insert(process_id, watcher);
        }
        Ok(())
    }

    /// Starts a worker again that has died, unless that has been done too often. Returns what to tell the person.
    pub(crate) fn restart(&mut self, number: usize) -> anyhow::Result<String> {
        let minutes = RESTARTS_WITHIN.as_secs() / 60;
        let Some(count) = self.restarts[number - 1].take(Instant::now()) else {
            return Ok(format!(
                "warning: worker process {number} is not started again: it has died {} times in {minutes} minutes",
                RESTARTS_MAX + 1
            ));
        };
        self.start_one(number)?;
        Ok(format!("worker process {number} is started again ({count} of {RESTARTS_MAX} times in {minutes} minutes)"))
    }

    /// Kills the workers that have not joined: they would wait for a coordinator that has gone.
    pub(crate) fn end_strangers(&mut self, joined: &HashSet<u32>) {
        for (_, watcher) in self.watchers.iter().filter(|(process_id, _)| !joined.contains(process_id)) {
            watcher.abort();
        }
    }

    /// Returns the log of each worker by its process id.
    pub(crate) fn logs(&self) -> HashMap<u32, PathBuf> {
        self.logs.clone()
    }

    /// Says whether all workers have ended.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits for what happens next to any worker. None when all have ended and nothing is left to say.
    pub(crate) async fn next(&mut self) -> Option<WorkerEvent> {
        loop {
            tokio::select! {
                // What a worker said comes before its end.
                biased;
                Some(warning) = self.warnings.recv() => {
                    // Each is passed on once, though every worker may have it.
                    if self.shown.insert(warning.clone()) {
                        return Some(WorkerEvent::Warning(warning));
                    }
                }
                exit = self.running.join_next() => match exit {
                    Some(Ok(exit)) => return Some(WorkerEvent::Exit(exit)),
                    Some(Err(error)) if error.is_cancelled() => {} // killed by `end_strangers`
                    Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
                    None => return None,
                },
            }
        }
    }
}

impl WorkerExit {
    /// Returns what the worker said went wrong, and its hint; else how it ended.
    pub(crate) fn reason(&self) -> (String, Option<String>) {
        let hint = self.error.iter().find_map(|line| line.strip_prefix("hint: ")).map(str::to_owned);
        let lines: Vec<&str> =
            self.error.iter().filter(|line| !line.starts_with("hint: ")).map(String::as_str).collect();
        let text = lines.join("\n");
        match text.strip_prefix("error: ") {
            Some(text) => (text.to_owned(), hint),
            None if !text.is_empty() => (format!("{}\n{text}", self.status), hint),
            None if self.status.signal() == Some(SIGKILL) => {
                let hint = "if nobody killed it, the machine may have run out of memory";
                (self.status.to_string(), Some(hint.to_owned()))
            }
            None => (self.status.to_string(), hint),
        }
    }

    /// Says whether the worker ended with an error of its own words, rather than by a signal or a panic.
    pub(crate) fn has_named_its_error(&self) -> bool {
        self.error.iter().any(|line| line.starts_with("error: "))
    }
}

fn command(program: &Path, settings: &WorkerSettings, device: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg("worker")
        .args(["--coordinator", &format!("http://{}", settings.coordinator)])
        .args(["--device", device])
        .args(["--threads", &settings.threads.to_string()])
        .arg("--until-stdin-ends")
        .args((0..settings.verbosity.max(0)).map(|_| "--verbose"))
        // Colours belong to terminals, not to log files.
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    trace_like_this_process(&mut command, &settings.telemetry);
    command
}

/// Hands on what the config says about traces: a worker needs it before it is sent the config.
fn trace_like_this_process(command: &mut Command, config: &TelemetryConfig) {
    if let Some(endpoint) = &config.otlp_endpoint
        && std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none()
    {
        command.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    }
    // What the variable holds already comes last, and wins.
    let attributes = std::env::var("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let attributes = format!("service.namespace={},{attributes}", config.service_namespace);
    command.env("OTEL_RESOURCE_ATTRIBUTES", attributes.trim_end_matches(','));
}

async fn watch(
    number: usize,
    mut child: Child,
    log: PathBuf,
    log_file: File,
    warnings: mpsc::Sender<String>,
) -> WorkerExit {
    // Held open as long as the worker is to live; taken from the child, whose `wait` would close it.
    let stdin = child.stdin.take();
    let stderr = child.stderr.take().expect("stderr was asked to be piped");
    let error = copy_lines(stderr, log_file, warnings).await;
    let status = child.wait().await.expect("the child is ours and not yet reaped");
    drop(stdin);
    WorkerExit { number, status, error, log }
}

/// Copies what a worker says to its log, passes warnings on, and returns the error it ends with.
async fn copy_lines(stderr: ChildStderr, mut log_file: File, warnings: mpsc::Sender<String>) -> Vec<String> {
    let mut lines = BufReader::new(stderr).split(b'\n');
    let mut error = Vec::new();
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        // One short write per line; a full disk must not stop the copying, or the worker would stall.
        let _ = writeln!(log_file, "{line}");
        match LogLine::parse(&line) {
            Some(LogLine { is_warning, text }) => {
                error.clear();
                if is_warning {
                    // Closed only when nobody listens any more.
                    let _ = warnings.send(text.to_owned()).await;
                }
            }
            None if error.len() < ERROR_LINES_MAX => error.push(line),
            None => {}
        }
    }
    error
}

/// A line of `telemetry::Style::Service`: `TIME LEVEL SPANS: TARGET: TEXT`.
struct LogLine<'a> {
    is_warning: bool,
    text: &'a str,
}

impl<'a> LogLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (time, rest) = line.split_once(' ')?;
        let is_time = time.ends_with('Z') && time.len() > 20 && time.as_bytes()[10] == b'T';
        let (level, text) = rest.trim_start().split_once(' ').filter(|_| is_time)?;
        Some(Self { is_warning: matches!(level, "WARN" | "ERROR"), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_started_again_three_times_in_ten_minutes() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        let mut after = |minutes: u64| restarts.take(start + Duration::from_secs(60 * minutes));
        assert_eq!([after(0), after(1), after(8), after(9)], [Some(1), Some(2), Some(3), None]);
        assert_eq!([after(10), after(10), after(11)], [Some(3), None, Some(3)]);
    }

    #[test]
    fn warnings_are_told_from_news_and_from_errors() {
        let warning =
            LogLine::parse("2026-11-22T17:29:20.482011Z  WARN ballast_worker: picture skipped path=a.png").unwrap();
        assert!(warning.is_warning);
        assert_eq!(warning.text, "ballast_worker: picture skipped path=a.png");
        assert!(!LogLine::parse("2026-11-22T17:29:20.482011Z  INFO ballast_worker: joined").unwrap().is_warning);
        assert!(LogLine::parse("error: cannot open the model").is_none());
        assert!(LogLine::parse("thread 'main' panicked at worker/src/lib.rs:1:1:").is_none());
    }
}
