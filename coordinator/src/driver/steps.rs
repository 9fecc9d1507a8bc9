//! A planned step on its way to the ledger: matches what the workers report with what was planned. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use ballast_common::schedule::{SlotPlan, StepPlan};
use ballast_proto::v1;

use crate::ledger::LossRow;
use crate::membership::WorkerId;

/// A step that is planned and not yet committed.
pub(super) struct PlannedStep {
    pub(super) plan: StepPlan,
    pub(super) epoch: u64,
    pub(super) span: tracing::Span,
    /// Losses by worker, as they were reported with the votes.
    pub(super) losses: BTreeMap<WorkerId, Vec<v1::OccurrenceLoss>>,
    pub(super) gradient_norm: f64,
}

/// Puts the workers' losses in the order of positions and checks that they are the plan's, each exactly once.
pub(super) fn merge_losses(
    plan: &StepPlan,
    by_worker: &BTreeMap<WorkerId, Vec<v1::OccurrenceLoss>>,
) -> Result<Vec<v1::OccurrenceLoss>, String> {
    let mut losses: Vec<_> = by_worker.values().flatten().cloned().collect();
    losses.sort_by_key(|loss| loss.position);
    let mut expected: Vec<_> =
        plan.slots.iter().flat_map(|slot| &slot.occurrences).map(|occurrence| occurrence.position).collect();
    expected.sort_unstable();
    let found: Vec<_> = losses.iter().map(|loss| loss.position).collect();
    if found != expected {
        return Err(format!("the workers reported positions {found:?} of a step that has {expected:?}"));
    }
    Ok(losses)
}

/// Puts the losses, which `merge_losses` has matched with the plan, into the ledger's form.
pub(super) fn loss_rows(plan: &StepPlan, losses: &[v1::OccurrenceLoss]) -> Vec<LossRow> {
    let occurrences = plan.slots.iter().flat_map(|slot| &slot.occurrences);
    let uses: HashMap<u64, (u32, u32)> =
        occurrences.map(|occurrence| (occurrence.position, (occurrence.sample, occurrence.copy))).collect();
    let row = |loss: &v1::OccurrenceLoss| {
        let (sample, copy) = uses[&loss.position];
        LossRow {
            position: loss.position,
            sample,
            copy,
            timestep: loss.timestep,
            loss: loss.loss,
            weight: loss.weight,
            skipped: (!loss.skipped.is_empty()).then(|| loss.skipped.clone()),
        }
    };
    losses.iter().map(row).collect()
}

/// Pixels of the micro-batches whose losses these are: what computing them costs.
pub(super) fn pixels_of(plan: &StepPlan, losses: &[v1::OccurrenceLoss]) -> u64 {
    let positions: HashSet<u64> = losses.iter().map(|loss| loss.position).collect();
    let is_own = |slot: &&SlotPlan| slot.occurrences.first().is_some_and(|first| positions.contains(&first.position));
    plan.slots.iter().filter(is_own).map(|slot| u64::from(slot.bucket.width) * u64::from(slot.bucket.height)).sum()
}

/// Mean over the pictures that were used, unweighted.
pub(super) fn mean_loss(losses: &[v1::OccurrenceLoss]) -> f64 {
    let used: Vec<_> = losses.iter().filter(|loss| loss.skipped.is_empty()).map(|loss| f64::from(loss.loss)).collect();
    if used.is_empty() { 0.0 } else { used.iter().sum::<f64>() / used.len() as f64 }
}

#[cfg(test)]
mod tests {
    use ballast_common::dataset::Bucket;
    use ballast_common::schedule::Occurrence;

    use super::*;

    fn loss(position: u64, skipped: &str) -> v1::OccurrenceLoss {
        v1::OccurrenceLoss { position, loss: position as f32, weight: 0.5, timestep: 3, skipped: skipped.to_owned() }
    }

    fn plan() -> StepPlan {
        let occurrence = |position| Occurrence { sample: position as u32 + 10, copy: 1, position };
        let slot = |slot, positions: [u64; 2]| SlotPlan {
            slot,
            bucket: Bucket { width: 64, height: 64 },
            occurrences: positions.into_iter().map(occurrence).collect(),
        };
        StepPlan { step: 0, first_position: 4, slots: vec![slot(0, [4, 5]), slot(1, [6, 7])] }
    }

    #[test]
    fn losses_of_all_workers_come_in_the_order_of_positions() {
        let by_worker =
            BTreeMap::from([(2, vec![loss(6, ""), loss(7, "truncated")]), (9, vec![loss(5, ""), loss(4, "")])]);
        let losses = merge_losses(&plan(), &by_worker).unwrap();
        let rows = loss_rows(&plan(), &losses);
        let found: Vec<_> = rows.iter().map(|row| (row.position, row.sample, row.skipped.as_deref())).collect();
        assert_eq!(found, [(4, 14, None), (5, 15, None), (6, 16, None), (7, 17, Some("truncated"))]);
        assert_eq!(mean_loss(&losses), 5.0);
        assert_eq!([pixels_of(&plan(), &by_worker[&2]), pixels_of(&plan(), &losses)], [64 * 64, 2 * 64 * 64]);
    }

    #[test]
    fn a_position_too_many_or_too_few_is_refused() {
        for positions in [vec![4, 5, 6], vec![4, 5, 6, 7, 7], vec![4, 5, 6, 8]] {
            let by_worker = BTreeMap::from([(1, positions.into_iter().map(|position| loss(position, "")).collect())]);
            let error = merge_losses(&plan(), &by_worker).unwrap_err();
            assert!(error.contains("has [4, 5, 6, 7]"), "{error}");
        }
    }
}
