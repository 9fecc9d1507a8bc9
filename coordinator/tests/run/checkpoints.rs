//! Checkpoints: which are taken, taken up, passed over, kept and deleted.

use ballast_common::checkpoint::STATE_FILE;
use ballast_coordinator::verify::{VerifyError, verify};
use ballast_coordinator::{LEDGER_FILE, Outcome, RunEvent};

use crate::lab::{Fate, Fixture, perform};

/// Steps of the checkpoints that are on disk, by their names.
fn on_disk(fixture: &Fixture) -> Vec<u64> {
    let entries = std::fs::read_dir(fixture.run_folder().join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = entries
        .filter_map(|entry| ballast_common::checkpoint::steps_of_name(entry.unwrap().file_name().to_str().unwrap()))
        .collect();
    steps.sort_unstable();
    steps
}

/// Every checkpoint stays.
const KEEP_ALL: (&str, &str) = ("checkpoint.keep_last", "99");

#[tokio::test(flavor = "multi_thread")]
async fn damaged_checkpoints_are_passed_over_by_name_and_the_rollback_is_on_record() {
    let fixture = Fixture::new();
    let often = [KEEP_ALL, ("run.epochs", "6")];
    perform(fixture.create(&often).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let steps = on_disk(&fixture);
    let [_, good, wrong, missing, cut, newest] = steps[..] else { panic!("{steps:?}") };
    let folder = |step: u64| fixture.run_folder().join(format!("checkpoints/step-{step:06}"));
    // A byte flipped, a file cut short, a file gone, and one that is whole and not what the ledger says.
    let mut bytes = std::fs::read(folder(newest).join("weights")).unwrap();
    bytes[3] ^= 1;
    std::fs::write(folder(newest).join("weights"), bytes).unwrap();
    let bytes = std::fs::read(folder(cut).join("weights")).unwrap();
    std::fs::write(folder(cut).join("weights"), &bytes[..3]).unwrap();
    std::fs::remove_file(folder(missing).join("weights")).unwrap();
    let state = folder(wrong).join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace(&format!("after {wrong}"), "other bits")).unwrap();
    assert!(matches!(verify(&fixture.run_folder()), Err(VerifyError::Violation(_))));

    let run = fixture.resume(&often).unwrap();
    let total = run.total_steps();
    assert_eq!(run.next_step(), good);
    let ledger = rusqlite::Connection::open(fixture.run_folder().join(LEDGER_FILE)).unwrap();
    let reason: String = ledger.query_row("SELECT reason FROM rollbacks", [], |row| row.get(0)).unwrap();
    for part in [
        format!("resumed from checkpoints/step-{good:06}"),
        format!(
            "passed over checkpoints/step-{newest:06}: {} is damaged: its hash",
            folder(newest).join("weights").display()
        ),
        format!("passed over checkpoints/step-{cut:06}: "),
        "it has 3 bytes".to_owned(),
        format!("cannot read {}", folder(missing).join("weights").display()),
        format!("passed over checkpoints/step-{wrong:06}: its parameters are not those that the ledger names"),
    ] {
        assert!(reason.contains(&part), "{part}\n{reason}");
    }
    drop(ledger);
    let (outcome, ..) = perform(run, &[Fate::Lives], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let report = verify(&fixture.run_folder()).unwrap();
    assert_eq!((report.rollbacks, report.checkpoints, report.strangers), (vec![(total, good)], steps, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_was_finished_without_the_coordinator_is_taken_up_if_it_belongs_to_the_ledger() {
    let fixture = Fixture::new();
    perform(fixture.create(&[KEEP_ALL]).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    let (total, forget) = (*on_disk(&fixture).last().unwrap(), "DELETE FROM checkpoints WHERE next_step > 2");
    let execute = |sql: &str| {
        rusqlite::Connection::open(fixture.run_folder().join(LEDGER_FILE)).unwrap().execute_batch(sql).unwrap();
    };
    execute(forget);
    assert!(!verify(&fixture.run_folder()).unwrap().strangers.is_empty());
    assert_eq!(fixture.resume(&[KEEP_ALL]).unwrap().next_step(), total);
    assert_eq!(verify(&fixture.run_folder()).unwrap().checkpoints, [2, total]);
    // The same files beside a ledger with other commits: nobody may go on from them.
    execute(forget);
    let state = fixture.run_folder().join(format!("checkpoints/step-{total:06}")).join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    let (before, chain) = text.split_once("\"chain\":\"").unwrap();
    std::fs::write(&state, format!("{before}\"chain\":\"{}{}", "0".repeat(32), &chain[32..])).unwrap();
    let next = fixture.resume(&[KEEP_ALL]).unwrap().next_step();
    assert!(next < total, "{next}");
    // One that the ledger does name is a violation then.
    let state = fixture.run_folder().join("checkpoints/step-000002").join(STATE_FILE);
    let text = std::fs::read_to_string(&state).unwrap();
    let (before, chain) = text.split_once("\"chain\":\"").unwrap();
    std::fs::write(&state, format!("{before}\"chain\":\"{}{}", "0".repeat(32), &chain[32..])).unwrap();
    let Err(VerifyError::Violation(what)) = verify(&fixture.run_folder()) else { panic!("it is sound") };
    assert_eq!(what, "checkpoints/step-000002 is damaged: it belongs to other commits than the ledger's");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_checkpoints_go_but_for_those_that_are_kept_or_read() {
    let fixture = Fixture::new();
    let keep = [
        ("run.epochs", "9"),
        ("checkpoint.every_steps", "3"),
        ("checkpoint.keep_last", "1"),
        ("checkpoint.keep_every_steps", "6"),
    ];
    let run = fixture.create(&keep).unwrap();
    let total = run.total_steps();
    perform(run, &[Fate::Lives], None).await.0.unwrap();
    let mut kept: Vec<u64> = (1..=total).filter(|step| step % 6 == 0 || *step == total).collect();
    assert_eq!(verify(&fixture.run_folder()).unwrap().checkpoints, kept);
    assert_eq!(on_disk(&fixture), kept);

    // Now fewer are wanted; one that is being read stays for as long.
    let folder = |step: u64| fixture.run_folder().join(format!("checkpoints/step-{step:06}"));
    let reading = ballast_common::checkpoint::Hold::take(&folder(6));
    let keep = &keep[..3];
    perform(fixture.resume(keep).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    kept.retain(|step| *step == 6 || *step == total);
    assert_eq!(on_disk(&fixture), kept);
    drop(reading);
    perform(fixture.resume(keep).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    assert_eq!((on_disk(&fixture), verify(&fixture.run_folder()).unwrap().checkpoints), (vec![total], vec![total]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_asks_for_checkpoints_too() {
    let fixture = Fixture::new();
    // So short that the first look at the clock, a millisecond after the start, asks for one.
    let often = [KEEP_ALL, ("checkpoint.every_steps", "0"), ("checkpoint.every_minutes", "1e-7")];
    perform(fixture.create(&often).unwrap(), &[Fate::Lives], None).await.0.unwrap();
    assert!(on_disk(&fixture).len() > 1, "only the last one is there: {:?}", on_disk(&fixture));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_written_stops_nothing() {
    let fixture = Fixture::new();
    let run = fixture.create(&[KEEP_ALL]).unwrap();
    let total = run.total_steps();
    let (outcome, events, _) = perform(run, &[Fate::CannotSave], None).await;
    assert_eq!(outcome.unwrap(), Outcome::Finished { next_step: total });
    let saved = events.iter().filter(|event| matches!(event, RunEvent::CheckpointSaved { .. })).count();
    assert_eq!((saved, on_disk(&fixture)), (1, vec![total]), "the last one alone");

    // With a second worker whose disk has room, that one writes.
    let fixture = Fixture::new();
    let run = fixture.create(&[KEEP_ALL]).unwrap();
    perform(run, &[Fate::CannotSave, Fate::Lives], None).await.0.unwrap();
    assert!(on_disk(&fixture).contains(&4), "{:?}", on_disk(&fixture));
}
