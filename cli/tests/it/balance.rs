//! `ballast balance`: proposals, and the files that it writes and does not write.

use serde_json::Value;

use crate::lab::Lab;

fn balance(lab: &Lab, args: &[&str]) -> Value {
    let finished = lab.run(&[&["balance", "config.toml", "--format", "json"], args].concat()).expect(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

fn after(balance: &Value, key: &str) -> Vec<f64> {
    let folders = balance["folders"].as_array().unwrap();
    folders.iter().map(|folder| folder[key]["after"].as_f64().unwrap()).collect()
}

fn read(lab: &Lab, name: &str) -> Option<String> {
    std::fs::read_to_string(lab.path(name)).ok()
}

#[test]
fn nothing_is_written_without_being_asked() {
    let lab = Lab::without_model();
    let proposed = balance(&lab, &["--per-folder", "6"]);
    assert_eq!(after(&proposed, "scheduled"), [6.0, 6.0, 6.0]);
    assert_eq!(after(&proposed, "multiply"), [1.2, 1.0, 0.6]);
    let files: Vec<&str> =
        proposed["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(files, ["boats/multiply.txt", "keep/multiply.txt"]);
    assert_eq!(
        (read(&lab, "data/boats/multiply.txt"), read(&lab, "data/cats/multiply.txt")),
        (Some("2.5".into()), None)
    );
    let text = lab.run(&["balance", "config.toml", "--per-folder", "6"]).expect(0).stdout;
    assert!(text.contains("2.5 → 1.2") && text.contains("--write --force"), "{text}");
}

#[test]
fn a_file_that_is_there_is_changed_by_force_only_and_its_text_is_kept_in_the_message() {
    let lab = Lab::without_model();
    std::fs::write(lab.path("data/boats/multiply.txt"), b"\xff\xfe2\0.\x005\0").unwrap(); // as PowerShell writes it
    let refused = lab.run(&["balance", "config.toml", "--per-folder", "12", "--write"]).expect(2);
    refused.says(&["nothing was written", "boats/multiply.txt", "\"2.5\"", "keep/multiply.txt", "hint: --force"]);
    assert_eq!(read(&lab, "data/cats/multiply.txt"), None);
    let done = lab.run(&["balance", "config.toml", "--per-folder", "12", "--write", "--force"]).expect(0).stdout;
    assert!(
        done.contains("boats/multiply.txt: 2.4 (was \"2.5\")") && done.contains("cats/multiply.txt: 2 (new)"),
        "{done}"
    );
    let written = ["boats", "cats", "keep"].map(|name| read(&lab, &format!("data/{name}/multiply.txt")).unwrap());
    assert_eq!(written, ["2.4\n", "2\n", "1.2\n"]);
    let left: Vec<_> =
        std::fs::read_dir(lab.path("data/cats")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");
    let plan = lab.run(&["plan", "config.toml", "--epochs", "4", "--format", "json"]).expect(0).stdout;
    let plan: Value = serde_json::from_str(&plan).unwrap();
    for folder in plan["epochs"].as_array().unwrap().iter().flat_map(|epoch| epoch["folders"].as_array().unwrap()) {
        assert_eq!(folder["scheduled"], 12);
    }
    let again = lab.run(&["balance", "config.toml", "--per-folder", "12", "--write"]).expect(0).stdout;
    assert!(again.contains("Nothing has to change."), "{again}");
}

#[test]
fn a_folder_at_one_needs_no_file() {
    let lab = Lab::without_model();
    std::fs::remove_file(lab.path("data/boats/multiply.txt")).unwrap();
    std::fs::remove_file(lab.path("data/keep/multiply.txt")).unwrap();
    lab.run(&["balance", "config.toml", "--per-folder", "5", "--write"]).expect(0);
    assert_eq!(read(&lab, "data/boats/multiply.txt"), None);
    assert_eq!(read(&lab, "data/keep/multiply.txt"), Some("0.5\n".to_owned()));
}

#[test]
fn goals_of_shares_and_groups() {
    let lab = Lab::without_model();
    let goal = ["--equal", "boats,cats", "--share", "keep=20%", "--epoch-size", "100"];
    assert_eq!(after(&balance(&lab, &goal), "scheduled"), [40.0, 40.0, 20.0]);
    let weighed = balance(&lab, &["--weigh", "loss", "--epoch-size", "80"]);
    assert_eq!(after(&weighed, "scheduled"), [20.0, 20.0, 40.0]);
    let shares = after(&weighed, "effective_share");
    assert!(shares.iter().all(|share| (share - 1.0 / 3.0).abs() < 1e-9), "{shares:?}");
    let often = balance(&lab, &["--per-folder", "100"]);
    assert!(often["warnings"][0].as_str().unwrap().contains("overfitting"), "{often}");
}

#[test]
fn goals_that_cannot_be_are_refused_with_what_is_allowed() {
    let lab = Lab::without_model();
    let refuse = |args: &[&str], parts: &[&str]| {
        lab.run(&[&["balance", "config.toml", "--write"], args].concat()).expect(2).says(parts);
    };
    refuse(&["--equal", "cats,baots"], &["no folder \"baots\"", "did you mean \"boats\"?"]);
    refuse(&["--share", "keep=100%"], &["above 0 % and below 100 %"]);
    refuse(&["--share", "keep=60%", "--share", "cats=50%"], &["110 %", "below 100 %"]);
    refuse(&["--share", "keep=lots"], &["preservation=10%"]);
    refuse(&["--per-folder", "60000"], &["boats", "from 1 to 50000"]);
    refuse(&["--per-folder", "0"], &["--per-folder"]);
    refuse(&["--epoch-size", "2"], &["from 3"]);
    lab.run(&["balance", "--data", "data", "--equal", "config.toml"]).expect(2).says(&["balance config.toml --equal"]);
    lab.run(&["balance", "--data", "absent"]).expect(2);
}

#[test]
fn a_multiplier_from_yaml_is_left_to_its_file() {
    let lab = Lab::without_model();
    lab.write("data/cats/local.yaml", "multiply: 1\n");
    let refused = lab.run(&["balance", "config.toml", "--per-folder", "12", "--write", "--force"]).expect(2);
    refused.says(&["nothing was written", "cats/multiply.txt: local.yaml beside it sets multiply", "multiply: 2"]);
    assert_eq!(read(&lab, "data/boats/multiply.txt"), Some("2.5".into()));
}
