//! What large data goes through: several threads, short forms, the roster without the dataset.

use super::*;
use crate::schedule::order::Stretch;
use crate::schedule::places::Places;

#[test]
fn the_number_of_threads_changes_nothing() {
    let mut dataset = squares(&[("a", 40_000, "2.3"), ("b", 60_000, "0.7"), ("c", 300, "40"), ("d", 30_000, "1")]);
    for (index, sample) in dataset.samples.iter_mut().enumerate() {
        sample.bucket = (index % 3) as u16;
        sample.batch_id = (index % 5 == 0).then(|| format!("id {}", index % 4));
    }
    let roster = Roster::of(&dataset);
    for options in [options(4, 4), options(1, 8)] {
        let alone = EpochSchedule::on_threads(&roster, &options, 2, 1);
        for threads in [2, 3, 8] {
            assert!(EpochSchedule::on_threads(&roster, &options, 2, threads) == alone, "{threads} threads");
        }
        let run = RunSchedule::on_threads(&roster, &options, 7, 1);
        for threads in [2, 5] {
            assert_eq!(RunSchedule::on_threads(&roster, &options, 7, threads), run);
        }
        assert_eq!(run.steps_in(2), alone.steps());
    }
}

#[test]
fn too_many_uses_are_refused() {
    let builder = || RosterBuilder::new(buckets(512, 4.0), vec!["a".to_owned()]);
    let push = |builder: &mut RosterBuilder, multiply| {
        let multiply = Decimal::from(multiply);
        builder.push(&RosterSample { path: "a/1.png", folder: 0, multiply, bucket: 0, batch_id: None });
    };
    let mut most = builder();
    push(&mut most, RosterError::MAX_USES);
    assert_eq!(most.finish().unwrap().images(), 1);
    let mut more = builder();
    push(&mut more, RosterError::MAX_USES);
    push(&mut more, 1);
    let error = more.finish().unwrap_err();
    assert_eq!(
        error.to_string(),
        "2 images are used up to 4294967296 times per epoch together, more than 4294967295 times"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_number_of_threads_gives_the_same(dataset in any_dataset(), options in any_options(), threads in 2usize..6) {
        let roster = Roster::of(&dataset);
        let schedule = EpochSchedule::on_threads(&roster, &options, 3, threads);
        prop_assert_eq!(schedule, EpochSchedule::on_threads(&roster, &options, 3, 1));
        let run = RunSchedule::on_threads(&roster, &options, 9, threads);
        prop_assert_eq!(run, RunSchedule::on_threads(&roster, &options, 9, 1));
    }

    #[test]
    fn slots_are_shown_as_they_are_in_the_steps(dataset in any_dataset(), options in any_options()) {
        let schedule = EpochSchedule::compute(&dataset, &options, 1);
        let mut shown = Vec::new();
        schedule.for_each_slot(|slot| shown.push((slot.step, slot.slot, slot.bucket, slot.occurrences.to_vec())));
        let of_step = |step: StepPlan| {
            step.slots.into_iter().map(move |slot| (step.step, slot.slot, slot.bucket, slot.occurrences))
        };
        prop_assert_eq!(shown, schedule.iter().flat_map(of_step).collect::<Vec<_>>());
    }

    #[test]
    fn both_forms_of_places_say_the_same(
        counts in prop::collection::vec(0usize..900, 1..12), seed in any::<u64>(), from in 0.0f64..1.0,
    ) {
        let mut next = 0u32;
        let stretches: Vec<Stretch> = counts.iter().map(|&length| {
            let first_micro_batch = next;
            next += length as u32;
            Stretch { bucket: 0, start: first_micro_batch as usize, length, first_micro_batch }
        }).collect();
        let mut at: Vec<u8> = (0..).zip(&counts).flat_map(|(number, &count)| vec![number; count]).collect();
        crate::rng::Streams::new(seed).keyed("test", &[]).shuffle(&mut at);
        let wide = Places::wide(at.iter().map(|&stretch| u32::from(stretch)).collect(), &stretches);
        let narrow = Places::narrow(at, &stretches);
        prop_assert_eq!(narrow.len(), wide.len());
        for place in 0..narrow.len() {
            let (stretch, micro_batch) = narrow.at(place, &stretches);
            prop_assert_eq!((stretch, micro_batch), wide.at(place, &stretches));
            prop_assert_eq!((narrow.place_of(micro_batch, stretch), wide.place_of(micro_batch, stretch)), (place, place));
        }
        let visited = |places: &Places| {
            let mut visited = Vec::new();
            let start = (from * narrow.len() as f64) as usize;
            places.visit(start..narrow.len(), &stretches, |place, stretch, number| visited.push((place, stretch, number)));
            visited
        };
        prop_assert_eq!(visited(&narrow), visited(&wide));
    }
}
