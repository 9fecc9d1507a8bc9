//! Law 3: every folder gets its documented count in every epoch, and every image of it the same over time.

use super::*;

/// `e · n · f` rounded half up, worked out from the digits as written.
fn running_total(multiply: &str, images: u64, epochs: u64) -> u128 {
    let (_, fraction) = multiply.split_once('.').unwrap_or((multiply, "0"));
    let denominator = 10u128.pow(fraction.len() as u32);
    let numerator: u128 = fraction.parse().unwrap();
    (2 * u128::from(epochs) * u128::from(images) * numerator + denominator) / (2 * denominator)
}

fn per_folder(dataset: &Dataset, epoch: u64) -> Vec<u64> {
    let report = EpochReport::new(dataset, &EpochSchedule::compute(dataset, &options(4, 4), epoch));
    report.folders.iter().map(|folder| folder.scheduled).collect()
}

#[test]
fn the_table_of_the_documentation_holds_in_every_epoch() {
    let dataset = squares(&[("a", 200, "1"), ("b", 50, "4"), ("c", 100, "2.5"), ("d", 1000, "0.05")]);
    let mut total = vec![0; dataset.samples.len()];
    for epoch in 0..20 {
        assert_eq!(per_folder(&dataset, epoch), [200, 200, 250, 50]);
        let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options(4, 4), epoch));
        assert!(uses[..200].iter().all(|&uses| uses == 1));
        assert!(uses[200..250].iter().all(|&uses| uses == 4));
        assert!(uses[250..350].iter().all(|&uses| uses == 2 || uses == 3));
        total.iter_mut().zip(uses).for_each(|(total, uses)| *total += uses);
    }
    assert!(total[350..].iter().all(|&total| total == 1), "each of 1000 images exactly once in 20 epochs of 50");
    assert!(total[250..350].iter().all(|&total| total == 50));
}

#[test]
fn counts_do_not_suffer_from_float_sums() {
    let dataset = squares(&[("a", 10, "0.1"), ("b", 1000, "0.05"), ("c", 3, "0.3333333333333333"), ("d", 1, "1e-6")]);
    let epochs: Vec<Vec<u64>> = (0..3).map(|epoch| per_folder(&dataset, epoch)).collect();
    assert_eq!(epochs, [[1, 50, 1, 0], [1, 50, 1, 0], [1, 50, 1, 0]]);
    let late = 500_000 - 1; // half an image is due at the end of this epoch, and rounded up
    assert_eq!(per_folder(&dataset, late)[3], 1);
}

#[test]
fn a_group_of_its_own_for_each_multiplier_in_a_folder() {
    let mut dataset = squares(&[("a", 10, "1")]);
    for sample in &mut dataset.samples[..4] {
        sample.multiply = Decimal::parse("0.5").unwrap();
    }
    for epoch in 0..6 {
        let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options(4, 1), epoch));
        assert_eq!((uses[..4].iter().sum::<u64>(), uses[4..].iter().sum::<u64>()), (2, 6));
    }
}

#[test]
fn independent_draws_forget_the_epochs_before() {
    let dataset = squares(&[("a", 40, "0.5")]);
    let options = ScheduleOptions { remainder: Remainder::Independent, ..options(4, 1) };
    let mut total = vec![0; 40];
    for epoch in 0..20 {
        let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
        assert_eq!(uses.iter().sum::<u64>(), 20);
        total.iter_mut().zip(uses).for_each(|(total, uses)| *total += uses);
    }
    assert!(total.iter().any(|&total| total != 10), "twenty fair coins do not all fall evenly");
}

#[test]
fn another_folder_leaves_the_deal_alone() {
    let alone = squares(&[("b", 30, "0.3")]);
    let joined = squares(&[("a", 7, "1.5"), ("b", 30, "0.3"), ("c", 9, "0.1")]);
    for epoch in 0..5 {
        let of_alone = uses(&alone, &EpochSchedule::compute(&alone, &options(4, 2), epoch));
        let of_joined = uses(&joined, &EpochSchedule::compute(&joined, &options(4, 2), epoch));
        assert_eq!(of_alone, of_joined[7..37]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn counts_are_exact_and_fair(images in 1u64..60, multiply in any_multiply(), seed in any::<u64>(), start in 0u64..1000) {
        let dataset = squares(&[("folder", images, &multiply)]);
        let options = ScheduleOptions { seed, ..options(3, 2) };
        let whole: u64 = multiply.split('.').next().unwrap().parse().unwrap();
        let mut total = vec![0; images as usize];
        for epoch in start..start + 24 {
            let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
            let more = running_total(&multiply, images, epoch + 1) - running_total(&multiply, images, epoch);
            prop_assert_eq!(uses.iter().sum::<u64>(), images * whole + more as u64);
            prop_assert!(uses.iter().all(|&uses| uses == whole || uses == whole + 1));
            total.iter_mut().zip(uses).for_each(|(total, uses)| *total += uses);
            if start == 0 || epoch > start {
                let (least, most) = (total.iter().min().unwrap(), total.iter().max().unwrap());
                // From the first epoch on nobody is more than one ahead; from a later one the lead at the start adds to it.
                prop_assert!(most - least <= if start == 0 { 1 } else { 2 }, "{least}..{most}");
            }
        }
    }

    #[test]
    fn nobody_is_more_than_one_ahead(images in 1u64..40, multiply in "0\\.[0-9]{1,6}1", seed in any::<u64>()) {
        let dataset = squares(&[("folder", images, &multiply)]);
        let options = ScheduleOptions { seed, ..options(3, 2) };
        let mut total = vec![0u64; images as usize];
        for epoch in 0..40 {
            let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
            total.iter_mut().zip(uses).for_each(|(total, uses)| *total += uses);
            let (least, most) = (total.iter().min().unwrap(), total.iter().max().unwrap());
            prop_assert!(most - least <= 1, "after epoch {epoch}: {least}..{most}");
        }
    }

    #[test]
    fn many_folders_each_get_their_own_count(dataset in any_dataset(), options in any_options(), epoch in 0u64..50) {
        let schedule = EpochSchedule::compute(&dataset, &options, epoch);
        let report = EpochReport::new(&dataset, &schedule);
        for folder in &report.folders {
            let digits = folder.multiply.to_string();
            let more = running_total(&digits, folder.images, epoch + 1) - running_total(&digits, folder.images, epoch);
            prop_assert_eq!(folder.scheduled, folder.images * folder.multiply.whole() + more as u64);
        }
        prop_assert_eq!(report.folders.iter().map(|folder| folder.scheduled).sum::<u64>(), schedule.occurrences());
    }
}
