//! A full disk: said with what and where, and nothing half-written is left under a final name.

use std::process::Command;

use crate::lab::Lab;
use crate::process::Running;

#[test]
fn a_full_disk_ends_the_run_with_a_message_and_without_half_a_model() {
    let lab = Lab::new();
    // No file may grow beyond this: the ledger stays below, the model does not. The unit of `ulimit -f` is 512 bytes in some
    // shells and 1024 in others. The signal that goes with it is ignored, so that writing fails as on a full disk.
    let model = std::fs::metadata(lab.path("model/unet/diffusion_pytorch_model.safetensors")).unwrap().len();
    let blocks = model / 1024 / 2;
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" train config.toml --workers 2 --name run");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_ballast")]);
    lab.settle(&mut command);
    let failed = Running::start(&mut command).finish().expect(1);
    failed.says(&["error: ", "cannot write", "runs/run", "too large"]);

    let run = lab.run_of("run");
    assert!(!run.folder.join("final").exists() && !run.folder.join("final.safetensors").exists());
    let checkpoints: Vec<_> =
        std::fs::read_dir(run.folder.join("checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(checkpoints.iter().all(|path| !path.join("state.json").exists()), "{checkpoints:?}");
    // With space again, it goes on.
    lab.train("run", &["--workers", "2", "--resume"]).assert_same_as(crate::lab::reference());
}
