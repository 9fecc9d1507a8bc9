//! The coordinator's core through simulated faults: see `ballast_tests::simulation`.

use ballast_tests::simulation::{simulate, simulate_many};

/// Every schedule commits each step once, in order, with the right gradient, applies nothing stale, and comes to its end
/// once the faults stop.
#[test]
fn ten_thousand_fault_schedules_keep_every_promise() {
    match simulate_many(0, 10_000) {
        Ok(tally) => {
            // The schedules must have been worth something.
            assert_eq!(tally.schedules, 10_000);
            assert!(tally.losses > 5_000 && tally.catch_ups > 5_000 && tally.expulsions > 100, "{tally}");
            assert!(tally.coordinator_deaths > 1_000 && tally.rollbacks > 1_000, "{tally}");
            assert!(tally.returns > 900 && tally.saved_alone > 9 && tally.left_out > 100, "{tally}");
            assert!(
                tally.nccl_generations > 1_000 && tally.nccl_ids > 1_000 && tally.nccl_fallbacks > 1_000,
                "{tally}"
            );
            assert!(tally.skipped_saves > 1_000 && tally.failed_saves > 1_000, "{tally}");
        }
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn a_schedule_is_a_function_of_its_seed() {
    assert_eq!(simulate(77), simulate(77));
    assert_ne!(simulate(77), simulate(78));
}
