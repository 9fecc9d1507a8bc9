//! A run under way: the coordinator's events shown, signals obeyed, local workers watched.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use ballast_coordinator::{Outcome, PreparedRun, RunError, RunEvent};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::signals::StopSignals;
use crate::worker_processes::{WorkerEvent, WorkerExit, WorkerProcesses};

/// How long the coordinator may take to notice that all workers have gone, and workers to leave when the run is over.
const PARTING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the coordinator's task always has a result.
const DRIVER: &str = "the coordinator does not panic, and is cancelled only when this function has returned";

/// How a run ended that did not fail.
pub(crate) enum RunEnd {
    /// All steps are done.
    Finished,
    /// The first signal: the step was finished and saved.
    Interrupted { next_step: u64, checkpoint: Option<PathBuf> },
    /// The second signal.
    StoppedAtOnce,
}

/// How far a run has come, for what the end of a worker means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunProgress {
    BeforeStart,
    Running,
    Over,
}

/// Runs the coordinator until the run ends, with the workers that were started beside it, if any.
pub(crate) async fn drive(
    listener: TcpListener,
    run: PreparedRun,
    worker_count: u32,
    progress: &mut Progress,
    mut workers: Option<WorkerProcesses>,
) -> Result<RunEnd, Failure> {
    if let Some(workers) = &workers {
        progress.note_logs(workers.logs());
    }
    let mut signals = StopSignals::listen().context("cannot listen for Ctrl-C")?;
    let (stop_sender, stop) = watch::channel(false);
    let (event_sender, mut events) = mpsc::unbounded_channel();
    // A task of its own, so that a terminal that does not take its lines holds nothing up.
    let mut serve = JoinSet::new();
    serve.spawn(ballast_coordinator::serve(listener, run, worker_count, event_sender, stop));
    let mut state = RunProgress::BeforeStart;
    let mut joined = HashSet::new();
    let outcome = loop {
        tokio::select! {
            // What happened before the end is shown before the end.
            biased;
            Some(event) = events.recv() => {
                match &event {
                    RunEvent::Started { .. } => state = RunProgress::Running,
                    RunEvent::Over => state = RunProgress::Over,
                    RunEvent::WorkerJoined { process_id, .. } => drop(joined.insert(*process_id)),
                    _ => {}
                }
                progress.show(&event);
            }
            Some(outcome) = serve.join_next() => break outcome.expect(DRIVER)?,
            () = signals.next() => {
                if stop_sender.send_replace(true) {
                    return Ok(RunEnd::StoppedAtOnce);
                }
                progress.insist(&stop_message(state == RunProgress::Running, progress.current_step()));
            }
            Some(event) = next_worker_event(&mut workers) => match event {
                WorkerEvent::Warning(warning) => progress.insist(&format!("warning: {warning}")),
                WorkerEvent::Exit(exit) => {
                    let stopping = *stop_sender.borrow();
                    worker_ended(&exit, state, stopping, progress)?;
                    let workers = workers.as_mut().expect("one of them has just ended");
                    if workers.is_empty() {
                        break finish_without_workers(&mut serve).await?;
                    }
                    if state == RunProgress::Running && !stopping && !exit.status.success() {
                        progress.insist(&workers.restart(exit.number)?);
                        progress.note_logs(workers.logs());
                    }
                }
            },
        }
    };
    while let Ok(event) = events.try_recv() {
        progress.show(&event);
    }
    if let Some(workers) = &mut workers {
        workers.end_strangers(&joined);
        // Whoever has not left by then is killed when `workers` is dropped.
        let all_gone = async { while workers.next().await.is_some() {} };
        let _ = tokio::time::timeout(PARTING_TIMEOUT, all_gone).await;
    }
    Ok(match outcome {
        Outcome::Finished { .. } => RunEnd::Finished,
        Outcome::Interrupted { next_step, checkpoint } => RunEnd::Interrupted { next_step, checkpoint },
    })
}

fn stop_message(started: bool, current_step: u64) -> String {
    if started {
        format!("finishing step {}, then saving; press Ctrl-C again to stop at once", current_step + 1)
    } else {
        "stopping before the first step; press Ctrl-C again to stop at once".to_owned()
    }
}

async fn next_worker_event(workers: &mut Option<WorkerProcesses>) -> Option<WorkerEvent> {
    workers.as_mut()?.next().await
}

/// Decides what the end of a worker means: nothing when the run is over or being stopped before it began, an error when it
/// could not start, else a warning, since the others go on.
fn worker_ended(exit: &WorkerExit, state: RunProgress, stopping: bool, progress: &Progress) -> Result<(), Failure> {
    let before_start = state == RunProgress::BeforeStart;
    if exit.status.success() || stopping && before_start {
        return Ok(());
    }
    let (reason, hint) = exit.reason();
    if before_start {
        let failure = Failure::failed(format_args!("worker {} could not start: {reason}", exit.number));
        return Err(failure.hint(hint.unwrap_or_else(|| format!("its log is {}", exit.log.display()))));
    }
    // An error that the worker could name it has told the coordinator, which has logged it.
    if !exit.has_named_its_error() {
        progress.insist(&format!("warning: worker process {} ended: {reason}", exit.number));
        if let Some(hint) = hint {
            progress.insist(&format!("hint: {hint}"));
        }
    }
    Ok(())
}

/// Waits for the coordinator to say how the run ends, now that all its workers have gone.
async fn finish_without_workers(serve: &mut JoinSet<Result<Outcome, RunError>>) -> Result<Outcome, Failure> {
    match tokio::time::timeout(PARTING_TIMEOUT, serve.join_next()).await {
        Ok(outcome) => Ok(outcome.expect("its result was not taken yet").expect(DRIVER)?),
        Err(_) => Err(Failure::failed("all workers have ended before the run has")),
    }
}
