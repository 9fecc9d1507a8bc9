//! `ballast verify`: a good run passes; a ledger that was touched does not.

use crate::lab::Lab;

#[test]
fn verify_passes_a_good_run_and_names_what_was_altered_in_another() {
    let lab = Lab::new();
    let run = lab.train("run", &["--workers", "2", "--max-steps", "4"]);
    let report = lab.run(&["verify", "runs/run", "--format", "json"]).expect(0);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["committed_steps"], 4);
    let positions = run.rows("SELECT count(*) FROM losses");
    assert_eq!(positions, [format!("Integer({})", report["positions"])]);

    let pristine = run.bytes("ledger.sqlite");
    for tampering in [
        "UPDATE losses SET loss = loss * 0.5 WHERE step = 2 AND position = (SELECT min(position) FROM losses WHERE step = 2)",
        "DELETE FROM losses WHERE step = 1 AND position = (SELECT max(position) FROM losses WHERE step = 1)",
        "DELETE FROM commits WHERE step = 1",
        "UPDATE commits SET gradient_hash = zeroblob(32) WHERE step = 3",
        "UPDATE losses SET sample = sample + 1 WHERE step = 0",
        "UPDATE epochs SET schedule_hash = 'other' WHERE epoch = 0",
    ] {
        assert!(run.ledger().execute(tampering, []).unwrap() > 0, "{tampering}");
        let refusal = lab.run(&["verify", "runs/run"]);
        assert_eq!(refusal.code, Some(1), "{tampering}: {}", refusal.stdout);
        assert!(refusal.stderr.starts_with("error: "), "{tampering}: {}", refusal.stderr);
        std::fs::write(run.folder.join("ledger.sqlite"), &pristine).unwrap();
    }
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn verify_of_no_run_is_wrong_usage() {
    let lab = Lab::without_model();
    lab.run(&["verify", "data"]).expect(2).says(&["data", "ledger.sqlite"]);
}
