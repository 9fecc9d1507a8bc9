//! Checkpoints of real runs: written while training goes on, by a worker that may die of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ballast_common::checkpoint::{steps_of_name, verify};

use crate::lab::{Lab, reference};
use crate::process::Running;

fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("checkpoints")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Names of the folders that a save under way has made, as (path, process that writes).
fn unfinished(folder: &Path) -> Option<(PathBuf, u32)> {
    let is_partial = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.to_owned();
        let (_, process) = name.strip_prefix('.')?.split_once(".partial-new-")?;
        Some((path, process.parse().ok()?))
    };
    checkpoints(folder).into_iter().find_map(is_partial)
}

/// Kills a process, unless it has just ended by itself.
fn kill(process: u32) {
    std::process::Command::new("sh").args(["-c", &format!("kill -KILL {process}")]).status().unwrap();
}

/// A worker is killed while it writes: another one writes the next, half a checkpoint is never seen, and no bit changes.
#[test]
fn a_worker_killed_in_mid_save_leaves_no_half_checkpoint() {
    let lab = Lab::new();
    let set = ["--set", "checkpoint.every_steps=1", "--set", "checkpoint.background=on"];
    let mut training = lab.start_train("run", &[&["--workers", "2"], &set[..]].concat());
    training.wait_for_line("training with 2 workers");
    let folder = lab.run_of("run").folder;
    // No event tells of a folder that appears: hence the short naps. A run this short may also end before one is seen.
    let started = Instant::now();
    let victim = loop {
        match unfinished(&folder) {
            Some((_, process)) => break Some(process),
            None if folder.join("final.safetensors").exists() => break None,
            None => assert!(started.elapsed() < Duration::from_secs(60), "nothing is saved"),
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    let victim = victim.expect("every step is saved, so that a save is seen");
    kill(victim);
    training.finish().expect(0);
    lab.run_of("run").assert_same_as(reference());
    assert_eq!(unfinished(&folder), None, "the next save has cleaned up");
    let names = checkpoints(&folder);
    assert!(!names.is_empty());
    for path in names {
        let state = verify(&path).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Some(state.next_step), path.file_name().and_then(|name| steps_of_name(name.to_str()?)));
    }
    lab.run(&["verify", "runs/run"]).expect(0);
}

/// What is written in the background is what is written while training waits, file by file, and a run resumed from it ends
/// with the same bits.
#[test]
fn saving_in_the_background_changes_no_bit() {
    let lab = Lab::new();
    let train = |name: &str, background: &str| {
        let background = format!("checkpoint.background={background}");
        let set = ["--set", "checkpoint.every_steps=3", "--set", "checkpoint.keep_last=99", "--set", &background];
        lab.train(name, &[&["--workers", "2", "--max-steps", "7"], &set[..]].concat())
    };
    let (on, off) = (train("on", "on"), train("off", "off"));
    for step in ["step-000003", "step-000006", "step-000007"] {
        for file in ["optimizer.safetensors", "model/unet/diffusion_pytorch_model.safetensors"] {
            let name = format!("checkpoints/{step}/{file}");
            // A save that was slower than the next came is left out.
            if on.folder.join("checkpoints").join(step).exists() {
                assert!(on.bytes(&name) == off.bytes(&name), "{name}");
            }
        }
    }
    lab.train("on", &["--workers", "1", "--resume"]).assert_same_as(reference());
}

/// The newest checkpoint is damaged: the one before it is taken, and said so.
#[test]
fn a_damaged_checkpoint_is_passed_over_on_resume() {
    let lab = Lab::new();
    let keep = ["--set", "checkpoint.every_steps=2", "--set", "checkpoint.background=off"];
    let run = lab.train("run", &[&["--workers", "1", "--max-steps", "5"], &keep[..]].concat());
    let newest = run.folder.join("checkpoints/step-000005/optimizer.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 16;
    std::fs::write(&newest, bytes).unwrap();
    lab.run(&["verify", "runs/run"]).expect(1).says(&["step-000005 is damaged", "optimizer.safetensors"]);

    let resumed = lab.start_train("run", &["--workers", "1", "--resume"]).finish().expect(0);
    resumed.says(&["a damaged checkpoint is passed over", "step-000005", "its hash differs", "from step 4"]);
    run.assert_same_as(reference());
    let reason = run.rows("SELECT from_step, to_step, reason FROM rollbacks");
    assert!(reason.len() == 1 && reason[0].starts_with("Integer(5) Integer(4)"), "{reason:?}");
    let verified = lab.run(&["verify", "runs/run"]).expect(0);
    assert!(verified.stdout.contains("sound and of these commits"), "{}", verified.stdout);
}

/// A worker with another VAE at the same path, as on another machine, is refused by name.
#[test]
fn a_joiner_with_another_vae_is_refused() {
    let lab = Lab::new();
    let arguments = ["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "1", "--name", "run"];
    let mut coordinator = Running::start(lab.ballast(&arguments).args(["--set", "cluster.lease=60s"]));
    let line = coordinator.wait_for_line(" worker --coordinator");
    let url = line.rsplit(' ').next().unwrap().to_owned();
    let start = || {
        let arguments = ["worker", "--coordinator", &url, "--device", "cpu", "--threads", "1"];
        Running::start(&mut lab.ballast(&arguments))
    };
    let first = start();
    coordinator.wait_for_line("training with 1 worker");
    first.signal("STOP");
    // Another machine has another file under this path.
    lab.run(&["init-model", "tiny", "--seed", "8", "--out", "other"]).expect(0);
    let vae = "vae/diffusion_pytorch_model.safetensors";
    std::fs::copy(lab.path("other").join(vae), lab.path("model").join(vae)).unwrap();
    let refused = start().finish();
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    refused.says(&["its VAE of ", "is not the others'"]);
    first.signal("CONT");
    coordinator.finish().expect(0);
    first.finish().expect(0);
    lab.run_of("run").assert_same_as(reference());
}
