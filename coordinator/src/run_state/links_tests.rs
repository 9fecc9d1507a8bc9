//! Workers that cannot reach each other.

use super::*;

/// Reports that a worker could not reach the one of this rank, in the generation in hand.
fn fail(core: &mut RunState, worker: WorkerId, peer_rank: Option<u32>) -> Vec<Action> {
    let (generation, step) = (core.generation, core.next_step);
    let reason = "no route".to_owned();
    core.on(Event::CollectiveFailed { worker, generation, step, peer_rank, reason }, core.now)
}

fn left_out(actions: &[Action]) -> Option<(WorkerId, WorkerId)> {
    actions.iter().find_map(|action| match action {
        Action::LeaveOut { worker, peer, .. } => Some((*worker, *peer)),
        _ => None,
    })
}

#[test]
fn after_three_attempts_the_later_rank_of_a_pair_is_left_out_and_the_others_go_on() {
    let mut world = World::new(config(6, 3));
    assert_eq!(left_out(&fail(&mut world.core, 2, Some(2))), None);
    assert_eq!(left_out(&fail(&mut world.core, 3, Some(1))), None);
    let actions = fail(&mut world.core, 2, Some(2));
    assert_eq!(left_out(&actions), Some((3, 2)));
    assert!(actions.contains(&Action::Group { generation: 4, workers: vec![1, 2] }), "{actions:?}");
    // As long as the other one is there it is not taken in again.
    for worker in [1, 2] {
        let actions =
            world.core.on(Event::Reduced { worker, generation: 4, step: 0, gradient_hash: "g".into() }, Duration::ZERO);
        if worker == 2 {
            assert!(matches!(actions[..], [Action::Commit { .. }]), "{actions:?}");
        }
    }
    let actions = world.core.on(Event::Committed { step: 0, chain: chain(1) }, Duration::ZERO);
    assert!(!actions.iter().any(|action| matches!(action, Action::Offer { .. })), "{actions:?}");
    // When it has gone, the worker that was left out is sent the state.
    world.core.on(Event::Left { worker: 2, reason: "killed".into() }, Duration::ZERO);
    let generation = world.core.generation;
    world.core.on(Event::Reduced { worker: 1, generation, step: 1, gradient_hash: "g".into() }, Duration::ZERO);
    let actions = world.core.on(Event::Committed { step: 1, chain: chain(2) }, Duration::ZERO);
    assert!(actions.iter().any(|action| matches!(action, Action::Offer { source: 1, joiner: 3, .. })), "{actions:?}");
}

#[test]
fn the_one_whose_other_links_fail_too_is_left_out() {
    let mut core = World::new(config(6, 3)).core;
    fail(&mut core, 1, Some(2));
    for _ in 0..2 {
        assert_eq!(left_out(&fail(&mut core, 1, Some(1))), None);
    }
    assert_eq!(left_out(&fail(&mut core, 2, Some(0))), Some((1, 2)));
}

#[test]
fn a_commit_between_failures_and_failures_of_nobody_in_particular_count_for_nothing() {
    let mut core = World::new(config(6, 2)).core;
    for _ in 0..9 {
        assert_eq!(left_out(&fail(&mut core, 1, None)), None);
        assert_eq!(left_out(&fail(&mut core, 1, Some(0))), None, "nobody fails to reach itself");
    }
    for step in 0..4 {
        for _ in 0..2 {
            assert_eq!(left_out(&fail(&mut core, 1, Some(1))), None);
        }
        let generation = core.generation;
        for worker in [1, 2] {
            core.on(Event::Reduced { worker, generation, step, gradient_hash: "g".into() }, Duration::ZERO);
        }
        core.on(Event::Committed { step, chain: chain(step + 1) }, Duration::ZERO);
    }
}

#[test]
fn after_ten_minutes_a_pair_is_tried_again() {
    let mut core = World::new(config(6, 2)).core;
    for _ in 0..3 {
        fail(&mut core, 1, Some(1));
    }
    assert_eq!((&core.group[..], core.next_joiners()), (&[1][..], vec![]));
    for second in 1..=600 {
        for worker in 1..=2 {
            core.on(Event::Heard { worker }, Duration::from_secs(second));
        }
        core.on(Event::Tick, Duration::from_secs(second));
    }
    assert_eq!(core.next_joiners(), [2]);
}
