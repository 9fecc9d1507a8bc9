//! Who computes which slot.

/// Assigns the slots of a step to ranks: contiguous ranges whose sizes differ by at most one, earlier ranks first.
///
/// Returns the rank of each slot. Contiguity lets a rank add up whole subtrees of the slot tree by itself.
///
/// # Panics
/// When `world_size` is 0.
pub(crate) fn slot_ranks(slots: u32, world_size: u32) -> Vec<u32> {
    assert!(world_size > 0, "a step needs at least one worker");
    let (slots, world_size) = (u64::from(slots), u64::from(world_size));
    let first_slot = |rank: u64| (rank * slots).div_ceil(world_size);
    (0..world_size).flat_map(|rank| (first_slot(rank)..first_slot(rank + 1)).map(move |_| rank as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::slot_ranks;

    #[test]
    fn ranges_are_contiguous_complete_and_even() {
        for slots in 1..40 {
            for world_size in 1..12 {
                let ranks = slot_ranks(slots, world_size);
                assert_eq!(ranks.len(), slots as usize);
                assert!(ranks.is_sorted());
                let counts: Vec<usize> =
                    (0..world_size).map(|rank| ranks.iter().filter(|r| **r == rank).count()).collect();
                assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{slots} {world_size}");
            }
        }
    }

    #[test]
    fn a_power_of_two_is_split_on_the_tree() {
        assert_eq!(slot_ranks(8, 2), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(slot_ranks(4, 3), [0, 0, 1, 2]);
    }
}
