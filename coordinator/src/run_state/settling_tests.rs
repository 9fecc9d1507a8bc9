//! What is gathered when a generation breaks, and for how long.

use super::*;

fn left(core: &mut RunState, worker: WorkerId, millis: u64) -> Vec<Action> {
    core.on(Event::Left { worker, reason: "its connection broke".to_owned() }, Duration::from_millis(millis))
}

/// A worker says that a peer has hung up, or could not be reached.
fn failed(core: &mut RunState, worker: WorkerId, peer_rank: u32, peer_closed: bool, millis: u64) -> Vec<Action> {
    let (generation, step, reason) = (core.generation, core.next_step, "broken".to_owned());
    let event = Event::CollectiveFailed { worker, generation, step, peer_rank: Some(peer_rank), peer_closed, reason };
    core.on(event, Duration::from_millis(millis))
}

fn look_at(core: &RunState) -> Option<u64> {
    core.next_look().map(|at| at.as_millis() as u64)
}

fn groups(actions: &[Action]) -> Vec<Vec<WorkerId>> {
    let group = |action: &Action| match action {
        Action::Group { workers, .. } => Some(workers.clone()),
        _ => None,
    };
    actions.iter().filter_map(group).collect()
}

/// A job that is cancelled, or a switch that dies, closes many connections, one shortly after the other.
#[test]
fn connections_that_close_together_end_one_generation() {
    let mut core = World::new(CoreConfig { slots: 8, ..config(3, 8) }).core;
    for (worker, millis) in (3..=8).zip([0, 1, 1, 30, 70, 110]) {
        let actions = left(&mut core, worker, millis);
        assert!(matches!(&actions[..], [Action::Evict { .. }]), "{actions:?}");
    }
    assert_eq!((look_at(&core), core.generation), (Some(160), 1));
    let actions = settled(&mut core);
    assert_eq!(groups(&actions), [[1, 2]]);
    let Some(Action::Abort { reason, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(reason, "worker 3 and 5 more were lost: its connection broke");
}

#[test]
fn one_loss_is_acted_on_after_a_moment_and_no_series_of_them_puts_it_off_for_long() {
    let mut core = World::new(CoreConfig { slots: 32, ..config(3, 32) }).core;
    left(&mut core, 2, 0);
    assert_eq!(look_at(&core), Some(50));
    assert_eq!(core.clone().on(Event::Tick, Duration::from_millis(49)), []);
    assert_eq!(groups(&core.clone().on(Event::Tick, Duration::from_millis(50))).len(), 1);
    for worker in 3..=12 {
        left(&mut core, worker, 45 * (worker - 2));
    }
    assert_eq!(look_at(&core), Some(500));
    assert_eq!(groups(&settled(&mut core)), [[&[1][..], &(13..=32).collect::<Vec<_>>()].concat()]);
}

/// Its peers often know before the coordinator does.
#[test]
fn a_worker_whose_peers_say_that_it_hung_up_is_waited_for_and_its_death_ends_one_generation() {
    let mut core = World::new(config(3, 4)).core;
    for worker in [1, 2, 4] {
        assert_eq!(failed(&mut core, worker, 2, true, 0), []);
    }
    assert_eq!(look_at(&core), Some(500));
    left(&mut core, 3, 120);
    assert_eq!(look_at(&core), Some(170));
    let actions = settled(&mut core);
    assert_eq!(groups(&actions), [[1, 2, 4]]);
    assert!(matches!(&actions[0], Action::Abort { reason, .. } if reason.contains("worker 3 was lost")), "{actions:?}");
}

#[test]
fn a_peer_that_says_why_it_hung_up_is_not_waited_for_and_its_reason_is_told() {
    let mut core = World::new(config(3, 3)).core;
    failed(&mut core, 1, 1, true, 0);
    assert_eq!(look_at(&core), Some(500));
    failed(&mut core, 2, 2, false, 10);
    assert_eq!(look_at(&core), Some(60));
    let actions = settled(&mut core);
    assert_eq!(groups(&actions), [[1, 2, 3]], "they try again");
    assert!(
        matches!(&actions[0], Action::Abort { reason, .. } if reason == "the collective failed on worker 2: broken"),
        "{actions:?}"
    );
}

#[test]
fn votes_and_reports_of_the_broken_generation_change_nothing_and_a_stop_is_heard() {
    let mut core = World::new(config(9, 2)).core;
    failed(&mut core, 1, 1, false, 0);
    for worker in [1, 2] {
        let vote = Event::Reduced { worker, generation: 1, step: 0, gradient_hash: "g".to_owned() };
        assert_eq!(core.on(vote, Duration::ZERO), []);
    }
    assert_eq!(core.on(Event::StopRequested, Duration::ZERO), []);
    let actions = settled(&mut core);
    assert!(actions.contains(&Action::Plan { generation: 2, step: 0, workers: vec![1, 2] }), "{actions:?}");
    assert_eq!(core.config.stop_step, 1, "the step in hand is finished");
    assert_eq!(failed(&mut core, 2, 0, false, 70), []);
    assert_eq!(look_at(&core), Some(120), "a report of the new generation");
}

#[test]
fn when_all_are_lost_nothing_more_is_waited_for() {
    let mut core = World::new(CoreConfig { may_return: true, ..config(3, 2) }).core;
    left(&mut core, 1, 0);
    let actions = left(&mut core, 2, 10);
    assert!(matches!(actions.last(), Some(Action::Wait { .. })), "{actions:?}");
}
