//! Between two steps: the state, or the finished model, is saved.

use std::path::{Path, PathBuf};

use ballast_common::config::SavePrecision;
use ballast_common::error_chain;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message;
use tracing::{Span, info_span};

use super::DeviceThread;
use crate::engine::Engine;
use crate::error::WorkerError;
use crate::save::{Choice, OwnedSnapshot, SaveError, Written, save_checkpoint, save_final};

impl<E: Engine> DeviceThread<E> {
    /// Answers with the hash of the parameters; the worker that writes does so when the files are durable.
    ///
    /// A save after which more steps follow is written from a copy where there is room for one, and its failure is no reason
    /// to end. The last one of a run has to succeed.
    pub(super) fn save(&mut self, save: &v1::Save) -> Result<(), WorkerError> {
        let next_step = self.trainer.next_step();
        if save.next_step != next_step {
            let problem =
                format!("it wants the state after {} steps saved, this worker has made {next_step}", save.next_step);
            return Err(WorkerError::Protocol { problem });
        }
        // Of the step's trace, though it may end long after the step.
        let span = info_span!("checkpoint.save", step = next_step as i64);
        ballast_proto::set_parent(&span, &save.traceparent);
        let params_hash = span.in_scope(|| self.trainer.params_hash());
        let answer = v1::Saved {
            kind: save.kind,
            next_step,
            params_hash: params_hash.clone(),
            request: save.request,
            ..v1::Saved::default()
        };
        if !save.write {
            let _ = self.answer(Message::Saved(answer));
        } else if save.background {
            self.write_checkpoint(save, &params_hash, answer, span)?;
        } else {
            self.background.finish();
            let paths = span.in_scope(|| self.write_last(save, &params_hash))?;
            let _ = self.answer(Message::Saved(v1::Saved { paths: texts(&paths), ..answer }));
        }
        Ok(())
    }

    /// Writes a checkpoint of a run that goes on.
    fn write_checkpoint(
        &mut self,
        save: &v1::Save,
        params_hash: &str,
        answer: v1::Saved,
        span: Span,
    ) -> Result<(), WorkerError> {
        let (run, run_folder) = (run_state(save)?, Path::new(&save.run_folder));
        let snapshot = self.trainer.snapshot(&self.desk.run_id, params_hash);
        match self.background.choice(&snapshot) {
            Choice::Copy => {
                let copy = span.in_scope(|| info_span!("snapshot").in_scope(|| OwnedSnapshot::copy(snapshot)));
                let answers = self.desk.answers.clone();
                self.background.start(copy, run_folder, run, span, move |written| {
                    let message = Some(Message::Saved(completed(answer, written)));
                    let _ = answers.blocking_send(v1::SessionRequest { message }); // the session may be gone
                });
            }
            Choice::Wait { why } => {
                let written = span.in_scope(|| save_checkpoint(&snapshot, run_folder, run));
                let _ = self.answer(Message::Saved(v1::Saved { note: why, ..completed(answer, written) }));
            }
        }
        Ok(())
    }

    /// Writes what is left when a run ends.
    fn write_last(&self, save: &v1::Save, params_hash: &str) -> Result<Vec<PathBuf>, WorkerError> {
        let snapshot = self.trainer.snapshot(&self.desk.run_id, params_hash);
        let run_folder = Path::new(&save.run_folder);
        match save.kind() {
            v1::save::Kind::Checkpoint => Ok(vec![save_checkpoint(&snapshot, run_folder, run_state(save)?)?]),
            v1::save::Kind::Final => {
                let precision = match self.desk.config.precision.save {
                    SavePrecision::Fp32 => ballast_model::SavePrecision::Fp32,
                    SavePrecision::Fp16 => ballast_model::SavePrecision::Fp16,
                    SavePrecision::Bf16 => ballast_model::SavePrecision::Bf16,
                };
                Ok(save_final(&snapshot, run_folder, precision)?.into())
            }
            v1::save::Kind::Unspecified => {
                Err(WorkerError::Protocol { problem: "it does not say what to save".to_owned() })
            }
        }
    }
}

/// Returns what the coordinator wants to find in `state.json`.
fn run_state(save: &v1::Save) -> Result<serde_json::Value, WorkerError> {
    serde_json::from_str(&save.run_state_json)
        .map_err(|error| WorkerError::Protocol { problem: format!("its run state is no JSON: {error}") })
}

/// Adds to an answer what became of the files.
fn completed(answer: v1::Saved, written: Written) -> v1::Saved {
    match written {
        Ok(path) => v1::Saved { paths: texts(&[path]), ..answer },
        Err(error) => {
            tracing::warn!(error = error_chain(&error), "the checkpoint could not be written; training goes on");
            let hint = SaveError::hint(&error).unwrap_or_default();
            v1::Saved { error: error_chain(&error), hint, ..answer }
        }
    }
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}
