//! Who meets whom: rounds in which every rank has at most one partner, so that a wait is always for somebody in particular.

/// Returns the partners of a rank, round by round; none where it has to sit one out. Every pair meets once
/// (the circle method for round-robin tournaments).
pub(crate) fn partners(rank: u32, world_size: u32) -> Vec<Option<u32>> {
    // The last of an even number sits in the middle; with an odd number nobody does, and its partner sits out.
    let seats = world_size.next_multiple_of(2);
    let round_table = seats - 1;
    let partner = |round: u32| {
        if rank == round_table {
            // i + i = round on the circle.
            return if round.is_multiple_of(2) { round / 2 } else { (round + round_table) / 2 };
        }
        let opposite = (round + round_table - rank) % round_table;
        if opposite == rank { round_table } else { opposite }
    };
    (0..round_table).map(|round| Some(partner(round)).filter(|partner| *partner < world_size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_meets_once_and_both_know() {
        for world_size in 1..18 {
            for rank in 0..world_size {
                let mine = partners(rank, world_size);
                let mut met: Vec<u32> = mine.iter().flatten().copied().collect();
                met.sort_unstable();
                assert_eq!(met, (0..world_size).filter(|other| *other != rank).collect::<Vec<_>>());
                for (round, partner) in mine.iter().enumerate().filter_map(|(i, partner)| Some((i, (*partner)?))) {
                    assert_eq!(partners(partner, world_size)[round], Some(rank), "round {round} of {world_size}");
                }
            }
        }
    }
}
