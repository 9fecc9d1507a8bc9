//! What is proposed is what is scheduled, for any folders and any goal.

use proptest::prelude::*;

use super::report::changed;
use super::*;
use crate::schedule::tests::{any_dataset, options, squares};
use crate::schedule::{EpochReport, EpochSchedule};

fn propose(dataset: &Dataset, goal: &Goal) -> Vec<String> {
    goal.propose(dataset, 20).unwrap().iter().map(|proposal| proposal.multiply.to_string()).collect()
}

fn refuse(goal: &Goal) -> String {
    let dataset = squares(&[("a/cats", 10, "1"), ("b/cats", 20, "2"), ("dogs", 40, "1")]);
    goal.propose(&dataset, 20).unwrap_err().to_string()
}

fn shares(shares: &[(&str, f64)]) -> Goal {
    Goal { shares: shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect(), ..Goal::default() }
}

fn equal(names: &[&str]) -> Goal {
    Goal { equal: vec![names.iter().map(|name| (*name).to_owned()).collect()], ..Goal::default() }
}

#[test]
fn every_folder_the_same() {
    let dataset = squares(&[("a", 200, "1"), ("b", 50, "4"), ("c", 100, "2.5"), ("d", 1000, "0.05")]);
    assert_eq!(propose(&dataset, &Goal::default()), ["0.875", "3.5", "1.75", "0.175"]);
    let per_folder = Goal { size: EpochSize::PerFolder(25), ..Goal::default() };
    let dataset = squares(&[("a", 1000, "1"), ("b", 200, "1"), ("c", 100, "1"), ("d", 25, "1")]);
    assert_eq!(propose(&dataset, &per_folder), ["0.025", "0.125", "0.25", "1"]);
}

#[test]
fn two_equal_and_one_a_tenth() {
    let dataset = squares(&[("cats", 60, "1"), ("dogs", 30, "1"), ("preservation", 1000, "1")]);
    let goal = Goal {
        size: EpochSize::Occurrences(200),
        equal: vec![vec!["cats".into(), "dogs".into()]],
        ..shares(&[("preservation", 0.1)])
    };
    assert_eq!(propose(&dataset, &goal), ["1.5", "3", "0.02"]);
}

#[test]
fn folders_that_are_not_named_are_left_as_they_are() {
    let dataset = squares(&[("a", 10, "1"), ("b", 10, "3"), ("c", 10, "0.25")]);
    assert_eq!(propose(&dataset, &equal(&["a", "b"])), ["2", "2", "0.25"]);
    let goal = Goal { keep: true, size: EpochSize::Occurrences(85), ..Goal::default() };
    assert_eq!(propose(&dataset, &goal), ["2", "6", "0.5"]);
    let goal = Goal { keep: true, size: EpochSize::Occurrences(100), ..shares(&[("c", 0.2)]) };
    assert_eq!(propose(&dataset, &goal), ["2", "6", "2"]);
}

#[test]
fn loss_scales_are_weighed_when_asked_for() {
    let mut dataset = squares(&[("a", 10, "1"), ("b", 10, "1")]);
    dataset.samples.iter_mut().for_each(|sample| sample.loss_scale = [1.0, -0.5][sample.folder as usize]);
    let goal = Goal { weigh: Weigh::Loss, size: EpochSize::Occurrences(30), ..Goal::default() };
    assert_eq!(propose(&dataset, &goal), ["1", "2"]);
    dataset.samples[0..10].iter_mut().for_each(|sample| sample.loss_scale = 0.0);
    let error = goal.propose(&dataset, 20).unwrap_err();
    assert_eq!(error, GoalError::Weightless { folder: "a".into() });
}

#[test]
fn a_slash_means_the_folders_below_too() {
    let dataset = squares(&[("cats/big", 10, "1"), ("cats/small", 10, "3"), ("dogs", 40, "1")]);
    assert_eq!(propose(&dataset, &shares(&[("cats/", 0.5)])), ["2", "2", "1"]);
    assert_eq!(propose(&dataset, &shares(&[("cats/**", 0.5)])), ["2", "2", "1"]);
    assert_eq!(propose(&dataset, &shares(&[("small", 0.5)])), ["2", "4", "0.5"]);
    let error = shares(&[("cats", 0.5)]).propose(&dataset, 1).unwrap_err().to_string();
    assert!(error.contains("no images of its own") && error.contains("\"cats/\""), "{error}");
}

#[test]
fn impossible_goals_say_what_is_allowed() {
    let cases = [
        (shares(&[("dogs", 1.2)]), "above 0 % and below 100 %"),
        (shares(&[("dogs", 0.0)]), "above 0 % and below 100 %"),
        (shares(&[("dogs", 0.6), ("a/cats", 0.5)]), "leaves nothing to the other folders (there are 1)"),
        (shares(&[("dogs", 0.5), ("a/cats", 0.2), ("b/cats", 0.2)]), "allowed: 100 % together"),
        (shares(&[("dgos", 0.5)]), "did you mean \"dogs\"?"),
        (shares(&[("cats", 0.5)]), "is the name of 2 folders (a/cats, b/cats)"),
        (Goal { equal: vec![vec!["dogs".into()]], ..shares(&[("dogs", 0.5)]) }, "named twice"),
        (Goal { size: EpochSize::Occurrences(2), ..Goal::default() }, "from 3 (one for each folder)"),
        (Goal { size: EpochSize::PerFolder(100_001), ..Goal::default() }, "from 1 to 100000"),
    ];
    for (goal, allowed) in cases {
        let error = refuse(&goal);
        assert!(error.contains(allowed), "{error}");
    }
}

#[test]
fn images_with_a_multiplier_of_their_own_are_counted_in() {
    let mut dataset = squares(&[("a", 10, "1"), ("b", 20, "1")]);
    dataset.samples[0].multiply = Decimal::from(11);
    assert_eq!(propose(&dataset, &equal(&["a", "b"])), ["1", "1"]);
    let goal = Goal { size: EpochSize::PerFolder(29), ..Goal::default() };
    assert_eq!(propose(&dataset, &goal), ["2", "1.45"]);
    let few = Goal { size: EpochSize::PerFolder(11), ..Goal::default() };
    assert!(matches!(few.propose(&dataset, 1), Err(GoalError::OutOfReach { least: 12, .. })));
}

#[test]
fn multipliers_are_as_short_as_can_be() {
    let short = |images, count, epochs| multiplier(images, count, epochs).to_string();
    assert_eq!((short(3, 1, 1), short(3, 1, 20), short(3, 1, 1000)), ("0.3".into(), "0.33".into(), "0.3333".into()));
    assert_eq!(
        (short(1000, 333, 1000), short(7, 7, 1), short(1, 10_000, 1_000_000)),
        ("0.333".into(), "1".into(), "10000".into())
    );
}

fn any_goal() -> impl Strategy<Value = Goal> {
    let size = prop_oneof![
        Just(EpochSize::Today),
        (5u64..3000).prop_map(EpochSize::Occurrences),
        (1u64..300).prop_map(EpochSize::PerFolder)
    ];
    (size, any::<bool>(), any::<bool>()).prop_map(|(size, keep, weigh)| Goal {
        size,
        keep,
        weigh: if weigh { Weigh::Loss } else { Weigh::Count },
        ..Goal::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_is_proposed_is_scheduled(dataset in any_dataset(), goal in any_goal(), share in 0.01f64..0.9, epochs in 1u64..30) {
        let mut goal = goal;
        if dataset.folders.len() > 1 && !matches!(goal.size, EpochSize::PerFolder(_)) {
            goal.shares.push((dataset.folders[0].path.clone(), share));
        }
        let proposals = match goal.propose(&dataset, epochs) {
            Ok(proposals) => proposals,
            Err(GoalError::OutOfReach { count, most, .. }) => {
                prop_assert!(count > most);
                return Ok(());
            }
            Err(other) => return Err(TestCaseError::fail(other.to_string())),
        };
        let changed = changed(&dataset, &proposals);
        for epoch in 0..epochs {
            let report = EpochReport::new(&changed, &EpochSchedule::compute(&changed, &options(4, 4), epoch));
            for (folder, proposal) in report.folders.iter().zip(&proposals) {
                if let Some(count) = proposal.count {
                    prop_assert_eq!(folder.scheduled, count, "{} in epoch {}", &folder.path, epoch);
                }
            }
            let shares: f64 = report.folders.iter().map(|folder| folder.share).sum();
            prop_assert!((shares - 1.0).abs() < 1e-9 || report.occurrences == 0);
        }
    }

    #[test]
    fn the_epoch_is_as_large_as_asked(dataset in any_dataset(), size in 5u64..3000) {
        let goal = Goal { size: EpochSize::Occurrences(size), ..Goal::default() };
        let Ok(proposals) = goal.propose(&dataset, 5) else { return Ok(()) };
        let changed = changed(&dataset, &proposals);
        let occurrences = EpochSchedule::compute(&changed, &options(4, 4), 0).occurrences();
        prop_assert!(occurrences.abs_diff(size) <= dataset.folders.len() as u64);
        let counts: Vec<u64> = proposals.iter().filter_map(|proposal| proposal.count).collect();
        prop_assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    }
}
