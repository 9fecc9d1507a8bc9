//! Workers that join a run that has started, spares, and workers whose gradients differ.

use super::*;

#[test]
fn a_joiner_is_sent_the_state_after_the_next_commit_and_takes_part() {
    let mut world = World::new(config(6, 2));
    while world.committed.len() < 2 {
        let _ = world.turn(1) | world.turn(2);
    }
    let joiner = world.join();
    let committed = world.committed.len();
    assert_eq!((joiner, world.core.generation, &world.core.group[..]), (3, 1, &[1, 2][..]));
    while world.core.generation == 1 {
        assert!(world.turn(1) | world.turn(2) | world.turn(3));
    }
    assert_eq!((world.committed.len(), &world.core.group[..]), (committed + 1, &[1, 2, 3][..]));
    world.settle();
    assert_eq!(world.ending, Some(Ending::Finished));
    assert!(world.workers.values().all(|worker| worker.applied == [0, 1, 2, 3, 4, 5]));
    assert_eq!(world.done.iter().filter(|done| **done == (Milestone::Checkpoint, 2)).count(), 1);
}

/// A run of two, committed up to where worker 3 is about to be sent the state by worker 1.
fn catching_up() -> World {
    let mut world = World::new(config(6, 2));
    world.join();
    while !matches!(world.core.phase, Phase::CatchingUp { .. }) {
        let _ = world.turn(1) | world.turn(2);
    }
    world
}

fn offers(actions: &[Action]) -> Vec<(WorkerId, WorkerId)> {
    let offer = |action: &Action| match action {
        Action::Offer { source, joiner, .. } => Some((*source, *joiner)),
        _ => None,
    };
    actions.iter().filter_map(offer).collect()
}

#[test]
fn when_the_source_dies_another_takes_over_and_must_hold_the_same_state() {
    let mut core = catching_up().core;
    let offered = |worker, transfer, hash: &str| Event::Offered { worker, transfer, state_hash: hash.to_owned() };
    let actions = core.on(offered(1, 1, "s"), Duration::ZERO);
    assert!(matches!(&actions[..], [Action::Fetch { joiner: 3, source: 1, .. }]), "{actions:?}");
    let actions = core.on(Event::Left { worker: 1, reason: "killed".into() }, Duration::ZERO);
    assert_eq!(offers(&actions), [(2, 3)]);
    assert_eq!(core.on(offered(1, 1, "s"), Duration::ZERO), [], "the lost source is not heard any more");
    let mut other = core.clone();
    let actions = other.on(offered(2, 2, "t"), Duration::ZERO);
    assert!(matches!(actions.last(), Some(Action::Ended(Ending::Failed { .. }))), "{actions:?}");
    core.on(offered(2, 2, "s"), Duration::ZERO);
    let actions = core.on(Event::CaughtUp { worker: 3, transfer: 2, state_hash: "s".into() }, Duration::ZERO);
    assert!(actions.contains(&Action::Group { generation: 2, workers: vec![2, 3] }), "{actions:?}");
}

#[test]
fn a_joiner_that_no_source_can_reach_is_evicted_and_the_others_go_on() {
    let mut core = catching_up().core;
    let failed = |transfer| Event::FetchFailed { worker: 3, transfer, reason: "no route".into() };
    assert_eq!(offers(&core.on(failed(1), Duration::ZERO)), [(2, 3)]);
    assert_eq!(core.on(failed(2), Duration::ZERO), [], "they may be dying");
    let actions = settled(&mut core);
    let evicted =
        |action: &Action| matches!(action, Action::Evict { worker: 3, reason, .. } if reason.contains("no route"));
    assert!(actions.iter().any(evicted), "{actions:?}");
    assert!(actions.contains(&Action::Group { generation: 2, workers: vec![1, 2] }), "{actions:?}");
}

/// The joiner often knows before the coordinator does.
#[test]
fn a_joiner_whose_sources_die_is_not_to_blame() {
    let mut world = World::new(CoreConfig { may_return: true, ..config(6, 1) });
    world.join();
    while !matches!(world.core.phase, Phase::CatchingUp { .. }) {
        world.turn(1);
    }
    let mut core = world.core;
    core.on(Event::Offered { worker: 1, transfer: 1, state_hash: "s".to_owned() }, Duration::ZERO);
    let failed = Event::FetchFailed { worker: 2, transfer: 1, reason: "it hung up".to_owned() };
    assert_eq!(core.on(failed, Duration::ZERO), []);
    let actions = core.on(Event::Left { worker: 1, reason: "killed".to_owned() }, Duration::from_millis(400));
    assert!(matches!(&actions[..], [Action::Evict { worker: 1, .. }, Action::Wait { .. }]), "{actions:?}");
    assert!(core.membership.get(2).is_some());
}

#[test]
fn a_joiner_that_takes_too_long_is_evicted() {
    let mut core = catching_up().core;
    let mut actions = Vec::new();
    for second in 1..=600 {
        for worker in 1..=3 {
            core.on(Event::Heard { worker }, Duration::from_secs(second));
        }
        actions = core.on(Event::Tick, Duration::from_secs(second));
        assert_eq!(actions.is_empty(), second < 600, "after {second} s");
    }
    assert!(matches!(&actions[0], Action::Evict { worker: 3, .. }), "{actions:?}");
    assert_eq!(core.group, [1, 2]);
}

#[test]
fn the_last_member_lost_leaves_the_run_to_a_joiner_that_has_caught_up() {
    let mut world = catching_up();
    world.join(); // a second one, so that the first has to wait
    while world.core.transfers.values().all(|transfer| !format!("{transfer:?}").contains("Done")) {
        assert!(world.turn(3) || world.turn(1) || world.turn(2));
    }
    world.kill(1);
    world.kill(2);
    world.settle();
    assert_eq!((world.committed.len(), world.ending), (6, Some(Ending::Finished)));
}

#[test]
fn a_stop_while_a_joiner_catches_up_closes_at_once() {
    let mut world = catching_up();
    world.event(Event::StopRequested);
    world.settle();
    let next_step = world.committed.len() as u64;
    assert_eq!(world.ending, Some(Ending::Interrupted { next_step }));
    assert_eq!(world.done.last(), Some(&(Milestone::Checkpoint, next_step)));
}

#[test]
fn workers_beyond_the_slots_wait_as_spares_and_take_over() {
    let mut world = World::new(config(8, 2));
    for _ in 0..3 {
        world.join();
    }
    while world.committed.len() < 3 {
        for worker in 1..=5 {
            world.turn(worker);
        }
    }
    assert_eq!(world.core.group, [1, 2, 3, 4]);
    world.kill(2);
    world.settle();
    assert_eq!((world.committed.len(), world.ending), (8, Some(Ending::Finished)));
    assert_eq!(world.workers[&5].applied.len(), 8, "the spare has taken the slot");
}

#[test]
fn more_workers_than_slots_and_spares_are_refused_with_the_reason() {
    let mut core = RunState::new(config(3, 2), Duration::ZERO);
    for worker in 1..=8 {
        assert_eq!(
            core.on(Event::Joined { worker, former: None }, Duration::ZERO),
            [Action::Welcome { worker, catch_up: false }]
        );
    }
    let actions = core.on(Event::Joined { worker: 9, former: None }, Duration::ZERO);
    let Some(Action::Refuse { worker: 9, reason }) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(reason, "the run has 8 workers already: 4 can share its 4 slots, the others wait as spares");
}

/// Three workers vote; each row is a round of votes on step 0. Returns the group afterwards, or the failure.
fn after_votes(rounds: &[[&str; 3]]) -> Result<Vec<WorkerId>, String> {
    let mut core = World::new(config(3, 3)).core;
    for votes in rounds {
        let generation = core.generation;
        for (worker, hash) in (1..).zip(votes) {
            let gradient_hash = (*hash).to_owned();
            let actions = core.on(Event::Reduced { worker, generation, step: 0, gradient_hash }, Duration::ZERO);
            if let Some(Action::Ended(Ending::Failed { reason })) = actions.last() {
                return Err(reason.clone());
            }
        }
    }
    Ok(core.group)
}

#[test]
fn a_worker_that_differs_twice_from_the_majority_is_expelled() {
    assert_eq!(after_votes(&[["a", "b", "a"]]), Ok(vec![1, 2, 3]));
    assert_eq!(after_votes(&[["a", "b", "a"], ["a", "c", "a"]]), Ok(vec![1, 3]));
    assert_eq!(after_votes(&[["a", "b", "c"], ["a", "a", "b"]]), Ok(vec![1, 2]));
    // Another one each time: computed again, until it is too often.
    assert_eq!(after_votes(&[["a", "b", "a"], ["b", "a", "a"]]), Ok(vec![1, 2, 3]));
    let turns = [["a", "b", "a"], ["b", "a", "a"]];
    assert!(after_votes(&turns.repeat(3)).unwrap_err().contains("6 times in a row"));
    let error = after_votes(&[["a", "b", "c"], ["a", "b", "c"]]).unwrap_err();
    assert!(error.contains("no majority") && error.contains("worker 2: b"), "{error}");
}
