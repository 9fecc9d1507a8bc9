//! The ledger keeps what it is given, once, in order, and says when it was rolled back.

use ballast_common::dataset::Decimal;

use super::*;

pub(super) fn commit(step: u64) -> Commit {
    let row = |position| LossRow {
        position,
        sample: 1,
        copy: 0,
        timestep: 7,
        loss: 0.1,
        weight: 0.5,
        skipped: (position == 3).then(|| "truncated".to_owned()),
    };
    Commit {
        step,
        epoch: 0,
        first_position: step * 2,
        positions: 2,
        generation: 1,
        gradient_hash: vec![step as u8; 32],
        gradient_norm: 0.25,
        losses: vec![row(step * 2), row(step * 2 + 1)],
    }
}

fn samples<'a>(paths: &'a [&'a str]) -> impl Iterator<Item = SampleRow<'a>> {
    paths.iter().map(|path| SampleRow { path, folder: 0, multiply: Decimal::parse("2.50").unwrap(), loss_scale: 0.5 })
}

fn stored(ledger: &Ledger) -> Vec<StoredCommit> {
    let mut all = vec![];
    ledger
        .for_each_commit(0..u64::MAX, |commit| -> Result<(), LedgerError> {
            all.push(commit.clone());
            Ok(())
        })
        .unwrap();
    all
}

#[test]
fn commits_come_back_as_written_and_survive_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    let mut ledger = Ledger::create(&path, &[("run_id", "x")], &["."], samples(&["a.png", "b.png"])).unwrap();
    ledger.commit(&commit(0)).unwrap();
    ledger.commit(&commit(1)).unwrap();
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!((ledger.next_step().unwrap(), ledger.fact("run_id").unwrap()), (2, Some("x".to_owned())));
    let all = stored(&ledger);
    assert_eq!(all.iter().map(|stored| stored.commit.clone()).collect::<Vec<_>>(), [commit(0), commit(1)]);
    assert_eq!(all[1].chain, chain(&all[0].chain, &all[1].commit, &losses_hash(&all[1].commit.losses)));
}

#[test]
fn a_step_is_committed_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::create(&folder.path().join("l"), &[], &[], []).unwrap();
    ledger.commit(&commit(0)).unwrap();
    assert!(ledger.commit(&commit(0)).is_err());
    assert_eq!(stored(&ledger).len(), 1);
}

#[test]
fn a_rollback_is_recorded_and_the_chain_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut ledger = Ledger::create(&folder.path().join("l"), &[], &[], []).unwrap();
    for step in 0..4 {
        ledger.commit(&commit(step)).unwrap();
    }
    let before = stored(&ledger);
    ledger.roll_back(2, "resumed").unwrap();
    assert_eq!((ledger.next_step().unwrap(), ledger.rollbacks().unwrap()), (2, vec![(4, 2)]));
    ledger.commit(&commit(2)).unwrap();
    assert_eq!(stored(&ledger), before[..3]);
}

#[test]
fn a_file_that_is_no_ledger_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.sqlite");
    assert!(matches!(Ledger::open(&path), Err(LedgerError::Sqlite { action: "open", .. })));
    std::fs::write(&path, "not a database, but long enough to be looked at").unwrap();
    assert!(Ledger::open(&path).is_err());
}
