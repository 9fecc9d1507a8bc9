//! What a worker relies on in a plan. Checked once, when it arrives; everything behind it may then assert.

use ballast_common::config::RunConfig;
use ballast_proto::v1::{MicroBatch, Plan};

/// Pixels per latent, and more: every UNet halves its latents a few times.
const SIDE_MULTIPLE: u32 = 8;

/// Says what is wrong with a plan for the worker of a rank, if anything is.
pub(crate) fn problem(plan: &Plan, rank: u32, config: &RunConfig) -> Option<String> {
    let filled = plan.filled_slots as usize;
    let Some(slot_ranks) = plan.slot_ranks.get(..filled) else {
        return Some(format!("it fills {filled} of {} slots", plan.slot_ranks.len()));
    };
    let owned: Vec<u32> = (0..filled as u32).filter(|slot| slot_ranks[*slot as usize] == rank).collect();
    let given: Vec<u32> = plan.micro_batches.iter().map(|micro_batch| micro_batch.slot).collect();
    if owned != given {
        return Some(format!("it gives slots {given:?} to rank {rank}, which owns {owned:?}"));
    }
    let is_sound = |micro_batch: &MicroBatch| {
        let MicroBatch { width, height, occurrences, .. } = micro_batch;
        let is_side = |side: u32| {
            (1..=config.data.resolution.saturating_mul(64)).contains(&side) && side.is_multiple_of(SIDE_MULTIPLE)
        };
        let size = config.step.micro_batch_size as usize;
        is_side(*width) && is_side(*height) && (1..=size).contains(&occurrences.len())
    };
    let unsound = plan.micro_batches.iter().find(|micro_batch| !is_sound(micro_batch))?;
    Some(format!(
        "slot {} has {} picture(s) of {}x{}",
        unsound.slot,
        unsound.occurrences.len(),
        unsound.width,
        unsound.height
    ))
}

#[cfg(test)]
mod tests {
    use ballast_proto::v1::Occurrence;

    use super::*;

    fn plan() -> Plan {
        let micro_batch =
            |slot| MicroBatch { slot, width: 64, height: 128, occurrences: vec![Occurrence::default(); 2] };
        Plan {
            slot_ranks: vec![0, 1, 1, 2],
            filled_slots: 3,
            micro_batches: vec![micro_batch(1), micro_batch(2)],
            ..Plan::default()
        }
    }

    fn changed(change: impl Fn(&mut Plan)) -> Option<String> {
        let mut plan = plan();
        change(&mut plan);
        problem(&plan, 1, &RunConfig::default())
    }

    #[test]
    fn a_sound_plan_has_no_problem() {
        assert_eq!(changed(|_| {}), None);
    }

    #[test]
    fn everything_else_is_named() {
        assert!(changed(|plan| plan.filled_slots = 5).unwrap().contains("5 of 4"));
        assert!(changed(|plan| plan.micro_batches.truncate(1)).unwrap().contains("which owns [1, 2]"));
        assert!(changed(|plan| plan.micro_batches[0].occurrences.clear()).unwrap().contains("0 picture"));
        assert!(changed(|plan| plan.micro_batches[1].occurrences.resize_with(5, Occurrence::default)).is_some());
        assert!(changed(|plan| plan.micro_batches[0].width = 0).is_some());
        assert!(changed(|plan| plan.micro_batches[0].height = 100).is_some());
        assert!(changed(|plan| plan.micro_batches[0].height = u32::MAX - 7).is_some());
    }
}
