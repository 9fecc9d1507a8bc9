//! Law 3 over random trees: folders in folders, multipliers of single images, from 1e-6 to 10 000 with many decimals.

use super::*;

/// What a group has to get: `e · n · f` rounded half up, worked out from the digits as written.
fn running_total(multiply: Decimal, images: u64, epochs: u64) -> u128 {
    let digits = multiply.to_string();
    let (_, fraction) = digits.split_once('.').unwrap_or((digits.as_str(), "0"));
    let denominator = 10u128.pow(fraction.len() as u32);
    let numerator: u128 = fraction.parse().unwrap();
    (2 * u128::from(epochs) * u128::from(images) * numerator + denominator) / (2 * denominator)
}

/// A tree in which some images have multipliers of their own, and the samples of each group.
fn any_tree() -> impl Strategy<Value = (Dataset, BTreeMap<(u32, Decimal), Vec<usize>>)> {
    let own = prop::collection::vec((any::<prop::sample::Index>(), any_multiply()), 0..12);
    (any_dataset(), own, any::<bool>()).prop_map(|(mut dataset, own, has_batch_ids)| {
        for (index, multiply) in own {
            let sample = index.index(dataset.samples.len());
            dataset.samples[sample].multiply = Decimal::parse(&multiply).unwrap();
            dataset.samples[sample].batch_id = has_batch_ids.then(|| format!("id {}", sample % 3));
        }
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, sample) in dataset.samples.iter().enumerate() {
            groups.entry((sample.folder, sample.multiply)).or_default().push(index);
        }
        (dataset, groups)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_group_gets_its_count_in_every_epoch_and_nobody_is_ahead(
        (dataset, groups) in any_tree(), options in any_options(),
    ) {
        let mut total = vec![0u64; dataset.samples.len()];
        for epoch in 0..12 {
            let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
            total.iter_mut().zip(&uses).for_each(|(total, uses)| *total += uses);
            for (&(_, multiply), members) in &groups {
                let (images, whole) = (members.len() as u64, multiply.whole());
                let until = |epochs| running_total(multiply, images, epochs) as u64;
                let of_group = |uses: &[u64]| members.iter().map(|&member| uses[member]).sum::<u64>();
                let due = images * whole + until(epoch + 1) - until(epoch);
                prop_assert_eq!(of_group(&uses), due, "× {} in epoch {}", multiply, epoch);
                prop_assert_eq!(of_group(&total), (epoch + 1) * images * whole + until(epoch + 1));
                let is_once_more_at_most = |&member: &usize| (whole..=whole + 1).contains(&uses[member]);
                prop_assert!(members.iter().all(is_once_more_at_most), "twice in the remainder of epoch {epoch}");
                let totals = || members.iter().map(|&member| total[member]);
                let (least, most) = (totals().min().unwrap(), totals().max().unwrap());
                let is_fair = options.remainder == Remainder::Independent || most - least <= 1;
                prop_assert!(is_fair, "{least}..{most} after epoch {epoch} × {multiply}");
            }
        }
    }

    #[test]
    fn late_epochs_are_found_without_those_before(
        (dataset, groups) in any_tree(), options in any_options(), epoch in 0u64..1 << 40,
    ) {
        let uses = uses(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
        for (&(_, multiply), members) in &groups {
            let until = |epochs| running_total(multiply, members.len() as u64, epochs) as u64;
            let scheduled: u64 = members.iter().map(|&member| uses[member]).sum();
            prop_assert_eq!(scheduled, members.len() as u64 * multiply.whole() + until(epoch + 1) - until(epoch));
        }
    }

    #[test]
    fn letter_case_of_extensions_and_other_names_leave_the_deal_alone(images in 1u64..40, multiply in any_multiply()) {
        // Only the order of the paths counts, not how they end.
        let dataset = squares(&[("a", images, &multiply)]);
        let mut renamed = dataset.clone();
        renamed.samples.iter_mut().for_each(|sample| sample.path = sample.path.replace(".png", ".PNG"));
        let schedule = |dataset: &Dataset| EpochSchedule::compute(dataset, &options(3, 2), 4);
        prop_assert_eq!(uses(&dataset, &schedule(&dataset)), uses(&renamed, &schedule(&renamed)));
        prop_assert_ne!(schedule(&dataset).hash(), schedule(&renamed).hash());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_few_images_may_be_used_thousands_of_times(images in 1u64..4, whole in 1_000u64..=10_000, options in any_options()) {
        let multiply = if whole == 10_000 { "10000".to_owned() } else { format!("{whole}.123456789012345678901234567") };
        let dataset = squares(&[("a", images, &multiply), ("b", 5, "1")]);
        let schedule = EpochSchedule::compute(&dataset, &options, 0);
        let until = running_total(Decimal::parse(&multiply).unwrap(), images, 1) as u64;
        prop_assert_eq!(schedule.occurrences(), images * whole + until + 5);
    }
}
