//! `ballast report`: what was delivered, from the ledger alone.

use serde_json::Value;

use crate::lab::{Lab, reference};

fn report(lab: &Lab, args: &[&str]) -> Value {
    let finished = lab.run(&[&["report", "runs/run", "--format", "json"], args].concat()).expect(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

fn folder<'a>(report: &'a Value, path: &str) -> &'a Value {
    report["folders"].as_array().unwrap().iter().find(|folder| folder["path"] == path).unwrap()
}

#[test]
fn what_was_delivered_is_what_was_intended_also_when_data_and_model_are_gone() {
    let lab = Lab::new();
    lab.write("data/boats/multiply.txt", "2");
    lab.write("data/boats/loss_scale.txt", "0.5");
    lab.train("run", &["--workers", "1", "--max-steps", "4"]);
    let half = report(&lab, &[]);
    assert_eq!(half["run"]["committed_steps"], 4);
    let uses = half["total"]["delivered"].as_u64().unwrap();
    assert_eq!((uses, &half["total"]["intended"]), (uses, &uses.into()));

    // A picture breaks half-way: its head is whole, so the data look the same, and the rest is nothing.
    let broken = lab.path("data/cats/picture_1.png");
    let mut bytes = std::fs::read(&broken).unwrap();
    bytes[64..].fill(0);
    std::fs::write(&broken, bytes).unwrap();
    lab.start_train("run", &["--workers", "1", "--resume"]).finish().expect(0).says(&["picture_1.png"]);
    for folder in ["data", "model"] {
        std::fs::remove_dir_all(lab.path(folder)).unwrap();
    }

    let whole = report(&lab, &["--images"]);
    assert_eq!((&whole["run"]["complete_epochs"], &whole["run"]["epochs"]), (&4.into(), &4.into()));
    // 5 pictures × 2 × 4 epochs, each at half the weight.
    let boats = folder(&whole, "boats");
    assert_eq!((&boats["delivered"], &boats["intended"], &boats["skipped"]), (&40.into(), &40.into(), &0.into()));
    assert_eq!((boats["weight"].as_f64(), boats["intended_weight"].as_f64()), (Some(20.0), Some(20.0)));
    assert_eq!(
        (boats["exposures_per_image"]["min"].as_u64(), boats["exposures_per_image"]["max"].as_u64()),
        (Some(8), Some(8))
    );
    let cats = folder(&whole, "cats");
    let skipped = cats["skipped"].as_u64().unwrap();
    assert!((2..=3).contains(&skipped), "the epochs after the first: {skipped}");
    assert_eq!((cats["intended"].as_u64(), cats["delivered"].as_u64()), (Some(24), Some(24 - skipped)));
    let picture = |image: &&Value| image["path"] == "cats/picture_1.png";
    let picture = whole["images"].as_array().unwrap().iter().find(picture).unwrap();
    assert_eq!((picture["skipped"].as_u64(), picture["delivered"].as_u64()), (Some(skipped), Some(4 - skipped)));
    // 10 pictures at 0.1 and half the weight.
    let keep = folder(&whole, "keep");
    assert_eq!(
        (keep["intended"].as_u64(), keep["delivered"].as_u64(), keep["weight"].as_f64()),
        (Some(4), Some(4), Some(2.0))
    );
    let text = lab.run(&["report", "runs/run"]).expect(0).stdout;
    for part in ["4 of 4 epochs are covered whole", "boats", "adjusted", "could not be read", "--out DIR"] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn the_json_keeps_its_keys_and_the_plots_are_written() {
    let lab = Lab::without_model();
    let run = reference().folder.to_string_lossy().into_owned();
    let finished = lab.run(&["report", &run, "--format", "json", "--top", "2", "--out", "out"]).expect(0);
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    let has = |value: &Value, keys: &str| {
        for key in keys.split(' ') {
            assert!(value.get(key).is_some(), "{key} in {value}");
        }
    };
    has(&report, "run total folders timestep_quarters timestep_bands exposures_per_image ranked_from_exposures notes");
    has(&report["run"], "folder id committed_steps total_steps complete_epochs epochs steps_taken_back rollbacks");
    has(&report["total"], "images images_used delivered intended skipped not_finite weight intended_weight loss");
    has(&report["folders"][0], "path images images_used multiply loss_scale delivered intended skipped weight share");
    has(&report["folders"][0], "effective_share intended_effective_share exposures_per_image loss");
    has(&report["folders"][0]["loss"], "mean adjusted first_tenth last_tenth change over_time");
    has(&report["timestep_quarters"][3], "from_timestep to_timestep losses loss");
    has(&report["highest_loss"][0], "path delivered skipped weight mean deviation adjusted adjusted_deviation last");
    assert_eq!(report["highest_loss"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&report["total"]["delivered"], &report["notes"]),
        (&report["total"]["intended"], &Value::Array(vec![]))
    );
    let written: Value = serde_json::from_slice(&std::fs::read(lab.path("out/report.json")).unwrap()).unwrap();
    assert_eq!(written, report);
    for plot in ["exposures_by_folder", "exposures_per_image", "loss_by_folder", "loss_by_timestep"] {
        let svg = std::fs::read_to_string(lab.path(&format!("out/{plot}.svg"))).unwrap();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{plot}");
    }
}

#[test]
fn a_folder_without_a_run_is_wrong_usage() {
    let lab = Lab::without_model();
    lab.run(&["report", "data"]).expect(2).says(&["data", "ledger.sqlite", "hint: "]);
    lab.write("runs/run/ledger.sqlite", "no database, however one looks at it");
    lab.run(&["report", "runs/run"]).expect(1).says(&["ledger.sqlite"]);
}
