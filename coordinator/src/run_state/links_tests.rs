//! Workers that cannot reach each other.

use super::*;

/// Each worker reports that it could not reach the one of this rank, in the generation in hand; then it is decided.
fn fail(core: &mut RunState, reports: &[(WorkerId, u32)]) -> Vec<Action> {
    let reports: Vec<_> = reports.iter().map(|(worker, rank)| (*worker, Some(*rank), false)).collect();
    report(core, &reports)
}

/// The same, where a peer may also have hung up, or none be named.
fn report(core: &mut RunState, reports: &[(WorkerId, Option<u32>, bool)]) -> Vec<Action> {
    let (generation, step) = (core.generation, core.next_step);
    for (worker, peer_rank, peer_closed) in reports {
        let (worker, peer_rank, peer_closed) = (*worker, *peer_rank, *peer_closed);
        let reason = "no route".to_owned();
        let event = Event::CollectiveFailed { worker, generation, step, peer_rank, peer_closed, reason };
        core.on(event, core.now);
    }
    settled(core)
}

/// Who was left out, and because of whom.
fn left_out(actions: &[Action]) -> Vec<(WorkerId, Vec<WorkerId>)> {
    let left_out = |action: &Action| match action {
        Action::LeaveOut { worker, peers, .. } => Some((*worker, peers.clone())),
        _ => None,
    };
    actions.iter().filter_map(left_out).collect()
}

/// Commits the step in hand and returns what follows.
fn commit(core: &mut RunState) -> Vec<Action> {
    let (step, generation) = (core.next_step, core.generation);
    for worker in core.group.clone() {
        core.on(Event::Reduced { worker, generation, step, gradient_hash: "g".into() }, core.now);
    }
    core.on(Event::Committed { step, chain: chain(step + 1) }, core.now)
}

#[test]
fn after_three_attempts_the_later_rank_of_a_pair_is_left_out_and_the_others_go_on() {
    let mut core = World::new(config(6, 3)).core;
    assert_eq!(left_out(&fail(&mut core, &[(2, 2)])), []);
    assert_eq!(left_out(&fail(&mut core, &[(3, 1), (2, 2)])), []);
    let actions = fail(&mut core, &[(2, 2)]);
    assert_eq!(left_out(&actions), [(3, vec![2])]);
    assert!(actions.contains(&Action::Group { generation: 4, workers: vec![1, 2] }), "{actions:?}");
    // As long as the other one is there it is not taken in again.
    let actions = commit(&mut core);
    assert!(!actions.iter().any(|action| matches!(action, Action::Offer { .. })), "{actions:?}");
    // When it has gone, the worker that was left out is sent the state.
    core.on(Event::Left { worker: 2, reason: "killed".into() }, core.now);
    settled(&mut core);
    let actions = commit(&mut core);
    assert!(actions.iter().any(|action| matches!(action, Action::Offer { source: 1, joiner: 3, .. })), "{actions:?}");
}

/// The first word of a broken link is often that of a third worker, whose own link was closed in consequence.
#[test]
fn whoever_was_only_hung_up_on_is_never_left_out() {
    let mut core = World::new(config(6, 4)).core;
    let attempt = |core: &mut RunState, reports: &[(WorkerId, Option<u32>, bool)]| left_out(&report(core, reports));
    // Workers 2 and 3 cannot reach each other. Workers 1 and 4 hear first that somebody has hung up.
    assert_eq!(attempt(&mut core, &[(1, Some(2), true), (4, Some(2), true), (3, Some(1), false)]), []);
    assert_eq!(attempt(&mut core, &[(4, Some(1), true), (1, Some(1), true), (2, Some(2), false)]), []);
    let third = [(1, Some(2), true), (4, Some(1), true), (2, Some(2), false), (3, Some(1), false)];
    assert_eq!(attempt(&mut core, &third), [(3, vec![2])]);
    assert_eq!(core.group, [1, 2, 4]);
}

/// Something between the two closes the connection, so that each says it of the other.
#[test]
fn a_pair_that_says_of_each_other_that_they_hung_up_cannot_reach_each_other() {
    let mut core = World::new(config(6, 3)).core;
    for _ in 0..2 {
        assert_eq!(left_out(&report(&mut core, &[(1, Some(1), true), (2, Some(0), true), (3, Some(0), true)])), []);
    }
    let actions = report(&mut core, &[(1, Some(1), true), (2, Some(0), true), (3, Some(0), true)]);
    assert_eq!(left_out(&actions), [(2, vec![1])]);
}

/// One that can reach nobody shows by another pair each time.
#[test]
fn the_one_whose_links_fail_every_time_is_left_out_whoever_reports_it() {
    let mut core = World::new(config(6, 3)).core;
    assert_eq!(left_out(&fail(&mut core, &[(1, 2)])), []);
    assert_eq!(left_out(&fail(&mut core, &[(1, 1)])), []);
    assert_eq!(left_out(&fail(&mut core, &[(3, 0)])), [(1, vec![3])]);
    // Reported alike each time: the one with more failed links.
    let mut core = World::new(config(6, 3)).core;
    for attempt in 1..=3 {
        let expected = if attempt == 3 { vec![(1, vec![2, 3])] } else { vec![] };
        assert_eq!(left_out(&fail(&mut core, &[(1, 1), (3, 0)])), expected);
    }
    assert_eq!(core.group, [2, 3]);
}

/// Worker 1 waits for what worker 2 cannot finish without worker 3, and says so at the same time.
#[test]
fn a_link_that_failed_once_in_consequence_is_not_kept_apart() {
    let mut core = World::new(config(6, 3)).core;
    assert_eq!(left_out(&fail(&mut core, &[(1, 1), (2, 2)])), []);
    assert_eq!(left_out(&fail(&mut core, &[(2, 2)])), []);
    assert_eq!(left_out(&fail(&mut core, &[(3, 1)])), [(3, vec![2])]);
    assert_eq!((&core.group[..], core.links.reach(1, &[2, 3])), (&[1, 2][..], true));
}

#[test]
fn of_two_broken_pairs_one_of_each_is_left_out() {
    let mut core = World::new(config(6, 4)).core;
    for _ in 0..2 {
        assert_eq!(left_out(&fail(&mut core, &[(1, 1), (3, 3)])), []);
    }
    assert_eq!(left_out(&fail(&mut core, &[(1, 1), (4, 2)])), [(4, vec![3]), (2, vec![1])]);
    assert_eq!(core.group, [1, 3]);
}

#[test]
fn a_commit_between_failures_and_failures_of_nobody_in_particular_count_for_nothing() {
    let mut core = World::new(config(6, 2)).core;
    for _ in 0..9 {
        assert_eq!(left_out(&report(&mut core, &[(1, None, false)])), []);
        assert_eq!(left_out(&fail(&mut core, &[(1, 0)])), [], "nobody fails to reach itself");
    }
    for _ in 0..4 {
        for _ in 0..2 {
            assert_eq!(left_out(&fail(&mut core, &[(1, 1)])), []);
        }
        commit(&mut core);
    }
}

#[test]
fn after_ten_minutes_a_pair_is_tried_again() {
    let mut core = World::new(config(6, 2)).core;
    for _ in 0..3 {
        fail(&mut core, &[(1, 1)]);
    }
    assert_eq!((&core.group[..], core.next_joiners()), (&[1][..], vec![]));
    wait(&mut core, 1..=601);
    assert_eq!(core.next_joiners(), [2]);
}

fn wait(core: &mut RunState, seconds: std::ops::RangeInclusive<u64>) -> Vec<Action> {
    let mut actions = Vec::new();
    for second in seconds {
        for worker in 1..=2 {
            core.on(Event::Heard { worker }, Duration::from_secs(second));
        }
        actions.extend(core.on(Event::Tick, Duration::from_secs(second)));
    }
    actions
}

/// Both hold the state, and only one of them can train: fewer than `min_workers` never do.
#[test]
fn a_pair_that_is_all_there_is_waits_for_others_or_for_its_link() {
    let config = CoreConfig { min_workers: 2, may_return: true, max_wait: Duration::from_secs(3600), ..config(6, 2) };
    let mut core = World::new(config).core;
    commit(&mut core);
    for _ in 0..2 {
        fail(&mut core, &[(1, 1)]);
    }
    let actions = fail(&mut core, &[(1, 1)]);
    assert!(
        matches!(actions.last(), Some(Action::Wait { message }) if message.contains("1 of at least 2")),
        "{actions:?}"
    );
    assert!(!wait(&mut core, 1..=600).iter().any(|action| matches!(action, Action::Plan { .. })));
    let actions = wait(&mut core, 601..=602);
    assert!(actions.contains(&Action::Plan { generation: 4, step: 1, workers: vec![1, 2] }), "{actions:?}");
}
