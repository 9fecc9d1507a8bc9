//! What gradients travel over, and NCCL's id on its way.

use super::*;

fn able(number: u64) -> NcclAbility {
    NcclAbility::Able { version: "2.30.7".into(), device: format!("GPU-{number}"), shares_device: false }
}

fn id(byte: u8) -> NcclId {
    NcclId(vec![byte; NCCL_ID_BYTES])
}

/// A core whose workers are about to be ready, each with its ability.
fn core(collective: CollectiveKind, abilities: &[NcclAbility]) -> (RunState, Vec<Action>) {
    let config = CoreConfig { collective, sample_at: BTreeSet::new(), ..config(9, abilities.len()) };
    let mut core = RunState::new(config, Duration::ZERO);
    for (worker, ability) in (1..).zip(abilities) {
        core.on(Event::Joined { worker, former: None }, Duration::ZERO);
        core.on(Event::NcclAbility { worker, ability: ability.clone() }, Duration::ZERO);
    }
    let mut actions = Vec::new();
    for worker in 1..=abilities.len() as u64 {
        actions = core.on(Event::Ready { worker, held: held(0, "params".into()) }, Duration::ZERO);
    }
    (core, actions)
}

/// Whether a generation that uses NCCL was formed, by its number.
fn uses_nccl(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::UseNccl { generation, .. } => Some(*generation),
        _ => None,
    })
}

fn said(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::WithoutNccl { reason } => Some(reason.as_str()),
        _ => None,
    })
}

fn shared(actions: &[Action]) -> Option<(u64, &NcclId, &[WorkerId])> {
    actions.iter().find_map(|action| match action {
        Action::ShareNcclId { generation, id, workers } => Some((*generation, id, workers.as_slice())),
        _ => None,
    })
}

fn fail(core: &mut RunState, now: Duration) -> Vec<Action> {
    let (generation, step) = (core.generation, core.next_step);
    let reason = "unhandled system error".to_owned();
    let event = Event::CollectiveFailed { worker: 1, generation, step, peer_rank: Some(1), peer_closed: false, reason };
    decided(core, event, now)
}

fn lose(core: &mut RunState, worker: WorkerId) -> Vec<Action> {
    decided(core, Event::Left { worker, reason: "killed".into() }, Duration::ZERO)
}

/// What comes of an event once the core has gathered what belongs to it.
fn decided(core: &mut RunState, event: Event, now: Duration) -> Vec<Action> {
    let mut actions = core.on(event, now);
    if core.next_look().is_some() {
        actions.extend(settled(core));
    }
    actions
}

#[test]
fn all_of_a_group_or_none_use_nccl_and_the_reason_is_named() {
    let auto = CollectiveKind::Auto;
    let (_, actions) = core(auto, &[able(1), able(2), able(3)]);
    assert_eq!((uses_nccl(&actions), said(&actions)), (Some(1), None));
    let at = |wanted: fn(&Action) -> bool| actions.iter().position(wanted);
    let use_nccl = at(|action| matches!(action, Action::UseNccl { .. }));
    assert!(
        use_nccl < at(|action| matches!(action, Action::Group { .. })),
        "it is known before the group is announced"
    );

    let unable = NcclAbility::Unable { reason: "NCCL was not found".into() };
    let old = NcclAbility::Able { version: "2.18.5".into(), device: "GPU-9".into(), shares_device: false };
    let cases = [
        (vec![able(1), unable.clone()], "worker 2 cannot use NCCL: NCCL was not found"),
        (vec![unable, able(1), NcclAbility::OnCpu], "worker 1 cannot use NCCL: NCCL was not found, and 1 more cannot"),
        (vec![able(1), NcclAbility::OnCpu], "worker 2 cannot use NCCL: it computes on the CPU"),
        (vec![able(1), old], "worker 2 cannot use NCCL: it has NCCL 2.18.5, worker 1 has 2.30.7"),
        (vec![able(1), able(2), able(1)], "worker 3 cannot use NCCL: it has the same GPU as worker 1"),
    ];
    for (abilities, reason) in cases {
        let (_, actions) = core(auto, &abilities);
        assert_eq!(uses_nccl(&actions), None, "{abilities:?}");
        assert!(said(&actions).is_some_and(|said| said.starts_with(reason)), "{:?} {actions:?}", said(&actions));
    }
    // Nobody expects it: a CPU cluster, one worker alone, and who asked for direct connections.
    for (kind, abilities) in
        [(auto, vec![NcclAbility::OnCpu; 3]), (auto, vec![able(1)]), (CollectiveKind::Tcp, vec![able(1), able(2)])]
    {
        let (_, actions) = core(kind, &abilities);
        assert_eq!((uses_nccl(&actions), said(&actions)), (None, None), "{abilities:?}");
    }
    let shared = |number| match able(number) {
        NcclAbility::Able { version, device, .. } => NcclAbility::Able { version, device, shares_device: true },
        other => other,
    };
    assert_eq!(uses_nccl(&core(auto, &[shared(1), shared(1)]).1), Some(1), "as both libraries allow it");
}

#[test]
fn the_id_of_rank_0_goes_to_the_others_once_and_in_its_generation_alone() {
    let (mut core, _) = core(CollectiveKind::Auto, &[able(1), able(2), able(3)]);
    let mut offer = |worker, generation, byte| {
        let actions = core.on(Event::NcclId { worker, generation, id: id(byte) }, Duration::ZERO);
        shared(&actions).map(|(generation, id, workers)| (generation, id.clone(), workers.to_vec()))
    };
    assert_eq!(offer(2, 1, 1), None, "it is not rank 0");
    assert_eq!(offer(1, 0, 1), None, "of an earlier generation");
    assert_eq!(offer(1, 2, 1), None, "of one to come");
    assert_eq!(offer(1, 1, 5), Some((1, id(5), vec![2, 3])));
    assert_eq!(offer(1, 1, 6), None, "the others may have formed their group by the first");

    // Rank 0 dies before its id is there: worker 2 is the next one.
    let actions = lose(&mut core, 1);
    assert_eq!(uses_nccl(&actions), Some(2));
    let mut offer = |worker, generation| {
        let actions = core.on(Event::NcclId { worker, generation, id: id(9) }, Duration::ZERO);
        shared(&actions).map(|(generation, _, workers)| (generation, workers.to_vec()))
    };
    assert_eq!(offer(1, 1), None, "what the dead one had sent");
    assert_eq!(offer(2, 1), None);
    assert_eq!(offer(2, 2), Some((2, vec![3])));
}

#[test]
fn a_rank_0_that_cannot_make_an_id_sends_everybody_to_direct_connections() {
    let (mut core, _) = core(CollectiveKind::Auto, &[able(1), able(2)]);
    let reason = "no network".to_owned();
    let stale = core.on(Event::NcclUnusable { worker: 1, generation: 7, reason: reason.clone() }, Duration::ZERO);
    assert!(stale.is_empty(), "{stale:?}");
    let actions = core.on(Event::NcclUnusable { worker: 1, generation: 1, reason }, Duration::ZERO);
    assert_eq!((uses_nccl(&actions), said(&actions)), (None, Some("worker 1 cannot use NCCL: no network")));
    assert!(actions.contains(&Action::Group { generation: 2, workers: vec![1, 2] }), "{actions:?}");
    assert_eq!(said(&fail(&mut core, Duration::ZERO)), None, "said once");
    // Without it the others use NCCL again.
    let actions = lose(&mut core, 1);
    assert_eq!((uses_nccl(&actions), said(&actions)), (None, None), "one worker alone has nobody to talk to");
}

#[test]
fn a_run_that_insists_loses_who_cannot_make_an_id() {
    let (mut core, _) = core(CollectiveKind::Nccl, &[able(1), able(2), able(3)]);
    let event = Event::NcclUnusable { worker: 1, generation: 1, reason: "no network".into() };
    let actions = decided(&mut core, event, Duration::ZERO);
    assert!(
        matches!(&actions[0], Action::Evict { worker: 1, may_return: false, reason, .. } if reason.contains("no network")),
        "{actions:?}"
    );
    assert_eq!(uses_nccl(&actions), Some(2));
}

#[test]
fn three_failures_in_a_row_lead_to_direct_connections_for_a_while() {
    let (mut core, _) = core(CollectiveKind::Auto, &[able(1), able(2)]);
    for generation in 2..=3 {
        assert_eq!(uses_nccl(&fail(&mut core, Duration::ZERO)), Some(generation), "with an id of its own");
    }
    let actions = fail(&mut core, Duration::ZERO);
    assert_eq!(uses_nccl(&actions), None);
    let reason = said(&actions).expect("it is said");
    assert!(reason.contains("NCCL failed 3 times in a row") && reason.contains("unhandled system error"), "{reason}");
    assert!(
        !actions.iter().any(|action| matches!(action, Action::LeaveOut { .. })),
        "nobody is to blame by NCCL's word"
    );
    // Ten minutes later a new generation tries again.
    for second in 1..=601 {
        for worker in 1..=2 {
            core.on(Event::Heard { worker }, Duration::from_secs(second));
        }
        core.on(Event::Tick, Duration::from_secs(second));
    }
    assert!(uses_nccl(&fail(&mut core, Duration::from_secs(601))).is_some());
}

#[test]
fn a_step_between_failures_and_the_loss_of_a_worker_count_for_nothing() {
    let (mut core, _) = core(CollectiveKind::Auto, &[able(1), able(2), able(3)]);
    for step in 0..4 {
        for _ in 0..2 {
            assert!(uses_nccl(&fail(&mut core, Duration::ZERO)).is_some());
        }
        let generation = core.generation;
        for worker in 1..=3 {
            core.on(Event::Reduced { worker, generation, step, gradient_hash: "g".into() }, Duration::ZERO);
        }
        core.on(Event::Committed { step, chain: chain(step + 1) }, Duration::ZERO);
    }
    fail(&mut core, Duration::ZERO);
    fail(&mut core, Duration::ZERO);
    lose(&mut core, 3);
    assert!(uses_nccl(&fail(&mut core, Duration::ZERO)).is_some(), "the dead worker was why");
}

#[test]
fn a_run_that_insists_saves_and_ends_after_three_failures() {
    let (mut core, _) = core(CollectiveKind::Nccl, &[able(1), able(2)]);
    let generation = core.generation;
    for worker in 1..=2 {
        core.on(Event::Reduced { worker, generation, step: 0, gradient_hash: "g".into() }, Duration::ZERO);
    }
    core.on(Event::Committed { step: 0, chain: chain(1) }, Duration::ZERO);
    fail(&mut core, Duration::ZERO);
    fail(&mut core, Duration::ZERO);
    let actions = fail(&mut core, Duration::ZERO);
    let save = actions.iter().find_map(|action| match action {
        Action::Milestone { milestone: Milestone::Checkpoint, next_step: 1, request, workers } => {
            Some((*request, workers.clone()))
        }
        _ => None,
    });
    let (request, workers) = save.unwrap_or_else(|| panic!("{actions:?}"));
    let mut last = Vec::new();
    for worker in workers {
        let params_hash = Some("after 1".to_owned());
        let done = Event::Done { worker, milestone: Milestone::Checkpoint, next_step: 1, request, params_hash };
        last = core.on(done, Duration::ZERO);
    }
    let ending = last.iter().find_map(|action| match action {
        Action::Ended(Ending::Failed { reason }) => Some(reason.as_str()),
        _ => None,
    });
    assert!(ending.is_some_and(|reason| reason.contains("NCCL failed 3 times in a row")), "{last:?}");
}

#[test]
fn a_joiner_that_cannot_use_nccl_changes_what_the_next_generation_uses() {
    let (mut core, _) = core(CollectiveKind::Auto, &[able(1), able(2)]);
    core.on(Event::Joined { worker: 3, former: None }, Duration::ZERO);
    core.on(Event::NcclAbility { worker: 3, ability: NcclAbility::OnCpu }, Duration::ZERO);
    core.on(Event::Ready { worker: 3, held: held(0, "of the model folder".into()) }, Duration::ZERO);
    let generation = core.generation;
    for worker in 1..=2 {
        core.on(Event::Reduced { worker, generation, step: 0, gradient_hash: "g".into() }, Duration::ZERO);
    }
    let actions = core.on(Event::Committed { step: 0, chain: chain(1) }, Duration::ZERO);
    let (source, transfer) = actions
        .iter()
        .find_map(|action| match action {
            Action::Offer { source, transfer, .. } => Some((*source, *transfer)),
            _ => None,
        })
        .expect("the joiner is sent the state");
    core.on(Event::Offered { worker: source, transfer, state_hash: "s".into() }, Duration::ZERO);
    let actions = core.on(Event::CaughtUp { worker: 3, transfer, state_hash: "s".into() }, Duration::ZERO);
    assert_eq!(said(&actions), Some("worker 3 cannot use NCCL: it computes on the CPU"), "{actions:?}");
    let actions = lose(&mut core, 3);
    assert!(uses_nccl(&actions).is_some(), "without it they can again");
}
