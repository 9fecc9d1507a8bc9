//! `ballast plan`: the balance table and its JSON, without a model.

use serde_json::Value;

use crate::lab::Lab;

fn plan(lab: &Lab, args: &[&str]) -> Value {
    let finished = lab.run(&[&["plan", "config.toml", "--format", "json"], args].concat()).expect(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn the_json_has_the_promised_shape() {
    let lab = Lab::without_model();
    let plan = plan(&lab, &["--epochs", "2", "--samples"]);
    assert_eq!(plan["dataset"]["images"], 21);
    assert!(plan["dataset"]["fingerprint"].is_string() && plan["dataset"]["warnings"].is_array());
    let epochs = plan["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 2);
    for key in ["epoch", "occurrences", "steps", "micro_batches", "padded"] {
        assert!(epochs[0][key].is_u64(), "{key}");
    }
    assert!(epochs[0]["schedule_hash"].is_string());
    assert_ne!(epochs[0]["schedule_hash"], epochs[1]["schedule_hash"]);
    // 5 × 2.5 alternates so that two epochs together have 25.
    let scheduled: Vec<u64> =
        epochs.iter().map(|epoch| folder(epoch, "boats")["scheduled"].as_u64().unwrap()).collect();
    assert_eq!((scheduled[0].abs_diff(scheduled[1]), scheduled.iter().sum::<u64>()), (1, 25));
    let keep = folder(&epochs[0], "keep");
    assert_eq!((&keep["images"], &keep["scheduled"]), (&10.into(), &1.into()));
    assert_eq!((keep["multiply"].as_f64(), keep["loss_scale"].as_f64()), (Some(0.1), Some(0.5)));
    assert!(keep["effective_share"].as_f64() < keep["share"].as_f64());
    let samples = plan["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 21);
    let cat = samples.iter().find(|sample| sample["path"] == "cats/picture_0.png").unwrap();
    assert_eq!(cat["caption"], "a sleeping cat, grey");
    for key in ["multiply", "loss_scale", "cond_dropout", "flip_p", "bucket"] {
        assert!(!cat[key].is_null(), "{key}");
    }
    assert!(lab.is_untouched());
}

#[test]
fn schedules_written_by_plan_are_the_ones_that_are_trained() {
    let lab = Lab::without_model();
    lab.run(&["plan", "config.toml", "--epochs", "2", "--out", "schedules"]).expect(0);
    for epoch in 0..2 {
        let name = format!("ep{epoch}_batch_schedule.txt");
        let planned = std::fs::read_to_string(lab.path("schedules").join(&name)).unwrap();
        assert_eq!(planned, crate::lab::reference().text(&format!("logs/{name}")));
    }
    let hash = plan(&lab, &["--epochs", "1"])["epochs"][0]["schedule_hash"].as_str().unwrap().to_owned();
    let trained = crate::lab::reference().ledger();
    let trained =
        trained.query_row("SELECT schedule_hash FROM epochs WHERE epoch = 0", [], |row| row.get::<_, String>(0));
    assert_eq!(trained.unwrap(), hash);
}

#[test]
fn a_folder_can_be_planned_without_a_config() {
    let lab = Lab::without_model();
    let finished = lab.run(&["plan", "--data", "data"]).expect(0);
    assert!(finished.stdout.contains("boats") && finished.stdout.contains("2.5"), "{}", finished.stdout);
}

fn folder<'a>(epoch: &'a Value, path: &str) -> &'a Value {
    epoch["folders"].as_array().unwrap().iter().find(|folder| folder["path"] == path).unwrap()
}
