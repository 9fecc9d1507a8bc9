//! The report against numbers by hand, against a naive count, and on ledgers in every state.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::ledger::{Commit, LossRow, SampleRow};

/// A ledger in a folder of its own, with commits as a test wants them.
struct Bench {
    folder: tempfile::TempDir,
    ledger: Ledger,
    positions: u64,
}

impl Bench {
    /// `samples`: (path, multiplier, loss scale), sorted by folder.
    fn new(samples: &[(&str, &str, f64)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |path: &str| path.rsplit_once('/').map_or(".", |(folder, _)| folder).to_owned();
        let mut folders: Vec<String> = samples.iter().map(|(path, ..)| place(path)).collect();
        folders.dedup();
        let rows: Vec<_> = samples
            .iter()
            .map(|(path, multiply, loss_scale)| SampleRow {
                path,
                folder: folders.iter().position(|folder| *folder == place(path)).unwrap() as u32,
                multiply: Decimal::parse(multiply).unwrap(),
                loss_scale: *loss_scale,
            })
            .collect();
        let facts = [("run_id", "test"), ("epochs", "3"), ("total_steps", "60")];
        let names: Vec<_> = folders.iter().map(String::as_str).collect();
        let ledger = Ledger::create(&folder.path().join(LEDGER_FILE), &facts, &names, rows).unwrap();
        Self { folder, ledger, positions: 0 }
    }

    /// `uses`: (sample, timestep, loss, weight); a negative weight of exactly −9 stands for a skipped picture.
    fn commit(&mut self, uses: &[(u32, u32, f32, f64)]) {
        let step = self.ledger.next_step().unwrap();
        let first_position = self.positions;
        let row = |(index, (sample, timestep, loss, weight)): (usize, &(u32, u32, f32, f64))| LossRow {
            position: first_position + index as u64,
            sample: *sample,
            copy: 0,
            timestep: *timestep,
            loss: *loss,
            weight: if *weight == SKIPPED { 0.0 } else { *weight },
            skipped: (*weight == SKIPPED).then(|| "gone".to_owned()),
        };
        self.positions += uses.len() as u64;
        let commit = Commit {
            step,
            epoch: 0,
            first_position,
            positions: uses.len() as u64,
            generation: 1,
            gradient_hash: vec![1; 32],
            gradient_norm: 1.0,
            losses: uses.iter().enumerate().map(row).collect(),
        };
        self.ledger.commit(&commit).unwrap();
    }

    fn epoch(&mut self, epoch: u64, first_step: u64, steps: u64) {
        self.ledger.record_epoch(epoch, "hash", 0, first_step, steps).unwrap();
    }

    fn execute(&self, sql: &str) {
        rusqlite::Connection::open(self.folder.path().join(LEDGER_FILE)).unwrap().execute_batch(sql).unwrap();
    }

    fn report(&self) -> RunReport {
        report(self.folder.path(), &ReportOptions { top: 10, every_image: true }).unwrap()
    }
}

const SKIPPED: f64 = -9.0;

fn close(found: Option<f64>, expected: f64) {
    assert!(found.is_some_and(|found| (found - expected).abs() < 1e-6), "{found:?}, expected {expected}");
}

#[test]
fn numbers_by_hand() {
    let mut bench =
        Bench::new(&[("a/1.png", "2", 1.0), ("a/2.png", "2", 1.0), ("b/3.png", "1", 0.5), ("b/4.png", "1", 0.5)]);
    bench.epoch(0, 0, 3);
    bench.epoch(1, 3, 3);
    // The first band of timesteps has the losses 0.4, 0.8 and 0.6 (mean 0.6), the last one 0.1, 0.2, 0.3 and 0.2 (mean 0.2).
    bench.commit(&[(0, 10, 0.4, 1.0), (1, 990, 0.1, 1.0)]);
    bench.commit(&[(0, 950, 0.2, 1.0), (2, 20, 0.8, 0.5)]);
    bench.commit(&[(1, 999, 0.3, 1.0), (3, 0, 0.0, SKIPPED)]);
    // The running epoch: one step of three.
    bench.commit(&[(0, 5, 0.6, 1.0), (2, 901, 0.2, 0.5)]);
    let report = bench.report();

    assert_eq!((report.run.committed_steps, report.run.complete_epochs, report.run.total_steps), (4, 1, Some(60)));
    let [a, b] = &report.folders[..] else { panic!("{:?}", report.folders) };
    // a: 4 in the whole epoch and 1 so far; b: 2 and 1, of which one could not be read.
    assert_eq!((a.exposures.delivered, a.exposures.intended, a.exposures.skipped), (5, Some(5), 0));
    assert_eq!((b.exposures.delivered, b.exposures.intended, b.exposures.skipped), (2, Some(3), 1));
    assert_eq!((a.exposures.weight, a.exposures.intended_weight), (5.0, Some(5.0)));
    assert_eq!((b.exposures.weight, b.exposures.intended_weight), (1.0, Some(1.5)));
    close(Some(a.share), 5.0 / 7.0);
    close(Some(a.effective_share), 5.0 / 6.0);
    close(a.intended_effective_share, 5.0 / 6.5);
    assert_eq!(a.exposures_per_image, Spread { min: 2, mean: 2.5, max: 3 });
    assert_eq!((b.exposures_per_image, b.images_used), (Spread { min: 0, mean: 1.0, max: 2 }, 1));
    assert_eq!((a.multiply, b.loss_scale), (Some(Decimal::from(2)), Some(0.5)));
    close(a.loss.mean, (0.4 + 0.1 + 0.2 + 0.3 + 0.6) / 5.0);
    close(a.loss.adjusted, (0.4 / 0.6 + 0.1 / 0.2 + 0.2 / 0.2 + 0.3 / 0.2 + 0.6 / 0.6) / 5.0);
    close(b.loss.adjusted, (0.8 / 0.6 + 1.0) / 2.0);
    // The first tenth is the first of the four steps; of the last tenth there is none of its own.
    close(a.loss.first_tenth.mean, 0.25);
    assert_eq!(a.loss.last_tenth.mean, None);

    let quarters: Vec<_> =
        report.timestep_quarters.iter().map(|quarter| (quarter.from_timestep, quarter.losses)).collect();
    assert_eq!(quarters, [(0, 3), (250, 0), (500, 0), (750, 4)]);
    close(report.timestep_quarters[3].loss.mean, 0.2);
    let images = report.images.as_ref().unwrap();
    assert_eq!((images[0].delivered, images[3].delivered, images[3].skipped), (3, 0, 1));
    close(images[1].deviation, (2.0f64 * 0.1 * 0.1).sqrt());
    close(images[1].last_adjusted, 1.5);
    // Only one image came up three times, so the lists have that one.
    assert_eq!(report.ranked_from_exposures, 3);
    assert_eq!(report.highest_loss.iter().map(|image| image.path.as_str()).collect::<Vec<_>>(), ["a/1.png"]);
    let histogram: Vec<_> = report.exposures_per_image.iter().map(|count| (count.exposures, count.images)).collect();
    assert_eq!(histogram, [(0, 1), (2, 2), (3, 1)]);
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
}

#[test]
fn a_folder_that_learns_faster_shows() {
    let mut bench = Bench::new(&[("a/1.png", "1", 1.0), ("b/2.png", "1", 1.0)]);
    for step in 0..100u32 {
        let timestep = if step % 2 == 0 { 100 } else { 900 };
        let level = if timestep == 100 { 0.5 } else { 0.1 };
        let learned = 1.0 - 0.5 * step as f32 / 100.0;
        bench.commit(&[(0, timestep, level * learned, 1.0), (1, timestep, level, 1.0)]);
    }
    let report = bench.report();
    let change = |folder: usize| report.folders[folder].loss.change.unwrap();
    // From 0.977 of the level to 0.5275 of it: the mean over ten steps of each end.
    assert!((change(0) - (0.5275 / 0.9775 - 1.0)).abs() < 1e-4, "{}", change(0));
    assert!(change(1).abs() < 1e-6, "{}", change(1));
    assert_eq!(report.folders[0].loss.over_time.len(), 50);
    assert_eq!(
        (report.folders[0].loss.over_time[49].from_step, report.folders[0].loss.over_time[49].to_step),
        (98, 100)
    );
}

#[test]
fn nothing_trained_yet() {
    let bench = Bench::new(&[("1.png", "0.5", 1.0)]);
    let report = bench.report();
    assert_eq!(
        (report.run.committed_steps, report.total.exposures.delivered, report.total.exposures.intended),
        (0, 0, Some(0))
    );
    assert_eq!(
        (report.folders[0].path.as_str(), report.folders[0].loss.mean, report.folders[0].share),
        (".", None, 0.0)
    );
    assert!(report.highest_loss.is_empty() && report.notes.is_empty(), "{report:?}");
}

#[test]
fn what_was_rolled_back_counts_once() {
    let mut bench = Bench::new(&[("1.png", "1", 1.0)]);
    for _ in 0..5 {
        bench.commit(&[(0, 500, 0.5, 1.0)]);
    }
    bench.ledger.roll_back(2, "resumed").unwrap();
    bench.commit(&[(0, 500, 0.5, 1.0)]);
    let report = bench.report();
    assert_eq!((report.run.committed_steps, report.run.steps_taken_back, report.total.exposures.delivered), (3, 3, 3));
    assert_eq!(report.run.rollbacks, [Rollback { from_step: 5, to_step: 2 }]);
}

#[test]
fn losses_that_are_no_numbers_are_counted_and_left_out() {
    let mut bench = Bench::new(&[("1.png", "1", 1.0)]);
    bench.commit(&[(0, 500, 0.5, 1.0), (0, 500, f32::INFINITY, 1.0)]);
    let report = bench.report();
    assert_eq!((report.total.exposures.delivered, report.total.exposures.not_finite), (2, 1));
    assert_eq!((report.total.loss.mean, report.total.loss.adjusted), (Some(0.5), Some(1.0)));
    assert!(report.notes[0].contains("no finite number"), "{:?}", report.notes);
}

#[test]
fn a_ledger_that_lacks_uses_is_said_so() {
    let mut bench = Bench::new(&[("a/1.png", "3", 1.0)]);
    bench.epoch(0, 0, 1);
    bench.commit(&[(0, 500, 0.5, 1.0), (0, 500, 0.5, 1.0)]);
    let report = bench.report();
    assert_eq!(report.folders[0].exposures.intended, Some(3));
    assert!(report.notes[0].contains("a: 3 uses were scheduled and the ledger has 2"), "{:?}", report.notes);
}

#[test]
fn a_ledger_of_format_1_shows_what_was_delivered() {
    let mut bench = Bench::new(&[("a/1.png", "2", 1.0), ("a/b/2.png", "1", 0.5), ("b/3.png", "1", 0.5)]);
    bench.commit(&[(0, 500, 0.5, 1.0), (1, 500, 0.5, 0.5)]);
    bench.execute(
        "CREATE TABLE old (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
         INSERT INTO old SELECT id, path FROM samples; DROP TABLE samples; DROP TABLE folders;
         ALTER TABLE old RENAME TO samples; UPDATE run SET value = '1' WHERE key = 'format';",
    );
    let report = bench.report();
    let folders = report.folders.iter().map(|f| (f.path.as_str(), f.exposures.delivered, f.exposures.intended));
    assert_eq!(folders.collect::<Vec<_>>(), [("a", 1, None), ("a/b", 1, None), ("b", 0, None)]);
    assert!(report.notes[0].contains("format 1"), "{:?}", report.notes);
    assert!(Ledger::open(&bench.folder.path().join(LEDGER_FILE)).is_ok(), "verify and resume read it too");
    bench.execute("UPDATE run SET value = '3' WHERE key = 'format'");
    let error = super::report(bench.folder.path(), &ReportOptions::default()).unwrap_err();
    assert!(error.to_string().contains("ledger format 3, this version reads 1 to 2"), "{error}");
}

#[test]
fn reading_leaves_nothing_behind_and_a_run_that_goes_on_is_seen() {
    let mut bench = Bench::new(&[("1.png", "1", 1.0)]);
    bench.commit(&[(0, 500, 0.5, 1.0)]);
    assert_eq!(bench.report().run.committed_steps, 1, "while the ledger is open for writing");
    bench.commit(&[(0, 500, 0.5, 1.0)]);
    assert_eq!(bench.report().run.committed_steps, 2);
    let Bench { folder, ledger, .. } = bench;
    drop(ledger);
    report(folder.path(), &ReportOptions::default()).unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, [LEDGER_FILE]);
}

#[test]
fn a_folder_without_a_run_is_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let error = report(folder.path(), &ReportOptions::default()).unwrap_err();
    assert_eq!((error.exit_code(), error.hint().is_some()), (2, true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn exposures_equal_a_naive_count(
        uses in proptest::collection::vec((0u32..6, 0u32..1000, 0.01f32..2.0, prop_oneof![Just(1.0), Just(0.5), Just(SKIPPED)]), 0..120),
        step_size in 5usize..40,
    ) {
        let paths = ["a/1", "a/2", "a/3", "b/4", "b/5", "c/6"];
        let samples: Vec<_> = paths.iter().map(|path| (*path, "1", 1.0)).collect();
        let mut bench = Bench::new(&samples);
        uses.chunks(step_size).for_each(|step| bench.commit(step));
        let report = bench.report();
        let mut naive: BTreeMap<&str, (u64, u64, f64)> = BTreeMap::new();
        for (sample, _, _, weight) in &uses {
            let (delivered, skipped, sum) = naive.entry(&paths[*sample as usize][..1]).or_default();
            if *weight == SKIPPED { *skipped += 1 } else { *delivered += 1; *sum += weight; }
        }
        for folder in &report.folders {
            let (delivered, skipped, weight) = naive.get(folder.path.as_str()).copied().unwrap_or_default();
            let found = &folder.exposures;
            prop_assert_eq!((found.delivered, found.skipped, found.weight), (delivered, skipped, weight));
            // All uses are of the epoch that is under way, so the schedule is what the ledger has.
            prop_assert_eq!(found.intended, Some(delivered + skipped));
        }
        let of_images: u64 = report.images.as_ref().unwrap().iter().map(|image| image.delivered).sum();
        let of_histogram: u64 = report.exposures_per_image.iter().map(|count| count.exposures * count.images).sum();
        prop_assert_eq!((of_images, of_histogram), (report.total.exposures.delivered, report.total.exposures.delivered));
        let mean = report.total.loss.mean;
        let losses: Vec<f64> = uses.iter().filter(|use_| use_.3 != SKIPPED).map(|use_| f64::from(use_.2)).collect();
        prop_assert_eq!(mean.is_some(), !losses.is_empty());
        if let Some(mean) = mean {
            prop_assert!((mean - losses.iter().sum::<f64>() / losses.len() as f64).abs() < 1e-9);
            prop_assert!((report.total.loss.adjusted.unwrap() - 1.0).abs() < 1e-9, "the run as a whole is 1");
        }
    }
}
