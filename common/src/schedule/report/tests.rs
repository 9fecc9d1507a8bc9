//! The report's contract and its look, on datasets made up in memory.

use super::changes::{ChangeKind, ImageChange};
use super::*;
use crate::config::RunConfig;
use crate::schedule::tests::{MadeUp, dataset, options, small, squares};

fn plan(dataset: &Dataset, shown: u64, run: u64) -> PlanReport {
    PlanReport::compute(dataset, &options(2, 2), Epochs { shown, run }, |_| Ok::<(), ()>(())).unwrap()
}

fn advice(dataset: &Dataset, run: u64) -> Vec<(AdviceKind, String)> {
    plan(dataset, 1, run).advice.into_iter().map(|advice| (advice.kind, advice.message)).collect()
}

#[track_caller]
fn assert_keys(value: &serde_json::Value, documented: &str, added: &str) {
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = documented.split(' ').chain(added.split_whitespace()).collect();
    expected.sort_unstable();
    assert_eq!(keys, expected);
}

/// What stands in the second text was promised to programs, what stands in the third came later.
#[test]
fn report_has_the_documented_keys() {
    let dataset = small();
    let report = plan(&dataset, 1, 4).with_samples(&dataset, &Default::default());
    let json = serde_json::to_value(&report).unwrap();
    assert_keys(&json, "dataset epochs samples", "run advice");
    assert_keys(&json["dataset"], "fingerprint images warnings", "skipped upscaled");
    let epoch = &json["epochs"][0];
    assert_keys(epoch, "epoch folders micro_batches occurrences padded schedule_hash steps", "buckets");
    let folder = &epoch["folders"][0];
    let added = "repeats_per_image own_values own_multiply own_loss_scale";
    assert_keys(folder, "effective_share images loss_scale multiply path scheduled share", added);
    assert_keys(&epoch["buckets"][0], "bucket occurrences micro_batches padded images fill", "");
    assert_keys(&json["samples"][0], "bucket caption cond_dropout flip_p loss_scale multiply path", "");
    assert_eq!((&folder["multiply"], &folder["scheduled"]), (&serde_json::json!(1.5), &serde_json::json!(8)));
    assert_eq!(json["samples"][0]["bucket"], serde_json::json!([512, 512]));
    assert_eq!(json["samples"][0]["cond_dropout"], serde_json::json!(0.04));
    assert_eq!(json["run"]["epochs"], 4);
    assert_eq!(folder["repeats_per_image"], serde_json::json!(6.0));
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
    let expected = "
8 images in 2 folders, 3 enlarged
fingerprint a440518637af3a3538325ba9c692eb40d766264d616e88549261b9cee7b1f091
run: 4 epochs, 11 steps, 35 uses of images; a step is 2 slots × 2 images

epoch 0: 9 occurrences, 5 micro-batches (1 padded), 3 steps
schedule b6811bc65d17459d5a4302c5f51afc76ae035857992863506c523357824ad0cb

  folder  images  multiply  scheduled    share  scale  effective  repeats
  cats         5       1.5          8  88.89 %      1    88.89 %        6
  dogs         3       0.4          1  11.11 %      1    11.11 %     1.67
  total        8                    9                                4.38
  repeats: how often each image comes up in 4 epochs, on average

  bucket   images  scheduled  micro-batches   fill  padded
  448×576       3          2              1  100 %       0
  512×512       3          5              3   83 %       1
  704×320       2          2              1  100 %       0
";
    assert_eq!(format!("\n{}", plan(&small(), 1, 4)), expected);
}

#[test]
fn epochs_are_shown_together() {
    let expected = "
epochs 0–3, each: 8–10 occurrences, 4–6 micro-batches (0–2 padded), 2–3 steps

  folder  images  multiply  scheduled    share  scale  effective  repeats
  cats         5       1.5        7–8  85.97 %      1    85.97 %        6
  dogs         3       0.4        1–2  14.03 %      1    14.03 %     1.67
  total        8                 8–10                                4.38
  repeats: how often each image comes up in 4 epochs, on average

  bucket   images  scheduled  micro-batches   fill  padded
  448×576       3        2–4            1–2  100 %       0
  512×512       3        2–5            1–3   81 %     0–1
  704×320       2        1–3            1–2   80 %     0–1

counts of fractions alternate; over the epochs they are exact
  epoch  occurrences  steps  padded           schedule
  0                9      3       1  b6811bc65d17459d…
  1                8      2       0  f03fedd0e62dc464…
  2               10      3       2  60811c3d54a68a0c…
  3                8      3       2  cea88d117feee662…
";
    let text = plan(&small(), 4, 4).to_string();
    let (_, text) = text.split_once("\nepochs").unwrap();
    assert_eq!(format!("\nepochs{text}"), expected);
    let alike = plan(&squares(&[("a", 8, "1")]), 3, 3).to_string();
    assert!(alike.contains("the epochs have the same counts, each in an order of its own"), "{alike}");
}

#[test]
fn images_with_values_of_their_own_are_counted_in() {
    let mut dataset = squares(&[("a", 10, "2"), ("b", 10, "1")]);
    dataset.samples[0].multiply = Decimal::parse("5").unwrap();
    dataset.samples[0].loss_scale = 0.5;
    dataset.samples[1].loss_scale = 0.25;
    let report = plan(&dataset, 1, 1);
    let folder = &report.epochs[0].folders[0];
    assert_eq!((folder.own_values, folder.own_multiply, folder.own_loss_scale), (2, 1, 2));
    assert_eq!((folder.scheduled, folder.repeats_per_image), (23, Some(2.3)));
    let text = report.to_string();
    assert!(text.contains("2 (+1 own)") && text.contains("1 (+2 own)"), "{text}");
}

#[test]
fn many_folders_are_cut_and_all_shows_them() {
    let names: Vec<String> = (0..300).map(|number| format!("subject {number:03}")).collect();
    let folders: Vec<(&str, u64, &str)> = names.iter().map(|name| (name.as_str(), 2, "1")).collect();
    let report = plan(&squares(&folders), 1, 1);
    let text = report.to_string();
    assert!(text.contains("… and 50 more folders (--all shows them)"), "{text}");
    assert!(text.contains("\n  total           600"), "{text}");
    let all = report.text(&TextOptions { all: true, width: None });
    assert!(all.contains("subject 299") && !all.contains("--all"));
}

#[test]
fn no_line_is_wider_than_the_screen() {
    use unicode_width::UnicodeWidthStr as _;
    let long = "characters/その他の長い名前のフォルダ/一番目の人物の写真とスケッチ";
    let report = plan(&squares(&[(long, 1000, "0.3333333333333"), ("b", 3, "0.001")]), 2, 20);
    for width in [80, 120] {
        let text = report.text(&TextOptions { all: false, width: Some(width) });
        let table: Vec<&str> = text.lines().skip(2).collect();
        assert!(table.iter().all(|line| line.width() <= width), "{text}");
    }
}

#[test]
fn exact_multiples_raise_no_alarm() {
    assert_eq!(advice(&squares(&[("a", 8, "1"), ("b", 4, "2")]), 10), []);
    assert_eq!(advice(&squares(&[("a", 2, "1")]), 10), []);
}

#[test]
fn starving_buckets_say_what_would_help() {
    let sizes =
        |sizes: &[(u32, u32)]| MadeUp { images: sizes.len() as u64, multiply: "1".to_owned(), sizes: sizes.to_vec() };
    let dataset = dataset(BTreeMap::from([(
        "a".to_owned(),
        sizes(&[(512, 512), (512, 512), (500, 500), (512, 512), (300, 400)]),
    )]));
    let options = options(4, 1);
    let report = PlanReport::compute(&dataset, &options, Epochs { shown: 1, run: 1 }, |_| Ok::<(), ()>(())).unwrap();
    let found: Vec<&str> = report.advice.iter().map(|advice| advice.message.as_str()).collect();
    assert_eq!(
        found,
        ["bucket 448×576: 1 use per epoch cannot fill a micro-batch of 4: 3 more images of this shape would, or crop \
        its image (a/00004.png) to the shape of 512×512"]
    );
    let lonely = advice(&squares(&[("a", 1, "1")]), 1);
    assert!(
        lonely[0].1.ends_with("1 more image of this shape would, or a smaller step.micro_batch_size"),
        "{lonely:?}"
    );
    let padded = advice(&squares(&[("a", 1, "3")]), 1);
    assert!(padded.is_empty(), "a quarter of padding is none too much: {padded:?}");
}

#[test]
fn folders_that_come_up_seldom_or_never_are_named() {
    let found = advice(&squares(&[("keep", 100, "0.05"), ("rest", 10, "1"), ("tiny", 3, "0.001")]), 10);
    let kinds: Vec<AdviceKind> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [AdviceKind::NeverUsed, AdviceKind::RarelyUsed], "{found:?}");
    assert!(found[0].1.starts_with("tiny: none of its 3 images comes up in 10 epochs"), "{found:?}");
    assert!(found[0].1.contains("with 0.1 each comes up once"), "{found:?}");
    assert!(found[1].1.contains("0.5 times each") && found[1].1.contains("50 never"), "{found:?}");
    assert!(advice(&squares(&[("keep", 100, "0.05"), ("rest", 10, "1")]), 20).is_empty());
    assert_eq!(advice(&squares(&[("only", 1, "0.001")]), 4)[0].0, AdviceKind::EmptyEpoch);
}

#[test]
fn unbalanced_weights_are_named() {
    let mut dataset = squares(&[("a", 10, "10"), ("b", 10, "1"), ("c", 10, "1"), ("d", 4, "1")]);
    dataset.samples.iter_mut().for_each(|sample| sample.loss_scale = [1.0, 0.0, -0.5, 1.0][sample.folder as usize]);
    let found = advice(&dataset, 1);
    let names: Vec<(AdviceKind, &str)> =
        found.iter().map(|(kind, message)| (*kind, message.split(':').next().unwrap())).collect();
    assert_eq!(names, [(AdviceKind::NegativeWeight, "c"), (AdviceKind::NoWeight, "b"), (AdviceKind::OneFolder, "a")]);
}

fn changes(a: &Dataset, b: &Dataset, config: &RunConfig) -> Changes {
    let default = RunConfig::default();
    let (of_a, of_b) = (plan(a, 1, 4), plan(b, 1, 4));
    let a = Planned { name: "left", config: &default, dataset: a, report: &of_a };
    Changes::between(&a, &Planned { name: "right", config, dataset: b, report: &of_b })
}

#[test]
fn nothing_changed_is_said_plainly() {
    let changes = changes(&small(), &small(), &RunConfig::default());
    assert!(changes.identical && changes.same_fingerprint && changes.same_schedule);
    assert_eq!(
        changes.text(&TextOptions::default()),
        "a: left\nb: right\n\nNo difference: the same data, settings and schedule.\n"
    );
}

#[test]
fn what_changed_is_said() {
    let before = squares(&[("a", 10, "1"), ("b", 10, "2"), ("gone", 4, "1")]);
    let mut after = squares(&[("a", 10, "1"), ("b", 12, "3"), ("new", 2, "1")]);
    after.samples[3].width = 700;
    let mut config = RunConfig::default();
    config.run.epochs = 7;
    after.fingerprint = Dataset::compute_fingerprint(&after.samples);
    let changes = changes(&before, &after, &config);
    assert!(!changes.identical && !changes.same_schedule && !changes.same_fingerprint);
    assert_eq!(changes.settings[0].key, "run.epochs");
    assert_eq!((changes.added_images.len(), changes.removed_images.len()), (4, 4));
    assert_eq!(
        changes.changed_images,
        [ImageChange { path: "a/00003.png".into(), what: vec!["picture"], caption: None }]
    );
    let kinds: Vec<(&str, ChangeKind)> =
        changes.folders.iter().map(|folder| (folder.path.as_str(), folder.change)).collect();
    let expected = [
        ("a", ChangeKind::Moved),
        ("b", ChangeKind::Changed),
        ("gone", ChangeKind::Removed),
        ("new", ChangeKind::Added),
    ];
    assert_eq!(kinds, expected);
    let b = &changes.folders[1];
    assert!((b.share_points - 100.0 * (36.0 / 48.0 - 20.0 / 34.0)).abs() < 1e-9, "{}", b.share_points);
    let expected = "
a: left
b: right

other data, another schedule
  * differs                            a              b
  images                              24             24
  occurrences per epoch *             34             48
  steps per epoch *                    9             12
  epochs                               4              4
  steps in the run *                  36             48
  data *                   ed1b448385ea…  884f6b972943…
  schedule *               c2e8ddf308b0…  f71dd61ed8cb…

settings (1)
  run.epochs: 10 → 7

folders (1 added, 1 removed, 1 changed, 1 with another share only)
  folder   images  multiply  scale  scheduled
  b       10 → 12     2 → 3      1    20 → 36  changed
  gone          4         1      1          4  removed
  new           2         1      1          2    added

shares, and by how many points they went up or down
  folder  share a        b  points  effective a        b  points
  a       29.41 %  20.83 %   -8.58      29.41 %  20.83 %   -8.58
  b       58.82 %  75.00 %  +16.18      58.82 %  75.00 %  +16.18
  gone    11.76 %        –  -11.76      11.76 %        –  -11.76
  new           –   4.17 %   +4.17            –   4.17 %   +4.17

buckets (1)
  bucket   images  scheduled  micro-batches  padded
  512×512      24    34 → 48        17 → 24       0

images only in b (4)
  b/00010.png
  b/00011.png
  new/00000.png
  new/00001.png

images only in a (4)
  gone/00000.png
  gone/00001.png
  gone/00002.png
  gone/00003.png

images that differ (1)
  a/00003.png: picture
";
    assert_eq!(format!("\n{}", changes.text(&TextOptions::default())), expected);
}
