//! Checkpoints that are written while training goes on: from a copy of the state, on a thread of their own.
//!
//! The copy is of the optimizer's buffers; the model's tensors are shared until the next step replaces them. Together
//! that is as much memory again as the trained state takes, so a worker that has not got it writes at once instead and lets
//! training wait.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use ballast_common::config::BackgroundSave;
use ballast_model::adamw::AdamW;
use ballast_model::{FlatLayout, StableDiffusion, cpu_device};
use burn::module::Module as _;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};
use tokio::sync::watch;
use tracing::Span;

use super::{SaveError, Snapshot, save_checkpoint};

/// What stays free beside the copy: the pictures that are read ahead, and the files that are being written.
const MARGIN_BYTES: u64 = 512 << 20;

/// A state of its own, which training cannot change any more.
pub(crate) struct OwnedSnapshot {
    run_id: String,
    next_step: u64,
    params_hash: String,
    model: StableDiffusion,
    layout: FlatLayout,
    optimizer: AdamW,
}

impl OwnedSnapshot {
    /// Copies a state.
    pub(crate) fn copy(of: Snapshot) -> Self {
        Self {
            run_id: of.run_id.to_owned(),
            next_step: of.next_step,
            params_hash: of.params_hash.to_owned(),
            model: on_host(of.model),
            layout: of.layout.clone(),
            optimizer: of.optimizer.into_owned(),
        }
    }

    pub(crate) fn borrow(&self) -> Snapshot<'_> {
        Snapshot {
            run_id: &self.run_id,
            next_step: self.next_step,
            params_hash: &self.params_hash,
            model: &self.model,
            layout: &self.layout,
            optimizer: Cow::Borrowed(&self.optimizer),
        }
    }
}

/// Shares the tensors of a model that is on the host already; brings what is trained there from a GPU, whose memory is
/// scarcer.
fn on_host(model: &StableDiffusion) -> StableDiffusion {
    let (mut model, host) = (model.clone(), cpu_device());
    if model.device() != host {
        model.unet = model.unet.to_device(&host);
        model.text_encoder = model.text_encoder.to_device(&host);
    }
    model
}

/// How a checkpoint is written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// From a copy, while training goes on.
    Copy,
    /// At once, while training waits; `why` is empty where the config says so.
    Wait { why: String },
}

/// What a save came to.
pub(crate) type Written = Result<PathBuf, SaveError>;

/// The save in flight, if there is one.
pub(crate) struct Background {
    mode: BackgroundSave,
    /// True while a save is in flight.
    in_flight: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Begins with none. `in_flight` tells others whether there is one.
    pub(crate) fn new(mode: BackgroundSave, in_flight: watch::Sender<bool>) -> Self {
        Self { mode, in_flight, thread: None }
    }

    /// Waits for the save in flight.
    pub(crate) fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it catches its panics itself
        }
    }

    /// Says whether a copy is to be made.
    pub(crate) fn choice(&self, snapshot: &Snapshot) -> Choice {
        match self.mode {
            BackgroundSave::On => Choice::Copy,
            BackgroundSave::Off => Choice::Wait { why: String::new() },
            BackgroundSave::Auto => match no_room(copy_bytes(snapshot), free_bytes()) {
                None => Choice::Copy,
                Some(why) => Choice::Wait { why },
            },
        }
    }

    /// Writes a copy on a thread of its own, after the save before it, and hands the outcome to `report`.
    pub(crate) fn start(
        &mut self,
        copy: OwnedSnapshot,
        run_folder: &Path,
        run: serde_json::Value,
        span: Span,
        report: impl FnOnce(Written) + Send + 'static,
    ) {
        self.finish();
        let (run_folder, in_flight) = (run_folder.to_owned(), self.in_flight.clone());
        in_flight.send_replace(true);
        let work = move || {
            let written = span.in_scope(|| {
                let write = AssertUnwindSafe(|| save_checkpoint(&copy.borrow(), &run_folder, run));
                catch_unwind(write).unwrap_or(Err(SaveError::Panicked))
            });
            drop((copy, span));
            report(written);
            in_flight.send_replace(false);
        };
        let thread = std::thread::Builder::new().name("checkpoint-save".to_owned());
        self.thread = Some(thread.spawn(work).expect("the system has a thread to spare"));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Resolves when no save is in flight: a worker that is asked to leave finishes what it writes.
pub(crate) async fn settled(mut in_flight: watch::Receiver<bool>) {
    // Fails when the device thread has ended; then there is nothing to wait for.
    let _ = in_flight.wait_for(|in_flight| !in_flight).await;
}

/// Bytes that a copy takes: the optimizer's two buffers, and the parameters that the next step replaces.
fn copy_bytes(snapshot: &Snapshot) -> u64 {
    let optimizer = snapshot.optimizer.exp_avg.len() + snapshot.optimizer.exp_avg_sq.len();
    4 * (optimizer + snapshot.layout.total) as u64
}

/// Bytes that can be taken without swapping, of the machine and of the container if it has a limit. None: unknown here.
fn free_bytes() -> Option<u64> {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()));
    let machine = Some(system.available_memory()).filter(|bytes| *bytes > 0)?;
    let container = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// Says why there is no room for a copy; none when there is.
fn no_room(copy: u64, free: Option<u64>) -> Option<String> {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match free {
        Some(free) if free >= copy + MARGIN_BYTES => None,
        Some(free) => {
            Some(format!("a copy of the state takes {:.1} GB, and {:.1} GB are free", gigabytes(copy), gigabytes(free)))
        }
        None => Some("how much memory is free is not known here".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_made_where_there_is_room_for_it() {
        let copy = 12_000_000_000;
        assert_eq!(no_room(copy, Some(copy + MARGIN_BYTES)), None);
        let why = no_room(copy, Some(9_440_000_000)).unwrap();
        assert_eq!(why, "a copy of the state takes 12.0 GB, and 9.4 GB are free");
        assert!(no_room(0, None).is_some());
    }

    #[tokio::test]
    async fn a_worker_that_is_to_leave_waits_for_the_save_in_flight() {
        let (in_flight, watched) = watch::channel(true);
        let leaving = tokio::spawn(settled(watched.clone()));
        tokio::task::yield_now().await;
        assert!(!leaving.is_finished());
        in_flight.send_replace(false);
        leaving.await.unwrap();
        drop(in_flight);
        settled(watched).await; // the device thread is gone
    }

    #[test]
    fn this_machine_says_how_much_is_free() {
        assert!(free_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
