//! `ballast doctor` on machines that are made up: folders with libraries that answer as NVIDIA's do.
//!
//! What each bad part says is tested in `cuda/tests/machine.rs`; here, what becomes of it in the command.

use std::process::Command;

use crate::machine::Machine;

#[test]
fn without_a_driver_it_is_the_cpu() {
    let report = Machine::empty().json(&[], 0);
    assert_eq!(report["ready"], true);
    assert_eq!(report["cuda"]["driver"]["state"], "missing");
    assert!(report["cpu"]["cores"].as_u64().unwrap() > 0 && report["memory"]["total_bytes"].as_u64().unwrap() > 0);
    assert!(report["disk"]["sync_ms"].is_number());
    let text = Machine::empty().doctor(&[]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.ends_with("ready to train on the CPU\n"), "{text}");
    for part in ["processor", "memory", "disk", "NVIDIA driver", "NVRTC", "CUDA headers", "NCCL"] {
        assert!(text.lines().any(|line| line.starts_with(part)), "{part}: {text}");
    }
}

#[test]
fn wanting_a_gpu_that_is_not_there_fails_with_the_remedy() {
    let report = Machine::empty().json(&["--device", "cuda"], 1);
    assert_eq!(report["ready"], false);
    let advice = report["advice"].to_string();
    assert!(advice.contains("install NVIDIA's driver") && advice.contains("NVRTC"), "{advice}");
    assert!(!advice.contains("install NCCL"), "one machine without GPUs has no need of it: {advice}");
}

#[test]
fn a_gpu_is_named_and_what_it_lacks_is_said() {
    let machine = Machine::with_gpu();
    let report = machine.json(&["--device", "cuda"], 1);
    assert_eq!(report["cuda"]["gpus"][0]["name"], "NVIDIA Test 80GB");
    let text = String::from_utf8_lossy(&machine.doctor(&["--device", "cuda"]).stdout).into_owned();
    assert!(text.contains("NVIDIA Test 80GB, 80.0 GiB, compute capability 9.0"), "{text}");
    assert!(text.contains("hint: NVRTC: install") && text.ends_with("not ready to train on GPUs\n"), "{text}");
    if report["has_cuda_support"] == false {
        assert!(text.contains("this build has no CUDA support: cargo build"), "{text}");
        // On the CPU this build can train here, and says how to use the GPU.
        assert!(machine.json(&[], 0)["advice"].to_string().contains("--features cuda"));
    }
}

#[test]
fn a_disk_that_cannot_be_written_is_no_place_for_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_ballast"))
        .args(["doctor", "--device", "cpu", "--out", "/proc/no-such-folder"])
        .output()
        .expect("ballast starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("cannot write to /proc/no-such-folder"));
}
