//! A full disk: said with what and where, and nothing half-written is left under a final name.

use std::process::Command;

use crate::lab::{self, Lab};
use crate::process::{Finished, Running};

/// Starts a run in which no file may grow beyond half the model's size: the ledger stays below, the model does not.
///
/// The unit of `ulimit -f` is 512 bytes in some shells and 1024 in others. The signal that goes with it is ignored, so that
/// writing fails as on a full disk.
fn train_on_a_full_disk(lab: &Lab, arguments: &str) -> Finished {
    let model = std::fs::metadata(lab.path("model/unet/diffusion_pytorch_model.safetensors")).unwrap().len();
    let blocks = model / 1024 / 2;
    let script =
        format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" train config.toml --workers 2 --name run {arguments}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ballast")]);
    lab.settle(&mut command);
    Running::start(&mut command).finish()
}

#[test]
fn a_checkpoint_that_does_not_fit_is_named_and_training_goes_on() {
    let lab = Lab::new();
    let failed = train_on_a_full_disk(&lab, "--set checkpoint.every_steps=2").expect(1);
    failed.says(&["a checkpoint could not be saved; training goes on", "too large", "error: "]);
    let run = lab.run_of("run");
    let steps = lab::reference().rows("SELECT count(*) FROM commits");
    assert_eq!(run.rows("SELECT count(*) FROM commits"), steps, "all steps were made");
    assert!(run.rows("SELECT * FROM checkpoints").is_empty());
    // Nothing was saved: with space again, it begins anew, and says so.
    lab.train("run", &["--workers", "2", "--resume"]).assert_same_as(lab::reference());
    let reasons = run.rows("SELECT to_step, reason FROM rollbacks");
    assert!(reasons[0].starts_with("Integer(0) ") && reasons.len() == 1, "{reasons:?}");
}

#[test]
fn a_full_disk_ends_the_run_with_a_message_and_without_half_a_model() {
    let lab = Lab::new();
    let failed = train_on_a_full_disk(&lab, "").expect(1);
    failed.says(&["error: ", "cannot write", "runs/run", "too large"]);

    let run = lab.run_of("run");
    assert!(!run.folder.join("final").exists() && !run.folder.join("final.safetensors").exists());
    let checkpoints: Vec<_> =
        std::fs::read_dir(run.folder.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(checkpoints.iter().all(|path| !path.join("state.json").exists()), "{checkpoints:?}");
    // With space again, it goes on.
    lab.train("run", &["--workers", "2", "--resume"]).assert_same_as(lab::reference());
}
