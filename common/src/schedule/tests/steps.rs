//! Every occurrence in exactly one place, one bucket per micro-batch, and images kept apart.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_tight_case_has_exactly_one_answer_and_it_is_found() {
    // 16 images four times in four steps of 16: every step must be all 16 images.
    for (images, multiply, micro_batch_size, slots) in
        [(16, "4", 4, 4), (12, "7", 4, 3), (8, "50", 8, 1), (6, "3", 1, 6)]
    {
        let dataset = squares(&[("a", images, multiply)]);
        let schedule = EpochSchedule::compute(&dataset, &options(micro_batch_size, slots), 0);
        assert_eq!(doubles(&schedule), 0, "{images} images × {multiply}");
    }
}

#[test]
fn few_images_repeated_often_are_spread_over_the_steps() {
    // Four wide images 100 times each would fill steps alone, if there were no room for them elsewhere.
    let sizes = |size| vec![size];
    let wide = MadeUp { images: 4, multiply: "100".to_owned(), sizes: sizes((1000, 500)) };
    let rest = MadeUp { images: 2000, multiply: "1".to_owned(), sizes: sizes((512, 512)) };
    let dataset = dataset(BTreeMap::from([("wide".to_owned(), wide), ("rest".to_owned(), rest)]));
    assert_eq!(doubles(&EpochSchedule::compute(&dataset, &options(4, 4), 0)), 0);
}

#[test]
fn what_cannot_be_avoided_is_spread_evenly() {
    // Two images eight times each in two steps of two micro-batches of four: four times per step, twice per micro-batch.
    let dataset = squares(&[("a", 2, "8")]);
    let schedule = EpochSchedule::compute(&dataset, &options(4, 2), 0);
    for slot in schedule.iter().flat_map(|step| step.slots) {
        assert_eq!(slot.occurrences.iter().filter(|occurrence| occurrence.sample == 0).count(), 2);
    }
    let alone = squares(&[("a", 1, "9")]);
    assert_eq!(EpochSchedule::compute(&alone, &options(4, 2), 0).occurrences(), 9);
}

#[test]
fn named_batches_keep_together_and_hand_over_their_tails() {
    let mut dataset = squares(&[("a", 10, "1"), ("b", 7, "1"), ("c", 9, "1")]);
    for sample in &mut dataset.samples {
        let is_named = sample.folder != 1;
        sample.batch_id = is_named.then(|| if sample.folder == 0 { "red".to_owned() } else { "blue".to_owned() });
    }
    let schedule = EpochSchedule::compute(&dataset, &options(4, 2), 0);
    let micro_batches: Vec<SlotPlan> = schedule.iter().flat_map(|step| step.slots).collect();
    let ids = |slot: &SlotPlan| -> BTreeSet<Option<&str>> {
        slot.occurrences
            .iter()
            .map(|occurrence| dataset.samples[occurrence.sample as usize].batch_id.as_deref())
            .collect()
    };
    let full_of = |id: &str| {
        let is_pure = |slot: &&SlotPlan| slot.occurrences.len() == 4 && ids(slot) == BTreeSet::from([Some(id)]);
        micro_batches.iter().filter(is_pure).count()
    };
    assert!(full_of("red") >= 2 && full_of("blue") >= 2);
    // 2 + 1 images were handed over to the 7 without a name: 10 make two full micro-batches and one of two.
    assert_eq!((schedule.micro_batches(), schedule.padded()), (7, 2));
}

#[test]
fn an_epoch_may_be_empty() {
    let dataset = squares(&[("a", 10, "0.01")]);
    let schedule = EpochSchedule::compute(&dataset, &options(4, 4), 0);
    assert_eq!((schedule.occurrences(), schedule.steps(), schedule.padded()), (0, 0, 0));
    assert_eq!(schedule.iter().count(), 0);
    let run = RunSchedule::compute(&dataset, &options(4, 4), 20);
    assert_eq!((run.steps(), run.epochs()), (2, 20));
}

#[test]
fn steps_of_a_run_are_located() {
    let run = RunSchedule::compute(&squares(&[("a", 10, "1")]), &options(4, 1), 3);
    assert_eq!((run.steps(), run.first_step(2), run.steps_in(1)), (9, 6, 3));
    assert_eq!(
        [run.locate(0), run.locate(2), run.locate(3), run.locate(8)],
        [(0, 0), (0, 2), (1, 0), (2, 2)].map(Some)
    );
    assert_eq!(run.locate(9), None);
    // Empty epochs are passed over.
    let sparse = RunSchedule::compute(&squares(&[("a", 10, "0.01")]), &options(4, 1), 20);
    assert!((0..sparse.steps()).all(|step| matches!(sparse.locate(step), Some((_, 0)))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_occurrence_has_exactly_one_place(dataset in any_dataset(), options in any_options(), epoch in 0u64..9) {
        let schedule = EpochSchedule::compute(&dataset, &options, epoch);
        let (mut position, mut micro_batches, mut padded) = (0, 0, 0);
        let mut seen = BTreeSet::new();
        let mut short = BTreeSet::new();
        for (number, step) in (0..).zip(schedule.iter()) {
            prop_assert_eq!((step.step, step.first_position), (number, position));
            let is_last = number + 1 == schedule.steps();
            prop_assert!(is_last || step.slots.len() == options.slots as usize);
            prop_assert!(!step.slots.is_empty() && step.slots.len() <= options.slots as usize);
            for (slot_number, slot) in (0..).zip(&step.slots) {
                prop_assert_eq!(slot.slot, slot_number);
                let lacking = options.micro_batch_size as usize - slot.occurrences.len();
                prop_assert!(!slot.occurrences.is_empty());
                prop_assert!(lacking == 0 || short.insert(slot.bucket), "one short micro-batch per bucket");
                micro_batches += 1;
                padded += lacking as u64;
                for occurrence in &slot.occurrences {
                    prop_assert_eq!(occurrence.position, position);
                    position += 1;
                    prop_assert_eq!(dataset.bucket_of(&dataset.samples[occurrence.sample as usize]), slot.bucket);
                    prop_assert!(seen.insert((occurrence.sample, occurrence.copy)));
                }
            }
        }
        let counted = (schedule.occurrences(), schedule.micro_batches(), schedule.padded());
        prop_assert_eq!(counted, (position, micro_batches, padded));
        // Copies are numbered from 0 without gaps.
        let is_first_or_follows = |&(sample, copy): &(u32, u32)| copy == 0 || seen.contains(&(sample, copy - 1));
        prop_assert!(seen.iter().all(is_first_or_follows));
    }

    #[test]
    fn any_step_can_be_read_alone(dataset in any_dataset(), options in any_options()) {
        let schedule = EpochSchedule::compute(&dataset, &options, 1);
        let all: Vec<StepPlan> = schedule.iter().collect();
        for step in (0..schedule.steps()).rev() {
            prop_assert_eq!(&schedule.step(step), &all[step as usize]);
        }
    }

    #[test]
    fn the_run_counts_the_steps_of_its_epochs(dataset in any_dataset(), options in any_options()) {
        let steps: Vec<u64> = (0..6).map(|epoch| EpochSchedule::compute(&dataset, &options, epoch).steps()).collect();
        let run = RunSchedule::compute(&dataset, &options, 6);
        prop_assert_eq!((0..6).map(|epoch| run.steps_in(epoch)).collect::<Vec<_>>(), steps.clone());
        prop_assert_eq!(RunSchedule::total_steps(&dataset, &options, 6), steps.iter().sum::<u64>());
    }

    #[test]
    fn no_image_twice_in_a_step_where_that_can_be_avoided(
        micro_batch_size in 1u32..6, slots in 1u32..5, spare in 0u64..20, multiply in 1u64..9, seed in any::<u64>(),
    ) {
        let images = u64::from(2 * micro_batch_size * slots) + spare;
        let dataset = squares(&[("a", images, &multiply.to_string())]);
        let options = ScheduleOptions { seed, ..options(micro_batch_size, slots) };
        prop_assert_eq!(doubles(&EpochSchedule::compute(&dataset, &options, 0)), 0);
    }

    #[test]
    fn epochs_and_seeds_differ(seed in any::<u64>()) {
        let dataset = squares(&[("a", 40, "1")]);
        let hash = |seed, epoch| EpochSchedule::compute(&dataset, &ScheduleOptions { seed, ..options(4, 2) }, epoch).hash();
        prop_assert_eq!(hash(seed, 0), hash(seed, 0));
        prop_assert_ne!(hash(seed, 0), hash(seed, 1));
        prop_assert_ne!(hash(seed, 0), hash(seed ^ 1, 0));
    }
}
