//! Which checkpoints are kept. Pure: what is on disk, and what becomes of it, is the driver's business.

use ballast_common::config::CheckpointConfig;

/// Names the checkpoints that may go, as steps done. `checkpoints` are all there are, ascending; `epochs_done` is how many
/// epochs are whole after so many steps.
///
/// The newest `keep_last` stay. So does, for each multiple of `keep_every_steps`, the first one at or after it, and likewise
/// for epochs. By "at or after", a checkpoint that comes late (the save before it was skipped, or its writer died) takes
/// the place of the one that did not come. The first of a stretch never goes, so it is the first whenever one asks.
pub(crate) fn surplus(checkpoints: &[u64], config: &CheckpointConfig, epochs_done: impl Fn(u64) -> u64) -> Vec<u64> {
    let newest = checkpoints.len().saturating_sub(config.keep_last as usize);
    let steps_stretch = |done: u64| done.checked_div(config.keep_every_steps).unwrap_or(0);
    let epochs_stretch = |done: u64| epochs_done(done).checked_div(config.keep_every_epochs).unwrap_or(0);
    let is_milestone = |index: usize| {
        let before = |stretch: &dyn Fn(u64) -> u64| index.checked_sub(1).map_or(0, |index| stretch(checkpoints[index]));
        let stretches: [&dyn Fn(u64) -> u64; 2] = [&steps_stretch, &epochs_stretch];
        stretches.into_iter().any(|stretch| stretch(checkpoints[index]) > before(stretch))
    };
    (0..newest).filter(|index| !is_milestone(*index)).map(|index| checkpoints[index]).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn config(keep_last: u32, keep_every_steps: u64, keep_every_epochs: u64) -> CheckpointConfig {
        CheckpointConfig { keep_last, keep_every_steps, keep_every_epochs, ..CheckpointConfig::default() }
    }

    /// Epochs have ten steps.
    fn epochs_done(done: u64) -> u64 {
        done / 10
    }

    #[test]
    fn the_newest_stay() {
        assert!(surplus(&[], &config(2, 0, 0), epochs_done).is_empty());
        assert!(surplus(&[5], &config(1, 0, 0), epochs_done).is_empty());
        assert_eq!(surplus(&[5, 6, 7, 8], &config(2, 0, 0), epochs_done), [5, 6]);
    }

    #[test]
    fn the_first_at_or_after_each_multiple_stays() {
        assert_eq!(surplus(&[5, 10, 15, 20, 25, 30], &config(1, 10, 0), epochs_done), [5, 15, 25]);
        // 20 did not come; 23 stands for it.
        assert_eq!(surplus(&[5, 10, 15, 23, 25, 28], &config(1, 10, 0), epochs_done), [5, 15, 25]);
        assert_eq!(surplus(&[5, 10, 15, 20, 41, 42], &config(1, 0, 2), epochs_done), [5, 10, 15]);
        assert_eq!(surplus(&[30, 40, 50, 100], &config(1, 40, 5), epochs_done), [30]);
    }

    proptest! {
        /// Pruning after each save keeps what pruning once at the end keeps, but for the newest of each time; and never all.
        #[test]
        fn what_is_kept_for_good_does_not_depend_on_when_one_asks(
            steps in prop::collection::btree_set(1_u64..100, 1..30), last in 1_u32..4, every in 0_u64..20, epochs in 0_u64..4,
        ) {
            let config = config(last, every, epochs);
            let mut kept: Vec<u64> = Vec::new();
            for step in &steps {
                kept.push(*step);
                let gone = surplus(&kept, &config, epochs_done);
                kept.retain(|step| !gone.contains(step));
                prop_assert_eq!(kept.last(), Some(step));
            }
            let all: Vec<u64> = steps.into_iter().collect();
            let gone: BTreeSet<u64> = surplus(&all, &config, epochs_done).into_iter().collect();
            let once: Vec<u64> = all.into_iter().filter(|step| !gone.contains(step)).collect();
            prop_assert_eq!(kept, once);
        }
    }
}
