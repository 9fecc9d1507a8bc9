//! Data roots in other forms than one folder.

use serde_json::Value;

use crate::lab::Lab;

const LIST: &str = r#"[
    {"image": "data/cats/picture_1.png", "caption": "a cat from the list", "multiply": 2},
    {"image": "data/keep/picture_0.png"}
]"#;

#[test]
fn plan_takes_several_roots() {
    let lab = Lab::without_model();
    lab.write("list.json", LIST);
    let plan =
        lab.run(&["plan", "--data", "data/boats", "--data", "list.json", "--samples", "--format", "json"]).expect(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let folders: Vec<&str> = plan["epochs"][0]["folders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|folder| folder["path"].as_str().unwrap())
        .collect();
    assert_eq!(folders, ["boats", "list.json/data/cats", "list.json/data/keep"]);
    let listed =
        plan["samples"].as_array().unwrap().iter().find(|sample| sample["path"] == "list.json/data/cats/picture_1.png");
    assert_eq!(listed.unwrap()["caption"], "a cat from the list");
    let twice = lab.run(&["plan", "--data", "data", "--data", "data/boats"]).expect(2);
    twice.says(&["data/boats", "hint: ", "multiply.txt"]);
    lab.write("list.json", LIST.replace("data/cats", "../cats"));
    lab.run(&["plan", "--data", "list.json"]).expect(2).says(&["list.json, entry 1:2: ", "../cats", "allowed: "]);
    assert!(lab.is_untouched());
}

#[test]
fn training_finds_the_pictures_of_all_roots() {
    let lab = Lab::new();
    lab.write("list.json", LIST);
    let roots = r#"data.root=["data/boats", "list.json"]"#;
    let run = lab.train("run", &["--workers", "2", "--set", roots, "--set", "run.epochs=1"]);
    assert!(run.rows("SELECT DISTINCT path FROM losses JOIN samples ON id = sample WHERE skipped <> ''").is_empty());
    lab.run(&["verify", "runs/run"]).expect(0);
}
