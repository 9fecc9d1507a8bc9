//! Values that must be the same on every machine and in every later version.

use super::*;

fn small() -> Dataset {
    let sizes = vec![(512, 512), (450, 570), (900, 400)];
    let folder = |images, multiply: &str| MadeUp { images, multiply: multiply.to_owned(), sizes: sizes.clone() };
    dataset(BTreeMap::from([("cats".to_owned(), folder(5, "1.5")), ("dogs".to_owned(), folder(3, "0.4"))]))
}

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

#[test]
fn report_has_the_documented_keys() {
    let dataset = small();
    let report = PlanReport::compute(&dataset, &options(2, 2), 1, |_| Ok::<(), ()>(())).unwrap();
    let report = report.with_samples(&dataset, &Default::default());
    let json = serde_json::to_value(&report).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&json), "dataset epochs samples");
    assert_eq!(keys(&json["dataset"]), "fingerprint images warnings");
    assert_eq!(keys(&json["epochs"][0]), "epoch folders micro_batches occurrences padded schedule_hash steps");
    let folder = &json["epochs"][0]["folders"][0];
    assert_eq!(keys(folder), "effective_share images loss_scale multiply path scheduled share");
    assert_eq!(keys(&json["samples"][0]), "bucket caption cond_dropout flip_p loss_scale multiply path");
    assert_eq!((&folder["multiply"], &folder["scheduled"]), (&serde_json::json!(1.5), &serde_json::json!(8)));
    assert_eq!(json["samples"][0]["bucket"], serde_json::json!([512, 512]));
    assert_eq!(json["samples"][0]["cond_dropout"], serde_json::json!(0.04));
}

#[test]
fn effective_shares_weigh_by_loss_scale() {
    let mut dataset = squares(&[("a", 10, "1"), ("b", 10, "1"), ("c", 10, "2")]);
    dataset.samples.iter_mut().for_each(|sample| sample.loss_scale = [1.0, 0.5, -0.25][sample.folder as usize]);
    let report = EpochReport::new(&dataset, &EpochSchedule::compute(&dataset, &options(4, 4), 0));
    let shares: Vec<(f64, f64)> = report.folders.iter().map(|folder| (folder.share, folder.effective_share)).collect();
    assert_eq!(shares, [(0.25, 0.5), (0.25, 0.25), (0.5, -0.25)]);
}

#[test]
fn report_for_people() {
    let dataset = small();
    let report = PlanReport::compute(&dataset, &options(2, 2), 1, |_| Ok::<(), ()>(())).unwrap();
    let expected = "\
8 images, fingerprint a440518637af3a3538325ba9c692eb40d766264d616e88549261b9cee7b1f091

epoch 0: 9 occurrences, 5 micro-batches (1 padded), 3 steps
schedule b6811bc65d17459d5a4302c5f51afc76ae035857992863506c523357824ad0cb

  folder  images  multiply  scheduled    share  loss scale  effective
  cats         5       1.5          8  88.89 %           1    88.89 %
  dogs         3       0.4          1  11.11 %           1    11.11 %

  bucket   occurrences  micro-batches  padded
  448×576            2              1       0
  512×512            5              3       1
  704×320            2              1       0

enlarged to fill their bucket (3)
  cats/00001.png
  cats/00004.png
  dogs/00001.png
";
    assert_eq!(report.to_string(), expected);
}
