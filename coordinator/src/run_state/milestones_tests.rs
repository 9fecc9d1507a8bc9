//! Checkpoints that are written while the run goes on.

use super::*;

/// A run of two workers that saves after every step, driven by hand.
fn core(stop_step: u64) -> RunState {
    let mut config = config(stop_step, 2);
    config.checkpoint_at = (1..stop_step).collect();
    config.sample_at.clear();
    World::new(config).core
}

fn on(core: &mut RunState, event: Event) -> Vec<Action> {
    core.on(event, Duration::ZERO)
}

/// A worker is killed.
fn kill(core: &mut RunState, worker: WorkerId) -> Vec<Action> {
    on(core, Event::Left { worker, reason: "killed".to_owned() });
    settled(core)
}

/// Commits the step in hand and returns what follows.
fn commit(core: &mut RunState) -> Vec<Action> {
    let (step, generation) = (core.next_step(), core.generation);
    for worker in core.group.clone() {
        on(core, Event::Reduced { worker, generation, step, gradient_hash: "g".to_owned() });
    }
    on(core, Event::Committed { step, chain: format!("c{}", step + 1) })
}

/// Returns the writer, the steps and the number of the request for a checkpoint among the actions.
fn request(actions: &[Action]) -> Option<(WorkerId, u64, u64)> {
    actions.iter().find_map(|action| match action {
        Action::Milestone { milestone: Milestone::Checkpoint, next_step, request, workers } => {
            Some((workers[0], *next_step, *request))
        }
        _ => None,
    })
}

fn saved(worker: WorkerId, next_step: u64, request: u64) -> Event {
    let params_hash = Some(format!("after {next_step}"));
    Event::Done { worker, milestone: Milestone::Checkpoint, next_step, request, params_hash }
}

fn done(next_step: u64) -> Action {
    Action::MilestoneDone { milestone: Milestone::Checkpoint, next_step }
}

#[test]
fn a_slow_save_holds_nothing_up_and_does_not_pile_up() {
    let mut core = core(9);
    let (writer, next_step, number) = request(&commit(&mut core)).unwrap();
    assert_eq!((writer, next_step), (1, 1));
    on(&mut core, saved(2, 1, number));
    for next_step in 2..5 {
        let actions = commit(&mut core);
        assert!(actions.contains(&Action::CheckpointSkipped { next_step, busy_with: 1 }), "{actions:?}");
        assert_eq!(request(&actions), None);
    }
    assert_eq!(on(&mut core, saved(1, 1, number)), [done(1)]);
    assert_eq!(request(&commit(&mut core)).map(|(writer, next_step, _)| (writer, next_step)), Some((1, 5)));
}

#[test]
fn a_writer_that_dies_is_replaced_and_the_present_state_is_saved() {
    let mut core = core(9);
    let (_, _, number) = request(&commit(&mut core)).unwrap();
    on(&mut core, saved(2, 1, number));
    commit(&mut core);
    let actions = kill(&mut core, 1);
    let (writer, next_step, again) = request(&actions).unwrap();
    assert_eq!((writer, next_step), (2, 2), "the state after one step is gone");
    assert_eq!(on(&mut core, saved(1, 1, number)), [], "the dead one is not heard");
    assert_eq!(on(&mut core, saved(2, 2, again)), [done(2)]);
}

#[test]
fn a_save_outlives_the_loss_of_somebody_else() {
    let mut core = core(9);
    let (_, _, number) = request(&commit(&mut core)).unwrap();
    commit(&mut core);
    let actions = kill(&mut core, 2);
    assert_eq!(request(&actions), None, "{actions:?}");
    assert_eq!(on(&mut core, saved(1, 1, number)), [done(1)], "nobody waits for the dead one's hash");
}

#[test]
fn a_save_that_is_done_but_for_the_hash_of_a_dead_worker_counts() {
    let mut core = core(9);
    let (_, _, number) = request(&commit(&mut core)).unwrap();
    assert_eq!(on(&mut core, saved(1, 1, number)), []);
    let actions = kill(&mut core, 2);
    assert!(actions.contains(&done(1)), "{actions:?}");
}

#[test]
fn a_failed_save_is_tried_at_the_next_point_by_somebody_else() {
    let mut core = core(9);
    let failed =
        |worker, next_step, request| Event::SaveFailed { worker, milestone: Milestone::Checkpoint, next_step, request };
    for expected in [(1, 1), (2, 2), (1, 3)] {
        let (writer, next_step, number) = request(&commit(&mut core)).unwrap();
        assert_eq!((writer, next_step), expected);
        assert_eq!(on(&mut core, failed(writer, next_step, number + 1)), [], "another request's answer");
        assert_eq!(on(&mut core, failed(writer, next_step, number)), []);
    }
}

#[test]
fn a_run_that_stops_waits_for_the_save_in_flight() {
    let mut core = core(9);
    let (_, _, first) = request(&commit(&mut core)).unwrap();
    on(&mut core, saved(2, 1, first));
    on(&mut core, Event::StopRequested);
    let (writer, next_step, last) = request(&commit(&mut core)).unwrap();
    assert_eq!((writer, next_step), (1, 2), "the last one is never left out");
    on(&mut core, saved(2, 2, last));
    assert_eq!(on(&mut core, saved(1, 2, last)), [done(2)], "the one before is still being written");
    let actions = on(&mut core, saved(1, 1, first));
    assert_eq!(actions.last(), Some(&Action::Ended(Ending::Interrupted { next_step: 2 })), "{actions:?}");
}

#[test]
fn a_worker_lost_while_the_run_closes_is_replaced_without_a_generation() {
    let mut core = core(1);
    let (writer, _, number) = request(&commit(&mut core)).unwrap();
    assert_eq!((writer, core.generation), (1, 1));
    let actions = on(&mut core, Event::Left { worker: 1, reason: "killed".to_owned() });
    let (writer, next_step, again) = request(&actions).unwrap();
    assert_eq!((writer, next_step, core.generation), (2, 1, 1));
    assert_eq!(on(&mut core, saved(1, 1, number)), []);
    let asked = |action: &Action| match action {
        Action::Milestone { milestone, request, .. } => Some((*milestone, *request)),
        _ => None,
    };
    let asked: Vec<_> = actions.iter().filter_map(asked).collect();
    assert!(asked.contains(&(Milestone::Checkpoint, again)) && asked.len() == 3, "{actions:?}");
    let answers = asked.into_iter().flat_map(|(milestone, request)| {
        let params_hash = Some("after 1".to_owned());
        on(&mut core, Event::Done { worker: 2, milestone, next_step: 1, request, params_hash })
    });
    let actions: Vec<Action> = answers.collect();
    assert_eq!(actions.last(), Some(&Action::Ended(Ending::Finished)), "{actions:?}");
}

#[test]
fn the_clock_asks_for_a_checkpoint_after_the_step_in_hand() {
    let mut core = World::new(CoreConfig { checkpoint_at: BTreeSet::new(), ..config(9, 1) }).core;
    assert_eq!(on(&mut core, Event::CheckpointDue), []);
    assert_eq!(request(&commit(&mut core)).map(|(_, next_step, _)| next_step), Some(1));
    assert_eq!(request(&commit(&mut core)), None, "once is once");
}

#[test]
fn other_parameters_on_one_worker_end_the_run() {
    let mut core = core(9);
    let (_, _, number) = request(&commit(&mut core)).unwrap();
    on(&mut core, saved(2, 1, number));
    let event = Event::Done {
        worker: 1,
        milestone: Milestone::Checkpoint,
        next_step: 1,
        request: number,
        params_hash: Some("others".to_owned()),
    };
    assert!(matches!(on(&mut core, event).last(), Some(Action::Ended(Ending::Failed { .. }))));
}
