//! Workers that come back with what they hold: what the ledger says it is worth, who is waited for, and what ends the wait.

use super::*;

/// A coordinator started again after five commits of workers 1 and 2, and possibly more.
fn restarted(members: &[WorkerId]) -> RunState {
    let head = Head { step: 4, generation: 7, gradient_hash: "gradient 4".into(), previous_chain: chain(4) };
    let members = members.iter().copied().collect();
    let config = CoreConfig {
        first_step: 5,
        last_generation: 7,
        chain: chain(5),
        may_return: true,
        reunion: Some(LeftBehind { head, members, is_saved: false, is_complete: false }),
        ..config(9, 2)
    };
    RunState::new(config, Duration::ZERO)
}

/// A worker comes back, and says what it holds.
fn back(core: &mut RunState, worker: WorkerId, former: WorkerId, held: Held, second: u64) -> Vec<Action> {
    let now = Duration::from_secs(second);
    let former = (former > 0).then_some(former);
    let mut actions = core.on(Event::Joined { worker, former }, now);
    actions.extend(core.on(Event::Ready { worker, held }, now));
    actions
}

fn at(next_step: u64) -> Held {
    Held { next_step, params_hash: "p".into(), chain: chain(next_step), pending: None }
}

fn voted(hash: &str) -> Held {
    Held { pending: Some((4, hash.into())), ..at(4) }
}

fn has_formed(actions: &[Action], members: &[WorkerId]) -> bool {
    actions.iter().any(|action| matches!(action, Action::Group { generation: 8, workers } if workers == members))
}

/// Lets time pass, in which the workers are heard.
fn wait(core: &mut RunState, seconds: std::ops::RangeInclusive<u64>) -> Vec<Action> {
    let mut actions = Vec::new();
    for second in seconds {
        let now = Duration::from_secs(second);
        for worker in core.membership.all() {
            actions.extend(core.on(Event::Heard { worker }, now));
        }
        actions.extend(core.on(Event::Tick, now));
    }
    actions
}

#[test]
fn when_all_are_back_the_run_goes_on_at_once() {
    let mut core = restarted(&[1, 2]);
    let actions = back(&mut core, 3, 2, at(5), 1);
    assert!(actions.contains(&Action::Welcome { worker: 3, catch_up: true }), "{actions:?}");
    assert!(!has_formed(&actions, &[3]));
    let actions = back(&mut core, 4, 1, at(5), 2);
    assert!(has_formed(&actions, &[3, 4]), "{actions:?}");
    assert!(actions.contains(&Action::Plan { generation: 8, step: 5, workers: vec![3, 4] }));
}

#[test]
fn who_voted_and_did_not_hear_the_commit_applies_it() {
    let mut core = restarted(&[1, 2]);
    let actions = back(&mut core, 3, 1, voted("gradient 4"), 1);
    let apply = Action::Apply { generation: 7, step: 4, gradient_hash: "gradient 4".into(), workers: vec![3] };
    assert!(actions.contains(&apply), "{actions:?}");
    assert!(has_formed(&back(&mut core, 4, 2, at(5), 1), &[3, 4]));
}

#[test]
fn what_a_worker_held_is_told_once() {
    let mut core = restarted(&[1, 2]);
    back(&mut core, 3, 1, voted("gradient 4"), 1);
    let late = Event::Ready { worker: 3, held: voted("gradient 4") };
    assert_eq!(core.on(late, Duration::from_secs(1)), [], "it has applied the commit since");
}

#[test]
fn who_is_behind_is_sent_the_state_by_a_holder_before_the_next_step() {
    for behind in [at(3), voted("another gradient"), Held { chain: "another history".into(), ..at(5) }, Held::default()]
    {
        let mut core = restarted(&[1, 2]);
        back(&mut core, 3, 1, at(5), 1);
        let actions = back(&mut core, 4, 2, behind, 1);
        assert!(
            actions.iter().any(|action| matches!(action, Action::Offer { source: 3, joiner: 4, .. })),
            "{actions:?}"
        );
    }
}

#[test]
fn who_is_ahead_of_the_ledger_is_refused_by_name() {
    let mut core = restarted(&[1, 2]);
    let actions = back(&mut core, 3, 1, at(6), 1);
    let Some(Action::Refuse { worker: 3, reason }) = actions.last() else { panic!("{actions:?}") };
    assert!(reason.contains("it has made 6 steps, the ledger holds 5"), "{reason}");
    // Unless the steps were taken back while it was away.
    let mut core = restarted(&[1, 2]);
    core.config.rolled_back_from = 8;
    assert!(!back(&mut core, 3, 1, at(6), 1).iter().any(|action| matches!(action, Action::Refuse { .. })));
}

#[test]
fn who_does_not_come_back_in_time_is_not_waited_for() {
    let mut core = restarted(&[1, 2]);
    assert!(
        matches!(&wait(&mut core, 0..=0)[..], [Action::Wait { message }] if message.contains("up to 30 s for the 2"))
    );
    back(&mut core, 3, 1, at(5), 1);
    assert!(!has_formed(&wait(&mut core, 1..=29), &[3]));
    assert!(has_formed(&wait(&mut core, 30..=30), &[3]));
}

#[test]
fn when_nobody_has_the_state_the_run_goes_back_and_all_join_anew() {
    let mut core = restarted(&[1, 2]);
    back(&mut core, 3, 0, Held::default(), 1);
    assert_eq!(wait(&mut core, 1..=29).iter().filter(|action| matches!(action, Action::RollBack { .. })).count(), 0);
    let actions = wait(&mut core, 30..=30);
    assert!(
        matches!(&actions[..], [Action::StartOver { workers, .. }, Action::RollBack { .. }] if workers == &[3]),
        "{actions:?}"
    );
    let now = Duration::from_secs(31);
    assert_eq!(core.on(Event::RolledBack { next_step: 2, chain: chain(2) }, now), []);
    // An old holder that comes now is too late; whoever loads the checkpoint takes part.
    assert!(
        matches!(back(&mut core, 4, 1, at(5), 32).last(), Some(Action::StartOver { workers, .. }) if workers == &[4])
    );
    back(&mut core, 5, 0, at(2), 33);
    let actions = back(&mut core, 6, 0, at(2), 34);
    assert!(actions.contains(&Action::Plan { generation: 8, step: 2, workers: vec![5, 6] }), "{actions:?}");
}

#[test]
fn with_nobody_there_the_run_waits_longer_and_then_fails() {
    let mut core = restarted(&[1]);
    let actions = wait(&mut core, 0..=599);
    assert_eq!(actions.len(), 1, "{actions:?}");
    let actions = wait(&mut core, 600..=600);
    assert!(
        matches!(&actions[..], [Action::Ended(Ending::Failed { reason })] if reason.contains("no worker came back within 10 min")),
        "{actions:?}"
    );
}

#[test]
fn the_last_worker_lost_may_come_back_with_the_state() {
    let mut world = World::new(CoreConfig { may_return: true, ..config(6, 1) });
    while world.committed.len() < 3 {
        world.turn(1);
    }
    let done = world.committed.len() as u64;
    let mut core = world.core.clone();
    let actions = core.on(Event::Left { worker: 1, reason: "its link broke".into() }, Duration::ZERO);
    assert!(
        matches!(actions.last(), Some(Action::Wait { message }) if message.contains("its link broke")),
        "{actions:?}"
    );
    let held = Held { next_step: done, params_hash: "p".into(), chain: chain(done), pending: None };
    let actions = back(&mut core, 2, 1, held, 1);
    assert!(actions.contains(&Action::Plan { generation: 2, step: done, workers: vec![2] }), "{actions:?}");
}

#[test]
fn fewer_than_min_workers_wait_for_more_then_save_and_end() {
    let config = CoreConfig { min_workers: 2, may_return: true, ..config(6, 2) };
    let mut world = World::new(config);
    while world.committed.len() < 3 {
        let _ = world.turn(1) | world.turn(2);
    }
    world.kill(2);
    world.settle();
    let done = world.committed.len();
    assert!(done < 5 && world.ending.is_none(), "the run waits");
    let mut alone = world.core.clone();

    // Somebody comes: it is sent the state, and both go on.
    world.join();
    world.settle();
    assert_eq!((world.committed.len(), world.ending), (6, Some(Ending::Finished)));

    // Nobody comes.
    let actions = wait(&mut alone, 1..=601);
    let asked = |action: &&Action| matches!(action, Action::Milestone { milestone: Milestone::Checkpoint, .. });
    let Some(Action::Milestone { next_step, request, .. }) = actions.iter().find(asked) else { panic!("{actions:?}") };
    let saved = Event::Done {
        worker: 1,
        milestone: Milestone::Checkpoint,
        next_step: *next_step,
        request: *request,
        params_hash: None,
    };
    let actions = alone.on(saved, Duration::from_secs(602));
    let Some(Action::Ended(Ending::Failed { reason })) = actions.last() else { panic!("{actions:?}") };
    assert!(reason.contains("1 worker(s) for 10 min, and cluster.min_workers is 2"), "{reason}");
}

#[test]
fn a_finished_run_whose_coordinator_died_only_tells_its_workers() {
    let mut core = restarted(&[1]);
    (core.config.stop_step, core.reunion.is_complete) = (5, true);
    let actions = wait(&mut core, 0..=30);
    assert_eq!(actions.last(), Some(&Action::Ended(Ending::Finished)));
}
