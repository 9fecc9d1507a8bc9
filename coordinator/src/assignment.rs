//! Who computes which slot. Each rank has a contiguous range, so that it adds up whole subtrees of the slot tree by itself; how long
//! the ranges are changes the time a step takes, never its bits.

/// A share-out must be faster than the present one by this factor, or everything stays: small differences come and go.
const WORTH_CHANGING: f64 = 0.9;

/// Returns the rank of each slot, for ranges of these lengths.
pub(crate) fn slot_ranks(counts: &[u32]) -> Vec<u32> {
    let ranks = (0u32..).zip(counts);
    ranks.flat_map(|(rank, count)| std::iter::repeat_n(rank, *count as usize)).collect()
}

/// Shares the slots of a step among ranks of unknown speed: counts differ by at most one.
///
/// # Panics
/// When `world_size` is 0.
pub(crate) fn even_counts(slots: u32, world_size: u32) -> Vec<u32> {
    assert!(world_size > 0, "a step needs at least one worker");
    let (slots, world_size) = (u64::from(slots), u64::from(world_size));
    let first_slot = |rank: u64| (rank * slots).div_ceil(world_size);
    (0..world_size).map(|rank| (first_slot(rank + 1) - first_slot(rank)) as u32).collect()
}

/// Shares the slots anew, if that makes a step clearly faster: `seconds` is what a slot takes on each rank, `counts` what the
/// ranks have now.
pub(crate) fn rebalanced(counts: &[u32], seconds: &[f64]) -> Option<Vec<u32>> {
    let is_measured = seconds.len() == counts.len() && seconds.iter().all(|second| second.is_finite() && *second > 0.0);
    if !is_measured || counts.contains(&0) {
        return None;
    }
    let fair = fair_counts(counts.iter().sum(), seconds);
    (slowest(&fair, seconds) < slowest(counts, seconds) * WORTH_CHANGING).then_some(fair)
}

/// Shares the slots so that the slowest rank is done as early as possible. Nobody gets none: it would still have to wait for
/// the sum, and its speed could not be measured any more.
fn fair_counts(slots: u32, seconds: &[f64]) -> Vec<u32> {
    let mut counts = vec![1; seconds.len()];
    for _ in seconds.len() as u32..slots {
        let done_at = |rank: &usize| f64::from(counts[*rank] + 1) * seconds[*rank];
        let next = (0..counts.len()).min_by(|one, other| done_at(one).total_cmp(&done_at(other)));
        counts[next.expect("there is a rank")] += 1;
    }
    counts
}

/// How long a step takes: as long as its slowest rank.
fn slowest(counts: &[u32], seconds: &[f64]) -> f64 {
    counts.iter().zip(seconds).map(|(count, seconds)| f64::from(*count) * seconds).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even_ranks(slots: u32, world_size: u32) -> Vec<u32> {
        slot_ranks(&even_counts(slots, world_size))
    }

    #[test]
    fn ranges_are_contiguous_complete_and_even() {
        for slots in 1..40 {
            for world_size in 1..12 {
                let ranks = even_ranks(slots, world_size);
                assert_eq!(ranks.len(), slots as usize);
                assert!(ranks.is_sorted());
                let counts = even_counts(slots, world_size);
                assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{slots} {world_size}");
            }
        }
    }

    #[test]
    fn a_power_of_two_is_split_on_the_tree() {
        assert_eq!(even_ranks(8, 2), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(even_ranks(4, 3), [0, 0, 1, 2]);
    }

    #[test]
    fn slow_ranks_get_fewer_slots_and_never_none() {
        assert_eq!(rebalanced(&[4, 4], &[1.0, 3.0]), Some(vec![6, 2]));
        assert_eq!(rebalanced(&[2, 2, 2, 2], &[1.0, 1.0, 1.0, 50.0]), Some(vec![3, 2, 2, 1]));
        assert_eq!(rebalanced(&[6, 2], &[1.0, 1.0]), Some(vec![4, 4]), "who recovers gets its slots back");
    }

    #[test]
    fn what_is_as_good_as_before_stays() {
        // Even speeds, noise, too few slots to move, and speeds that are not known.
        for (counts, seconds) in [
            (vec![4, 4], vec![1.0, 1.0]),
            (vec![4, 4], vec![1.0, 1.3]),
            (vec![1, 1], vec![1.0, 9.0]),
            (vec![2, 2], vec![1.0, 1.4]),
            (vec![4, 4], vec![1.0, f64::NAN]),
            (vec![4, 4], vec![1.0, 0.0]),
            (vec![4, 4], vec![1.0]),
            (vec![1, 0], vec![1.0, 1.0]),
        ] {
            assert_eq!(rebalanced(&counts, &seconds), None, "{counts:?} {seconds:?}");
        }
    }

    #[test]
    fn the_choice_settles() {
        for (slots, seconds) in [(8, [1.0, 2.0, 3.0]), (16, [0.7, 0.9, 4.1]), (5, [1.0, 1.1, 1.2])] {
            let mut counts = even_counts(slots, 3);
            let changes = std::iter::from_fn(|| {
                counts = rebalanced(&counts, &seconds)?;
                Some(())
            });
            assert!(changes.take(3).count() <= 1, "{slots} {seconds:?}");
        }
    }
}
