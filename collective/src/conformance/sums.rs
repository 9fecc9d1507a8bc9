//! Promises 1, 3 and 8: the sum is the slot tree's, for every world and every deal of the slots.

use super::cases::{Case, bits};
use super::{Generations, PATIENT};

/// More than one block for each rank of the largest world, and no multiple of anything.
const SEVERAL_BLOCKS: usize = 700_001;

pub(super) fn check(generations: &mut Generations<'_>) {
    for world_size in generations.implementation.world_sizes() {
        let cases = cases(world_size);
        let members = generations.form(world_size, PATIENT);
        let (name, is_exact) = (generations.implementation.name(), generations.implementation.is_exact());
        let sums: Vec<Vec<Vec<f32>>> = std::thread::scope(|scope| {
            let runs: Vec<_> = members
                .into_iter()
                .enumerate()
                .map(|(rank, mut member)| {
                    let cases = &cases;
                    scope.spawn(move || {
                        let reduce = |(step, case): (usize, &Case)| {
                            let sum = case.reduce(member.collective.as_mut(), step as u64, rank);
                            sum.unwrap_or_else(|error| panic!("{name}, rank {rank} of {world_size}: {error:?}"))
                        };
                        cases.iter().enumerate().map(reduce).collect()
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().expect("the rank's own panic has been printed")).collect()
        });
        for (step, case) in cases.iter().enumerate() {
            let expected = case.sum(step as u64);
            for (rank, own) in sums.iter().enumerate() {
                let place = format!("{name}: {case:?}, rank {rank} of {world_size}");
                if is_exact {
                    assert!(bits(&own[step]) == bits(&expected), "{place}: the bits are not the slot tree's");
                } else {
                    assert!(is_near(&own[step], &expected), "{place}: not the sum, even rounded differently");
                    assert!(bits(&own[step]) == bits(&sums[0][step]), "{place}: the bits are not those of rank 0");
                }
            }
        }
    }
}

fn cases(world_size: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for slots in 1..=9 {
        for filled in 0..=slots {
            cases.push(Case::dealt(slots, filled, world_size, 37 + slots as usize));
        }
    }
    cases.push(Case::dealt(16, 13, world_size, 1001));
    cases.push(Case::scattered(23, world_size, 1001));
    // Runs of slots as wide as each level, by turns: sums of one rank wait on every level of the tree.
    cases.push(Case {
        slot_ranks: (0..129_u32).map(|slot| slot.leading_zeros() % world_size as u32).collect(),
        elements: 99,
    });
    cases.push(Case { slot_ranks: vec![0; 127], elements: 99 });
    // All slots on the last rank, so that all others are empty.
    cases.push(Case { slot_ranks: vec![world_size as u32 - 1; 5], elements: 1001 });
    // Fewer elements than ranks, exactly a block, and several blocks for each rank.
    for elements in [1, 5, 1 << 16, SEVERAL_BLOCKS] {
        cases.push(Case::dealt(9, 8, world_size, elements));
        cases.push(Case::scattered(7, world_size, elements));
    }
    cases
}

/// Whether two sums of a few numbers up to 10,000 differ by their rounding only.
fn is_near(sum: &[f32], expected: &[f32]) -> bool {
    sum.len() == expected.len() && sum.iter().zip(expected).all(|(sum, expected)| (sum - expected).abs() < 0.05)
}
