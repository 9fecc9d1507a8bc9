//! `ballast plan`: the balance table and its JSON, without a model.

use serde_json::Value;

use crate::lab::{Lab, copy_folder};
use crate::process::Running;

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

#[test]
fn the_report_says_what_to_think_about() {
    let lab = Lab::without_model();
    lab.write("data/rare/multiply.txt", "0.001");
    std::fs::copy(lab.path("data/cats/picture_1.png"), lab.path("data/rare/one.png")).unwrap();
    lab.write("data/cats/broken.png", "this is no picture");
    let plan = plan(&lab, &[]);
    let epoch = &plan["epochs"][0];
    assert_eq!(plan["run"]["epochs"], 4);
    assert_eq!(folder(epoch, "keep")["repeats_per_image"], 0.4);
    assert_eq!(plan["dataset"]["skipped"][0]["path"], "cats/broken.png");
    let entries = |bucket: &Value| bucket["occurrences"].as_u64().unwrap() + bucket["padded"].as_u64().unwrap();
    let buckets = epoch["buckets"].as_array().unwrap();
    assert!(
        buckets.iter().all(|bucket| entries(bucket) == 2 * bucket["micro_batches"].as_u64().unwrap()),
        "{buckets:?}"
    );
    let kinds: Vec<(&str, &str)> = plan["advice"]
        .as_array()
        .unwrap()
        .iter()
        .map(|advice| (advice["kind"].as_str().unwrap(), advice["place"].as_str().unwrap()))
        .collect();
    assert!(kinds.contains(&("never_used", "rare")) && kinds.contains(&("rarely_used", "keep")), "{kinds:?}");
    let copies = &plan["dataset"]["duplicates"][0];
    assert_eq!(copies["paths"], serde_json::json!(["cats/picture_1.png", "rare/one.png"]));
    assert_eq!((&copies["folders_differ"], &copies["captions_differ"]), (&true.into(), &true.into()));
    assert!(kinds.contains(&("duplicates", "cats/picture_1.png")), "{kinds:?}");
    let text = lab.run(&["plan", "config.toml", "--epochs", "4"]).expect(0).stdout;
    for part in
        ["epochs 0–3, each", "worth a thought", "rare: none of its 1 image comes up", "12–13", "cats/broken.png: "]
    {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[test]
fn tables_fit_the_screen() {
    let lab = Lab::without_model();
    let long = "data/characters/その他の長い名前のフォルダ/a name that somebody was never able to remember";
    std::fs::create_dir_all(lab.path(long)).unwrap();
    std::fs::copy(lab.path("data/cats/picture_1.png"), lab.path(long).join("one.png")).unwrap();
    let mut command = lab.ballast(&["plan", "config.toml"]);
    let text = Running::start(command.env("COLUMNS", "80")).finish().expect(0).stdout;
    let table: Vec<&str> = text.lines().filter(|line| line.contains(" %")).collect();
    assert!(table.iter().all(|line| line.chars().count() <= 80) && text.contains("remember "), "{text}");
}

#[test]
fn two_folders_are_compared() {
    let lab = Lab::without_model();
    let same = lab.run(&["plan", "data", "data"]).expect(0).stdout;
    assert!(same.contains("No difference"), "{same}");
    lab.write(
        "other.toml",
        std::fs::read_to_string(lab.path("config.toml")).unwrap().replace("seed = 11", "seed = 12"),
    );
    lab.write("other.toml", std::fs::read_to_string(lab.path("other.toml")).unwrap().replace("\"data\"", "\"data2\""));
    copy_folder(&lab.path("data"), &lab.path("data2"));
    lab.write("data2/boats/multiply.txt", "3");
    lab.write("data2/cats/picture_0.txt", "a cat awake");
    std::fs::rename(lab.path("data2/keep"), lab.path("data2/kept")).unwrap();
    let compared = lab.run(&["plan", "config.toml", "other.toml", "--format", "json"]).expect(0).stdout;
    let compared: Value = serde_json::from_str(&compared).unwrap();
    assert!(compared["a"]["epochs"].is_array() && compared["b"]["dataset"]["fingerprint"].is_string());
    let changes = &compared["changes"];
    assert_eq!((&changes["identical"], &changes["same_schedule"]), (&false.into(), &false.into()));
    assert_eq!(changes["settings"], serde_json::json!([{ "key": "run.seed", "a": "11", "b": "12" }]));
    let kinds: Vec<(&str, &str)> = changes["folders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|folder| (folder["path"].as_str().unwrap(), folder["change"].as_str().unwrap()))
        .collect();
    assert_eq!(kinds, [("boats", "changed"), ("cats", "moved"), ("keep", "removed"), ("kept", "added")]);
    assert_eq!(changes["changed_images"][0]["caption"]["b"], "a cat awake");
    let text = lab.run(&["plan", "config.toml", "other.toml"]).expect(0).stdout;
    for part in [
        "run.seed: 11 → 12",
        "2.5 → 3",
        "kept",
        "images only in b (10)",
        "a sleeping cat, grey",
        "other data, another schedule",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    lab.run(&["plan", "data", "data2", "--data", "data"]).expect(2).says(&["--data"]);
    lab.run(&["plan", "data", "--data", "data2"]).expect(2).says(&["ballast plan A B"]);
    lab.run(&["plan", "data", "absent"]).expect(2).says(&["absent"]);
}

fn folder<'a>(epoch: &'a Value, path: &str) -> &'a Value {
    epoch["folders"].as_array().unwrap().iter().find(|folder| folder["path"] == path).unwrap()
}

#[test]
fn memory_is_worked_out_before_anything_starts() {
    let lab = Lab::new();
    let plan = plan(&lab, &["--memory", "--set", "cluster.device=cpu", "--set", "cluster.workers=2"]);
    let memory = &plan["memory"];
    assert_eq!(memory["workers"], 2);
    let bytes = |key: &str| memory["worker"][key].as_u64().unwrap();
    let parts = ["weights", "copies", "gradients", "optimizer", "activations", "workspace", "process"];
    assert_eq!(parts.map(bytes).iter().sum::<u64>(), bytes("total"));
    // Two moments and at least one gradient of f32 for each trained parameter.
    assert!(bytes("gradients") * 2 >= bytes("optimizer") && bytes("weights") * 2 > bytes("optimizer"));
    let rows = |key: &str| memory[key].as_array().unwrap().clone();
    assert!(!rows("buckets").is_empty());
    let sizes = rows("micro_batch_sizes");
    let of =
        |size: u64| sizes.iter().find(|row| row["micro_batch_size"] == size).unwrap()["activations"].as_u64().unwrap();
    assert_eq!(of(32), 32 * of(1));
    assert!(memory["fit"].is_null() && bytes("copies") == 0 && bytes("process") == 0);
    let text = lab.run(&["plan", "config.toml", "--memory"]).expect(0).stdout;
    assert!(text.contains("activations of the largest bucket") && text.contains("by micro-batch"), "{text}");
}

#[test]
fn memory_is_that_of_the_config_and_compared_with_a_card() {
    let lab = Lab::new();
    let ask = |more: &[&str]| {
        plan(&lab, &[&["--memory", "--gpu-memory", "1GB", "--set", "cluster.workers=1"], more].concat())["memory"]
            .clone()
    };
    let bf16 = ask(&[]);
    let worker = &bf16["worker"];
    assert_eq!((&worker["target"], &worker["compute"]), (&"cuda".into(), &"bf16".into()));
    assert_eq!(bf16["fit"]["gpu_memory"], 1_000_000_000_u64);
    assert_eq!(bf16["fit"]["fits"], true);
    let largest = bf16["fit"]["largest_micro_batch_size"].as_u64().unwrap();
    let at = |size: u64| ask(&["--set", &format!("step.micro_batch_size={size}")])["fit"]["fits"].clone();
    assert_eq!((at(largest), at(largest + 1)), (true.into(), false.into()));
    let total = |answer: &Value| answer["worker"]["total"].as_u64().unwrap();
    let f32 = ask(&["--set", "precision.compute=fp32"]);
    assert_eq!(f32["worker"]["compute"], "f32");
    assert!(f32["worker"]["activations"].as_u64() > worker["activations"].as_u64());
    let again = ask(&["--set", "model.gradient_checkpointing=true"]);
    assert!(again["worker"]["recomputation"] == true && total(&again) < total(&bf16));
    let tight = lab.run(&["plan", "config.toml", "--memory", "--gpu-memory", "500MB"]).expect(0).stdout;
    assert!(tight.contains("does NOT fit a card of 0.47 GiB, not even in micro-batches of 1"), "{tight}");
    assert!(tight.contains("nothing of this makes it fit"), "{tight}");
    lab.run(&["plan", "config.toml", "--memory", "--gpu-memory", "24"]).expect(2).says(&["24GB"]);
    lab.run(&["plan", "config.toml", "--gpu-memory", "24GB"]).expect(2).says(&["--memory"]);
}

#[test]
fn memory_needs_a_model() {
    let lab = Lab::without_model();
    lab.run(&["plan", "config.toml", "--memory"]).expect(2).says(&["there is no model at"]);
}
