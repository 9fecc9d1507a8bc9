//! Plans of steps: from the schedule to the workers.

use std::collections::BTreeMap;

use ballast_proto::v1::session_response::Message as ToWorker;

use super::Driver;
use super::steps::PlannedStep;
use crate::error::RunError;
use crate::membership::WorkerId;
use crate::wire;

impl Driver {
    pub(super) async fn plan(&mut self, generation: u64, step: u64, workers: &[WorkerId]) -> Result<(), RunError> {
        let (epoch, step_in_epoch) = self.run_schedule.locate(step).expect("steps are planned up to the last");
        let span = tracing::info_span!(parent: None, "step", step = step as i64, epoch = epoch as i64, generation = generation as i64);
        let plan_span = tracing::info_span!(parent: &span, "plan");
        let (schedule, is_new) = self.schedules.get(epoch).await;
        let _entered = plan_span.enter();
        if is_new {
            let first_step = step - step_in_epoch;
            self.ledger.record_epoch(epoch, &schedule.hash(), schedule.occurrences(), first_step, schedule.steps())?;
            tracing::info!(epoch, schedule_hash = schedule.hash(), "epoch scheduled");
            if self.config.data.write_schedule {
                let path = self.run_folder.join("logs").join(format!("ep{}_batch_schedule.txt", epoch));
                schedule.write_file(&self.dataset, &path).map_err(|source| RunError::File {
                    action: "write",
                    path,
                    source,
                })?;
            }
        }
        let plan = schedule.step(step_in_epoch);
        let traceparent = ballast_proto::current_traceparent(&span);
        let context = wire::PlanContext {
            config: &self.config,
            dataset: &self.dataset,
            generation,
            step,
            epoch,
            total_steps: self.run_schedule.steps(),
            traceparent: &traceparent,
            slot_counts: &self.slot_counts,
        };
        let plans: Vec<_> = (0..workers.len() as u32).map(|rank| context.plan_for(&plan, rank)).collect();
        for (worker, plan) in workers.iter().zip(plans) {
            self.send(*worker, wire::response(ToWorker::Plan(plan)));
        }
        drop(_entered);
        let planned = PlannedStep { plan, epoch, span, losses: BTreeMap::new(), gradient_norm: 0.0 };
        self.planned.insert(step, planned);
        Ok(())
    }
}
