//! The coordinator was gone: over a new connection the thread says what it holds, or it saves because nobody came back.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ballast_common::checkpoint::{self, CHAIN};
use ballast_common::config::RunConfig;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message;
use tokio::sync::{mpsc, oneshot};

use super::DeviceThread;
use crate::engine::Engine;
use crate::error::WorkerError;
use crate::save::{SaveError, history_of, save_checkpoint};

/// The chain of a state that is none of the run's, or half another one's: no ledger has it.
pub(super) const NO_CHAIN: &str = "partial";

/// A new connection.
pub(crate) struct Attach {
    pub(crate) answers: mpsc::Sender<v1::SessionRequest>,
    pub(crate) config: Arc<RunConfig>,
}

/// Asks for a checkpoint that no coordinator has asked for.
pub(crate) struct SaveAlone {
    pub(crate) run_folder: PathBuf,
    pub(crate) run_state_json: String,
    /// Where it is; none when there is nothing to save.
    pub(crate) reply: oneshot::Sender<Option<PathBuf>>,
}

impl<E: Engine> DeviceThread<E> {
    /// Says that this worker is ready, and what for.
    pub(super) fn say_ready(&mut self) -> Result<(), WorkerError> {
        let pending = self.pending.as_ref().map(|pending| (pending.plan.step, pending.hash.clone()));
        let (pending_step, pending_hash) = pending.unwrap_or_default();
        let ready = v1::Ready {
            next_step: self.trainer.next_step(),
            params_hash: self.trainer.params_hash(),
            params_count: self.trainer.elements() as u64,
            chain: self.chain.clone(),
            pending_step,
            pending_hash,
            untrained: self
                .trainer
                .model()
                .untrained_hashes(self.desk.config.model.train_text_encoder)
                .into_iter()
                .collect(),
            data_fingerprint: self.fingerprint.finish()?,
        };
        let _ = self.answer(Message::Ready(ready));
        Ok(())
    }

    /// Takes a new connection. A vote that waits for its commit is kept: the ledger may have it.
    pub(super) fn attach(&mut self, attach: Attach) -> Result<(), WorkerError> {
        let pending = self.pending.take();
        self.end_generation();
        self.pending = pending;
        (self.desk.answers, self.desk.config) = (attach.answers, attach.config);
        self.say_ready()
    }

    /// Saves the state as a checkpoint that a coordinator finds. Several workers may be about to: one does it.
    pub(super) fn save_alone(&mut self, save: SaveAlone) -> Result<(), WorkerError> {
        self.end_generation(); // what was not committed does not count
        let next_step = self.trainer.next_step();
        if next_step == 0 || self.chain.is_empty() || self.chain == NO_CHAIN {
            tracing::info!("there is nothing to save: this worker holds no state of the run");
            let _ = save.reply.send(None);
            return Ok(());
        }
        let folder = save.run_folder.join("checkpoints");
        self.background.finish();
        let _turn = take_turn(&folder)?;
        let path = folder.join(checkpoint::folder_name(next_step));
        let mut run: serde_json::Value = serde_json::from_str(&save.run_state_json)
            .map_err(|error| WorkerError::Protocol { problem: format!("its run state is no JSON: {error}") })?;
        match checkpoint::read_state(&path) {
            Ok(state) if state.run.get(CHAIN).and_then(|chain| chain.as_str()) == Some(&self.chain) => {
                tracing::info!(next_step, path = %path.display(), "the state is saved already");
            }
            Ok(state) if history_of(&state.run) >= history_of(&run) => {
                let problem = "it holds another state of these steps, which is left as it is".to_owned();
                return Err(WorkerError::CheckpointContent { path, problem });
            }
            // None, or one that the run has gone back from since.
            _ => {
                run[CHAIN] = self.chain.as_str().into();
                let params_hash = self.trainer.params_hash();
                let snapshot = self.trainer.snapshot(&self.desk.run_id, &params_hash);
                save_checkpoint(&snapshot, &save.run_folder, run)?;
                tracing::info!(next_step, path = %path.display(), "saved the state");
            }
        }
        // Fails when the session did not wait for it.
        let _ = save.reply.send(Some(path));
        Ok(())
    }
}

/// Waits until no other worker saves into this folder. Where the file system knows no locks, nobody waits.
fn take_turn(folder: &Path) -> Result<Option<File>, SaveError> {
    // Not the folders above it: a run folder that is gone is not made again.
    match std::fs::create_dir(folder) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            return Err(SaveError::Write { path: folder.to_owned(), source });
        }
        _ => {}
    }
    let file = File::options().write(true).create(true).truncate(false).open(folder.join(".saving.lock"));
    Ok(file.ok().and_then(|file| file.lock().ok().map(|()| file)))
}
