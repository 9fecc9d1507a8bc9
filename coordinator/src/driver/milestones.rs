//! Work between steps: checkpoints, samples, the final model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ballast_common::checkpoint::{self, CHAIN};
use ballast_proto::v1;
use ballast_proto::v1::session_response::Message as ToWorker;

use super::Driver;
use crate::checkpoints;
use crate::error::RunError;
use crate::events::RunEvent;
use crate::membership::WorkerId;
use crate::retention;
use crate::run::CHECKPOINTS_FOLDER;
use crate::run_state::{Event, Milestone};
use crate::wire;

/// What the workers reported of a milestone so far.
#[derive(Default)]
pub(super) struct MilestoneReport {
    /// Number of the request that is answered; answers to earlier ones do not count.
    pub(super) request: u64,
    pub(super) params_hash: String,
    pub(super) paths: BTreeSet<PathBuf>,
    pub(super) error: Option<String>,
}

impl Driver {
    pub(super) fn start_milestone(&mut self, milestone: Milestone, next_step: u64, request: u64, workers: &[WorkerId]) {
        self.last_save_at = tokio::time::Instant::now();
        let mut run_state = self.run_state();
        run_state[CHAIN] = self.core.chain().into();
        let run_state_json = run_state.to_string();
        let background = milestone == Milestone::Checkpoint && !self.core.is_closing();
        self.reports.insert((milestone, next_step), MilestoneReport { request, ..MilestoneReport::default() });
        let run_folder = wire::path_text(&self.run_folder);
        let world_size = workers.len();
        for (rank, worker) in workers.iter().enumerate() {
            let message = match milestone {
                Milestone::Samples => {
                    let prompts = (0..self.config.sample.prompts.len()).filter(|prompt| prompt % world_size == rank);
                    let folder = wire::path_text(&self.run_folder.join("samples"));
                    ToWorker::Sample(v1::Sample {
                        next_step,
                        prompts: prompts.map(|prompt| prompt as u32).collect(),
                        folder,
                        request,
                    })
                }
                Milestone::Checkpoint | Milestone::Final => {
                    let kind =
                        if milestone == Milestone::Final { v1::save::Kind::Final } else { v1::save::Kind::Checkpoint };
                    ToWorker::Save(v1::Save {
                        kind: kind.into(),
                        next_step,
                        write: rank == 0,
                        run_folder: run_folder.clone(),
                        run_state_json: run_state_json.clone(),
                        traceparent: self.traceparent.clone(),
                        request,
                        background,
                    })
                }
            };
            self.send(*worker, wire::response(message));
        }
    }

    /// Asks the core for a checkpoint when `checkpoint.every_minutes` are over.
    pub(super) fn look_at_the_clock(&mut self) {
        let every = std::time::Duration::from_secs_f64(self.config.checkpoint.every_minutes * 60.0);
        if !every.is_zero() && self.last_save_at.elapsed() >= every {
            self.last_save_at = tokio::time::Instant::now();
            let actions = self.core.on(Event::CheckpointDue, self.started_at.elapsed());
            debug_assert!(actions.is_empty(), "it is made after the step in hand");
        }
    }

    /// Takes in a worker's answer to `Save`.
    pub(super) fn saved(&mut self, worker: WorkerId, saved: v1::Saved) -> Option<Event> {
        let milestone = match saved.kind() {
            v1::save::Kind::Checkpoint => Milestone::Checkpoint,
            v1::save::Kind::Final => Milestone::Final,
            v1::save::Kind::Unspecified => return None,
        };
        let v1::Saved { next_step, params_hash, paths, request, error, hint, note, .. } = saved;
        let report = self.report(milestone, next_step, request)?;
        if !error.is_empty() {
            let hint = (!hint.is_empty()).then_some(hint);
            tracing::warn!(
                steps = next_step,
                worker,
                error,
                hint,
                "a checkpoint could not be saved; training goes on, and the next one is tried"
            );
            self.reports.remove(&(milestone, next_step));
            return Some(Event::SaveFailed { worker, milestone, next_step, request });
        }
        report.params_hash = params_hash.clone();
        report.paths.extend(paths.into_iter().map(PathBuf::from));
        if !note.is_empty() && !std::mem::replace(&mut self.has_noted_foreground_save, true) {
            tracing::warn!(worker, why = note, "training waits while checkpoints are written");
        }
        Some(Event::Done { worker, milestone, next_step, request, params_hash: Some(params_hash) })
    }

    /// Returns the report of a request, unless it was asked again since.
    pub(super) fn report(
        &mut self,
        milestone: Milestone,
        next_step: u64,
        request: u64,
    ) -> Option<&mut MilestoneReport> {
        self.reports.get_mut(&(milestone, next_step)).filter(|report| report.request == request)
    }

    pub(super) fn finish_milestone(&mut self, milestone: Milestone, next_step: u64) -> Result<(), RunError> {
        let report = self.reports.remove(&(milestone, next_step)).unwrap_or_default();
        match milestone {
            Milestone::Samples => {
                if let Some(error) = &report.error {
                    tracing::warn!(error, "samples could not be drawn; training goes on");
                }
                if !report.paths.is_empty() || report.error.is_some() {
                    let paths = report.paths.into_iter().collect();
                    self.emit(RunEvent::SamplesDrawn { next_step, paths, error: report.error });
                }
            }
            Milestone::Checkpoint => {
                let relative = format!("{CHECKPOINTS_FOLDER}/{}", checkpoint::folder_name(next_step));
                let path = self.run_folder.join(&relative);
                if let Err(problem) = is_there(&path, next_step, &report.params_hash) {
                    return self.checkpoint_is_not_there(&path, problem);
                }
                self.ledger.record_checkpoint(next_step, &relative, &report.params_hash)?;
                self.drop_old_checkpoints()?;
                self.last_checkpoint = Some(path.clone());
                self.emit(RunEvent::CheckpointSaved { next_step, path });
            }
            Milestone::Final => {
                let folder = self.run_folder.join("final");
                self.emit(RunEvent::FinalSaved { folder, file: self.run_folder.join("final.safetensors") });
            }
        }
        Ok(())
    }

    /// A worker says that it has written a checkpoint, and this machine does not see it: it does not count.
    fn checkpoint_is_not_there(&self, path: &Path, problem: String) -> Result<(), RunError> {
        const HINT: &str = "the run folder must be the same folder on the coordinator's machine and on the workers'";
        if self.core.is_closing() {
            let reason = format!("the checkpoint {} was not found: {problem}", path.display());
            return Err(RunError::Failed { reason, hint: Some(HINT.to_owned()) });
        }
        tracing::warn!(path = %path.display(), problem, hint = HINT, "a checkpoint was written and not found; it does not count");
        Ok(())
    }

    /// Deletes the checkpoints that the config does not keep: first from the ledger, then under their names, then from the
    /// disk. One that is being read stays until the next time. Nothing goes unless one of those that stay is there.
    fn drop_old_checkpoints(&mut self) -> Result<(), RunError> {
        let all = self.ledger.checkpoints()?;
        let steps: Vec<u64> = all.iter().map(|(step, ..)| *step).collect();
        let schedule = &self.run_schedule;
        let epochs_done = |done| schedule.locate(done).map_or(schedule.epochs(), |(epoch, _)| epoch);
        let surplus = retention::surplus(&steps, &self.config.checkpoint, epochs_done);
        let (old, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(step, ..)| surplus.contains(step));
        if old.is_empty() {
            return Ok(());
        }
        let is_whole = |(step, relative, hash): &(u64, String, String)| {
            is_there(&self.run_folder.join(relative), *step, hash).is_ok()
        };
        if !kept.iter().any(is_whole) {
            tracing::warn!("no checkpoint that is to be kept is whole on disk: older ones are not deleted");
            return Ok(());
        }
        // Whoever has not loaded it yet may still be about to open it.
        let is_starting = self.sessions.values().any(|session| session.params_count == 0);
        for (next_step, relative, _) in old {
            let path = self.run_folder.join(&relative);
            let is_start = is_starting && self.checkpoint.as_deref() == Some(&path);
            if is_start || ballast_common::checkpoint::is_held(&path) {
                tracing::debug!(checkpoint = relative, "an old checkpoint is being read and stays for now");
                continue;
            }
            self.ledger.forget_checkpoint(next_step)?;
            match checkpoints::delete(&path) {
                Ok(deleted) => {
                    tracing::info!(checkpoint = relative, "an old checkpoint is deleted");
                    // Gigabytes take a while, and nobody waits for it.
                    tokio::task::spawn_blocking(move || checkpoints::delete_for_good(&deleted));
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "an old checkpoint could not be deleted");
                }
            }
        }
        Ok(())
    }
}

/// Says whether a checkpoint is on disk as it was reported; all but its bytes are looked at.
fn is_there(path: &Path, next_step: u64, params_hash: &str) -> Result<(), String> {
    match checkpoint::glance(path) {
        Ok(state) if (state.next_step, state.params_hash.as_str()) == (next_step, params_hash) => Ok(()),
        Ok(_) => Err("its state.json is of another state".to_owned()),
        Err(error) => Err(ballast_common::error_chain(&error)),
    }
}
