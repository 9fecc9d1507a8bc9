//! Work between steps: checkpoints, samples, the final model.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ballast_common::checkpoint;
use ballast_proto::v1;
use ballast_proto::v1::session_response::Message as ToWorker;

use super::Driver;
use crate::error::RunError;
use crate::events::RunEvent;
use crate::membership::WorkerId;
use crate::run::CHECKPOINTS_FOLDER;
use crate::run_state::Milestone;
use crate::unrecorded::CHAIN;
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
                    let mut run_state = self.run_state();
                    run_state[CHAIN] = self.core.chain().into();
                    let run_state_json = run_state.to_string();
                    ToWorker::Save(v1::Save {
                        kind: kind.into(),
                        next_step,
                        write: rank == 0,
                        run_folder: run_folder.clone(),
                        run_state_json,
                        traceparent: self.traceparent.clone(),
                        request,
                    })
                }
            };
            self.send(*worker, wire::response(message));
        }
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

    /// Deletes all but the newest `checkpoint.keep_last` checkpoints: first from the ledger, then from the disk.
    fn drop_old_checkpoints(&mut self) -> Result<(), RunError> {
        let checkpoints = self.ledger.checkpoints()?;
        let surplus = checkpoints.len().saturating_sub(self.config.checkpoint.keep_last as usize);
        for (next_step, relative, _) in &checkpoints[..surplus] {
            self.ledger.forget_checkpoint(*next_step)?;
            let path = self.run_folder.join(relative);
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(path = %path.display(), %error, "an old checkpoint could not be deleted");
            }
        }
        Ok(())
    }
}
