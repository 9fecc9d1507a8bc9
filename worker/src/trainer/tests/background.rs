//! A checkpoint that is written while training goes on is what one is that training waits for.

use ballast_common::config::BackgroundSave;
use tokio::sync::watch;
use tracing::Span;

use super::*;
use crate::save::{Background, Choice, OwnedSnapshot, Written};

/// Every file below a folder, by its name.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false => files.push((entry.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&entry).unwrap())),
            }
        }
    }
    files.sort();
    files
}

#[test]
fn it_holds_the_bits_of_its_step_however_far_training_has_gone() {
    let bench = Bench::new();
    let (mut trainer, at_once) = checkpoint(&bench);
    let hash = trainer.params_hash();
    let copy = OwnedSnapshot::copy(trainer.snapshot("a run", &hash));
    step(&bench, &mut trainer);
    step(&bench, &mut trainer);
    assert_ne!(trainer.params_hash(), hash);

    let later = tempfile::tempdir().unwrap();
    let run = serde_json::json!({ "fingerprint": "abc" });
    let (in_flight, watched) = watch::channel(false);
    let mut background = Background::new(BackgroundSave::On, in_flight);
    let (sender, written) = std::sync::mpsc::channel::<Written>();
    background.start(copy, later.path(), run, Span::none(), move |outcome| sender.send(outcome).unwrap());
    assert!(*watched.borrow());
    let path = written.recv().unwrap().unwrap();
    background.finish();
    assert!(!*watched.borrow());
    assert!(path.starts_with(later.path()) && files(&path) == files(&at_once));
    assert_eq!(resume(&bench, &path).unwrap().params_hash(), hash);
}

#[test]
fn a_save_that_fails_says_why_and_leaves_nothing() {
    let bench = Bench::new();
    let (trainer, _) = checkpoint(&bench);
    let hash = trainer.params_hash();
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("checkpoints"), "a file where the folder should be").unwrap();
    let mut background = Background::new(BackgroundSave::On, watch::channel(false).0);
    let (sender, written) = std::sync::mpsc::channel::<Written>();
    let copy = OwnedSnapshot::copy(trainer.snapshot("a run", &hash));
    let report = move |outcome| sender.send(outcome).unwrap();
    background.start(copy, place.path(), serde_json::Value::Null, Span::none(), report);
    let error = written.recv().unwrap().unwrap_err();
    assert!(error.to_string().contains("checkpoints"), "{error}");
    assert_eq!(files(place.path()).len(), 1);
}

/// The run has gone back to a checkpoint and has come to this step again, while a disk held the first save of it up.
#[test]
fn a_save_that_was_held_up_does_not_replace_one_of_a_later_history() {
    let bench = Bench::new();
    let (trainer, _) = checkpoint(&bench);
    let snapshot = trainer.snapshot("a run", "hash");
    let place = tempfile::tempdir().unwrap();
    let save = |run: serde_json::Value| save_checkpoint(&snapshot, place.path(), run);
    let path = save(serde_json::json!({ "chain": "first" })).unwrap();
    save(serde_json::json!({ "chain": "again", "history": 1 })).unwrap();
    let error = save(serde_json::json!({ "chain": "late", "history": 0 })).unwrap_err();
    assert!(matches!(&error, crate::save::SaveError::Outdated { path: kept } if *kept == path), "{error}");
    let state = ballast_common::checkpoint::verify(&path).unwrap();
    assert_eq!(state.run["chain"], "again");
    save(serde_json::json!({ "chain": "once more", "history": 1 })).unwrap();
}

#[test]
fn the_config_decides_whether_a_copy_is_made() {
    let bench = Bench::new();
    let trainer = bench.trainer();
    let snapshot = trainer.snapshot("a run", "hash");
    let choice = |mode| Background::new(mode, watch::channel(false).0).choice(&snapshot);
    assert_eq!(choice(BackgroundSave::On), Choice::Copy);
    assert_eq!(choice(BackgroundSave::Off), Choice::Wait { why: String::new() });
    assert_eq!(choice(BackgroundSave::Auto), Choice::Copy, "a tiny model finds room");
}
