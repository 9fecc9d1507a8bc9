//! What the schedule promised, from the law of counts alone: no schedule is computed and no picture is read.

use std::collections::BTreeMap;

use ballast_common::dataset::Decimal;

use crate::ledger::SampleFacts;

/// Returns for each folder how many uses of its images its first `epochs` whole epochs have.
///
/// The n images of a folder that have one multiplier w + f are used e · n · w + e · n · f times in e epochs, rounded half up.
/// None when a sample's multiplier is not known.
pub(super) fn uses_in_whole_epochs(samples: &[SampleFacts], folders: usize, epochs: u64) -> Option<Vec<u64>> {
    let mut groups: BTreeMap<(u32, Decimal), u128> = BTreeMap::new();
    for sample in samples {
        *groups.entry((sample.folder, sample.multiply?)).or_default() += 1;
    }
    let mut uses = vec![0u64; folders];
    for ((folder, multiply), images) in groups {
        let all = u128::from(epochs) * images;
        uses[folder as usize] += (all * u128::from(multiply.whole()) + multiply.fraction_of(all)) as u64;
    }
    Some(uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(groups: &[(u32, &str, usize)]) -> Vec<SampleFacts> {
        let sample = |folder, multiply| SampleFacts {
            path: String::new(),
            folder,
            multiply: Some(Decimal::parse(multiply).unwrap()),
            loss_scale: Some(1.0),
        };
        groups.iter().flat_map(|(folder, multiply, count)| vec![sample(*folder, multiply); *count]).collect()
    }

    #[test]
    fn the_documented_counts() {
        let samples = samples(&[(0, "2.5", 100), (1, "0.05", 1000), (2, "0.1", 10), (3, "3", 7)]);
        assert_eq!(uses_in_whole_epochs(&samples, 4, 1), Some(vec![250, 50, 1, 21]));
        assert_eq!(uses_in_whole_epochs(&samples, 4, 0), Some(vec![0; 4]));
    }

    #[test]
    fn fractions_add_up_over_epochs_and_groups_round_each_for_itself() {
        // 5 × 2.5 = 12.5: 13, 25, 38, …; two groups of one image at 0.5 round up both.
        let samples = samples(&[(0, "2.5", 5), (1, "0.5", 1), (1, "0.50000000001", 1)]);
        for (epochs, expected) in [(1, vec![13, 2]), (2, vec![25, 2]), (3, vec![38, 4])] {
            assert_eq!(uses_in_whole_epochs(&samples, 2, epochs), Some(expected));
        }
    }

    #[test]
    fn an_older_ledger_promises_nothing() {
        let mut samples = samples(&[(0, "1", 2)]);
        samples[1].multiply = None;
        assert_eq!(uses_in_whole_epochs(&samples, 1, 1), None);
    }
}
