//! Commits: from the votes to the ledger.

use tokio::time::Instant;

use super::Driver;
use super::steps::{loss_rows, mean_loss, merge_losses};
use crate::error::RunError;
use crate::events::RunEvent;
use crate::ledger::Commit;
use crate::wire;

impl Driver {
    /// Writes a step to the ledger. When this returns, the step counts.
    pub(super) fn commit(&mut self, step: u64, generation: u64, gradient_hash: &str) -> Result<(), RunError> {
        let planned = self.planned.get(&step).expect("a step that was voted on was planned");
        let span = tracing::info_span!(parent: &planned.span, "commit");
        let _entered = span.enter();
        let losses = merge_losses(&planned.plan, &planned.losses).map_err(|reason| self.failed(&reason))?;
        let rows = loss_rows(&planned.plan, &losses);
        let mean = mean_loss(&losses);
        let commit = Commit {
            step,
            epoch: planned.epoch,
            first_position: planned.plan.first_position,
            positions: rows.len() as u64,
            generation,
            gradient_hash: wire::bytes_of_hex(gradient_hash)
                .ok_or_else(|| self.failed("a gradient hash is not hexadecimal"))?,
            gradient_norm: planned.gradient_norm,
            losses: rows,
        };
        let ledger = &mut self.ledger;
        tokio::task::block_in_place(|| ledger.commit(&commit))?;
        drop(_entered);
        self.report_step(&commit, mean);
        self.consider_speeds();
        Ok(())
    }

    fn report_step(&mut self, commit: &Commit, loss: f64) {
        for row in commit.losses.iter().filter(|row| row.skipped.is_some()) {
            let path = self.dataset.samples[row.sample as usize].path.clone();
            let reason = row.skipped.clone().unwrap_or_default();
            if self.skipped.insert(path.clone()) {
                tracing::warn!(path, reason, "a picture could not be used and is skipped");
                self.emit(RunEvent::Skipped { path, reason });
            }
        }
        let (epoch, step_in_epoch) = self.run_schedule.locate(commit.step).expect("it was planned");
        let now = Instant::now();
        let duration = now - std::mem::replace(&mut self.last_step_at, now);
        let total_steps = self.run_schedule.steps();
        let factor = crate::lr_schedule::lr_factor(&self.config.lr_schedule, commit.step, total_steps);
        let unet_lr = self.config.optimizer.lr * factor;
        tracing::debug!(step = commit.step, loss, gradient_norm = commit.gradient_norm, "step committed");
        self.emit(RunEvent::Stepped {
            step: commit.step,
            stop_step: self.stop_step,
            epoch,
            epochs: self.run_schedule.epochs(),
            step_in_epoch,
            steps_in_epoch: self.run_schedule.steps_in(epoch),
            loss,
            images: commit.positions,
            unet_lr,
            gradient_norm: commit.gradient_norm,
            duration,
        });
    }
}
