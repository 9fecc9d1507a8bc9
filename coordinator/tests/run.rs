//! Whole runs over loopback with workers that speak the protocol but compute nothing: the coordinator, its ledger and
//! `verify`, without a model.

#[path = "run/checkpoints.rs"]
mod checkpoints;
#[path = "run/lab.rs"]
mod lab;

use ballast_coordinator::report::{ReportOptions, report};
use ballast_coordinator::verify::{VerifyError, verify};
use ballast_coordinator::{LEDGER_FILE, Outcome, RunError, RunEvent};

use lab::{Fate, Fixture, perform};

fn stepped(events: &[RunEvent]) -> Vec<u64> {
    let step = |event: &RunEvent| if let RunEvent::Stepped { step, .. } = event { Some(*step) } else { None };
    events.iter().filter_map(step).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_committed_saved_and_verified() {
    let fixture = Fixture::new();
    // 5 + 3 = 8 occurrences an epoch in steps of 4; odd micro-batches may make it three steps.
    let run = fixture.create(&[]).unwrap();
    let total = run.total_steps();
    let (outcome, events, applied) = perform(run, &[Fate::Lives, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let all: Vec<_> = (0..total).collect();
    assert_eq!((stepped(&events), applied), (all.clone(), vec![all.clone(), all]));
    let drawn =
        |event: &RunEvent| if let RunEvent::SamplesDrawn { paths, .. } = event { Some(paths.len()) } else { None };
    assert_eq!(events.iter().filter_map(drawn).collect::<Vec<_>>(), [3, 3], "at the start and at the end");

    let verified = verify(&fixture.run_folder()).unwrap();
    assert_eq!((verified.committed_steps, verified.complete_epochs, verified.positions), (total, 3, 24));
    assert!(verified.checkpoints.contains(&total) && verified.checkpoints.len() <= 3, "{verified:?}");
    let schedule = std::fs::read_to_string(fixture.run_folder().join("logs/ep2_batch_schedule.txt")).unwrap();
    assert_eq!(schedule.lines().count(), 8);
    let report = report(&fixture.run_folder(), &ReportOptions::default()).unwrap();
    let more = report.folders.iter().find(|folder| folder.path == "more").unwrap();
    assert_eq!((report.total.exposures.delivered, report.total.exposures.intended), (24, Some(24)));
    assert_eq!((more.exposures.delivered, more.exposures.intended, more.loss.mean), (9, Some(9), Some(0.5)));
    assert_eq!((report.run.complete_epochs, report.run.total_steps, report.notes), (3, Some(total), vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_changes_nothing_in_the_ledger() {
    let fixture = Fixture::new();
    // A slot for each: a third worker of two slots would wait as a spare, and miss the first step.
    let run = fixture.create(&[("step.slots", "3")]).unwrap();
    let total = run.total_steps();
    let fates = [Fate::DiesAtPlan(1), Fate::Lives, Fate::DiesAtCommit(2)];
    let (outcome, events, applied) = perform(run, &fates, None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!(stepped(&events), (0..total).collect::<Vec<_>>());
    assert_eq!(applied[1], (0..total).collect::<Vec<_>>());
    assert_eq!(events.iter().filter(|event| matches!(event, RunEvent::WorkerLost { .. })).count(), 2);
    assert_eq!(verify(&fixture.run_folder()).unwrap().committed_steps, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_connections_close_together_end_one_generation() {
    let fixture = Fixture::new();
    let run = fixture.create(&[("step.slots", "6")]).unwrap();
    let total = run.total_steps();
    let fates = [[Fate::Lives; 1].as_slice(), &[Fate::DiesAtPlan(1); 5]].concat();
    let (outcome, events, _) = perform(run, &fates, None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let started = |event: &RunEvent| match event {
        RunEvent::Started { generation, world_size, .. } => Some((*generation, *world_size)),
        _ => None,
    };
    assert_eq!(events.iter().filter_map(started).collect::<Vec<_>>(), [(1, 6), (2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_resumes_where_it_was_saved() {
    let fixture = Fixture::new();
    let run = fixture.create(&[("cluster.plan_ahead", "1")]).unwrap();
    let total = run.total_steps();
    let (outcome, ..) = perform(run, &[Fate::Lives], Some(3)).await;
    let Outcome::Interrupted { next_step, checkpoint: Some(checkpoint) } = outcome.unwrap() else { panic!() };
    assert!((3..total).contains(&next_step) && checkpoint.ends_with(format!("checkpoints/step-{next_step:06}")));

    let run = fixture.resume(&[]).unwrap();
    assert_eq!(run.next_step(), next_step);
    let (outcome, events, _) = perform(run, &[Fate::Lives, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!(stepped(&events), (next_step..total).collect::<Vec<_>>());
    assert_eq!(verify(&fixture.run_folder()).unwrap().rollbacks, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_workers_all_died_goes_back_to_its_checkpoint() {
    let fixture = Fixture::new();
    let run = fixture.create(&[]).unwrap();
    let total = run.total_steps();
    let (outcome, ..) = perform(run, &[Fate::DiesAtCommit(4)], None).await;
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("no worker is left after 5 steps"), "{error}");

    let run = fixture.resume(&[]).unwrap();
    assert_eq!(run.next_step(), 4);
    let (outcome, ..) = perform(run, &[Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let report = verify(&fixture.run_folder()).unwrap();
    assert_eq!((report.rollbacks, report.committed_steps), (vec![(5, 4)], total));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_first_violation() {
    let fixture = Fixture::new();
    perform(fixture.create(&[]).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let ledger = fixture.run_folder().join(LEDGER_FILE);
    let whole = std::fs::read(&ledger).unwrap();
    let damage = |sql: &str| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(ledger.with_file_name(format!("{LEDGER_FILE}{suffix}")));
        }
        std::fs::write(&ledger, &whole).unwrap();
        rusqlite::Connection::open(&ledger).unwrap().execute_batch(sql).unwrap();
        match verify(&fixture.run_folder()) {
            Err(VerifyError::Violation(what)) => what,
            other => panic!("{sql}: {other:?}"),
        }
    };
    for (sql, what) in [
        ("DELETE FROM commits WHERE step = 1", "step 1 is missing"),
        (
            "DELETE FROM losses WHERE step = 2 AND position = (SELECT MIN(position) FROM losses WHERE step = 2)",
            "step 2: the schedule has",
        ),
        ("UPDATE losses SET sample = 6 - sample WHERE step = 0", "step 0: the schedule has"),
        ("UPDATE losses SET loss = 9 WHERE step = 3", "step 3: its losses were altered"),
        ("UPDATE commits SET generation = 9 WHERE step = 1", "step 1: the chain of commits is broken"),
        ("UPDATE epochs SET schedule_hash = 'x' WHERE epoch = 1", "epoch 1: the schedule's hash is"),
        ("DELETE FROM epochs WHERE epoch = 1", "epoch 1: the schedule's hash is"),
        ("UPDATE commits SET gradient_norm = 2 WHERE step = 1", "step 1: the chain of commits is broken"),
        ("UPDATE commits SET gradient_hash = zeroblob(32) WHERE step = 2", "step 2: the chain of commits is broken"),
        ("UPDATE commits SET chain = zeroblob(16) WHERE step = 2", "step 2: the chain of commits is broken"),
        ("UPDATE commits SET losses_hash = zeroblob(16) WHERE step = 2", "step 2: its losses were altered"),
        ("UPDATE commits SET epoch = 2 WHERE step = 0", "step 0 belongs to epoch 0, the ledger says 2"),
        ("UPDATE commits SET positions = 9 WHERE step = 1", "step 1: the commit's range of positions"),
        ("UPDATE losses SET weight = 7 WHERE step = 1", "step 1: its losses were altered"),
        ("UPDATE losses SET skipped = 'x' WHERE step = 1", "step 1: its losses were altered"),
        ("UPDATE losses SET copy = copy + 1 WHERE step = 1", "step 1: the schedule has"),
        (
            "INSERT INTO losses SELECT step, position + 90, sample, copy, timestep, loss, weight, skipped FROM losses \
          WHERE step = 1",
            "step 1: the schedule has nothing",
        ),
        (
            "INSERT INTO losses SELECT 99, position, sample, copy, timestep, loss, weight, skipped FROM losses \
          WHERE step = 1",
            "step 99 has a row in `losses` and is not among",
        ),
        ("UPDATE commits SET step = -1 WHERE step = 1", "step 1 is missing"),
        ("DELETE FROM members", "step 0: generation 1 has no members on record"),
        ("DELETE FROM losses WHERE step > 1; DELETE FROM commits WHERE step > 1", "is after the last committed step"),
        ("UPDATE checkpoints SET params_hash = 'x'", "its parameters are not those that the ledger names"),
        ("UPDATE checkpoints SET path = 'checkpoints/step-999999'", "checkpoints/step-999999 is damaged: cannot read"),
    ] {
        let found = damage(sql);
        assert!(found.contains(what), "{sql}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_other_data_is_refused_with_what_differs() {
    let fixture = Fixture::new();
    let run = fixture.create(&[("cluster.join_timeout", "2s")]).unwrap();
    let total = run.total_steps();
    let (outcome, events, applied) = perform(run, &[Fate::OtherData, Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    assert_eq!((applied[0].len(), applied[1].len() as u64), (0, total));
    let reason = |event: &RunEvent| match event {
        RunEvent::WorkerLost { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    let reasons: Vec<String> = events.iter().filter_map(reason).collect();
    assert!(
        reasons.len() == 1 && reasons[0].contains("its data in ") && reasons[0].contains("fingerprint x"),
        "{reasons:?}"
    );
}

#[test]
fn what_is_wrong_beforehand_is_said_before_anything_is_written() {
    let fixture = Fixture::new();
    let nothing_written = || !fixture.run_folder().exists();
    let error = |overrides: &[(&str, &str)]| fixture.create(overrides).map(drop).unwrap_err();
    let missing = error(&[("model.path", "/nowhere")]);
    assert!(missing.to_string().contains("no model in /nowhere") && missing.exit_code() == 2 && nothing_written());
    assert!(matches!(fixture.resume(&[]).map(drop), Err(RunError::NoRun { .. })));

    fixture.create(&[]).unwrap();
    assert!(matches!(error(&[]), RunError::RunExists { .. }));
    let changed = fixture.resume(&[("optimizer.lr", "0.5"), ("run.max_steps", "2")]).map(drop).unwrap_err();
    assert!(changed.to_string().contains("lr = 0.5"), "{changed}");
    std::fs::write(fixture.folder.path().join("data/more/multiply.txt"), "2").unwrap();
    let changed = fixture.resume(&[]).map(drop).unwrap_err();
    assert!(matches!(changed, RunError::DataChanged { .. }), "{changed}");
}
