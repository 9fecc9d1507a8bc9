//! Values that must be the same on every machine and in every later version.

use super::*;

#[test]
fn schedule_hashes() {
    let hashes: Vec<String> =
        (0..2).map(|epoch| EpochSchedule::compute(&small(), &options(2, 2), epoch).hash()).collect();
    assert_eq!(
        hashes,
        [
            "b6811bc65d17459d5a4302c5f51afc76ae035857992863506c523357824ad0cb",
            "f03fedd0e62dc464f8a7de664a02b825b4a5ec6abef4a4495357126db79a4ceb",
        ]
    );
}

#[test]
fn large_epochs_are_shuffled_in_bins_and_as_evenly() {
    let dataset = squares(&[("a", 100_000, "1"), ("b", 50_000, "1")]);
    let schedule = EpochSchedule::compute(&dataset, &options(4, 4), 3);
    assert!(uses(&dataset, &schedule).iter().all(|&uses| uses == 1));
    // If order and number have nothing to do with each other, the correlation is 0 with a deviation of 1/√150000.
    let occurrences = schedule.iter().flat_map(|step| step.slots).flat_map(|slot| slot.occurrences);
    let centred = |number: f64| number / 75_000.0 - 1.0;
    let sum: f64 = occurrences.map(|found| centred(f64::from(found.sample)) * centred(found.position as f64)).sum();
    assert!((sum * 3.0 / 150_000.0).abs() < 0.013, "correlation {}", sum * 3.0 / 150_000.0);
    assert_eq!(schedule.hash(), "f82b961c5dc7d8707ff6d9aa241ce72ba6aa821e7956aa6addaecb94e47d947b");
}

#[test]
fn schedule_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("logs/ep0_batch_schedule.txt");
    let dataset = small();
    let schedule = EpochSchedule::compute(&dataset, &options(2, 2), 0);
    schedule.write_file(&dataset, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let expected = "\
step:00000, slot:00, wh:[704, 320], r:0, path:cats/00002.png
step:00000, slot:00, wh:[704, 320], r:0, path:cats/00002.png
step:00000, slot:01, wh:[512, 512], r:0, path:cats/00003.png
step:00000, slot:01, wh:[512, 512], r:0, path:dogs/00000.png
step:00001, slot:00, wh:[448, 576], r:0, path:cats/00004.png
step:00001, slot:00, wh:[448, 576], r:0, path:cats/00001.png
step:00001, slot:01, wh:[512, 512], r:0, path:cats/00000.png
step:00001, slot:01, wh:[512, 512], r:0, path:cats/00003.png
step:00002, slot:00, wh:[512, 512], r:1, path:cats/00000.png
";
    assert_eq!(text, expected);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    schedule.write_file(&dataset, &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}
