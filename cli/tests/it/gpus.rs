//! What becomes of `--device` on machines with and without GPUs, which are made up. Each says what is missing, and what helps.

use crate::lab::Lab;
use crate::machine::Machine;
use crate::process::{Finished, Running};

const HAS_CUDA: bool = cfg!(feature = "cuda");

fn run(lab: &Lab, machine: &Machine, args: &[&str]) -> Finished {
    Running::start(machine.settle(&mut lab.ballast(args))).finish()
}

#[test]
fn wanting_a_gpu_where_there_is_none_is_refused_with_the_remedy() {
    let (lab, machine) = (Lab::new(), Machine::empty());
    let url = "http://127.0.0.1:9";
    let commands: [&[&str]; 3] = [
        &["train", "config.toml", "--device", "cuda"],
        &["worker", "--coordinator", url, "--device", "cuda"],
        &["worker", "--coordinator", url, "--device", "cuda:1"],
    ];
    for command in commands {
        let finished = run(&lab, &machine, command).expect(2).says(&["error: cannot compute on `cuda", "--device cpu"]);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        if HAS_CUDA {
            finished.says(&["NVIDIA driver: ", "was not found", "hint: NVIDIA driver: install NVIDIA's driver"]);
        } else {
            finished.says(&["this build has no CUDA support", "hint: cargo build --release --locked --features cuda"]);
        }
    }
    assert!(lab.is_untouched());
}

#[test]
fn a_gpu_that_is_left_idle_is_never_left_so_in_silence() {
    let (lab, machine) = (Lab::new(), Machine::with_gpu());
    let train = ["train", "config.toml", "--name", "run", "--max-steps", "1"];
    if HAS_CUDA {
        // NVRTC and the headers are missing: with them it would train on the GPU.
        run(&lab, &machine, &train).expect(2).says(&["NVRTC", "hint: NVRTC: install", "CUDA headers: install"]);
        assert!(lab.is_untouched());
    } else {
        run(&lab, &machine, &train).expect(0).says(&[
            "1 GPU(s) that are not used",
            "--features cuda",
            "worker 1 joined: cpu",
        ]);
    }
    let nothing_to_say =
        run(&lab, &machine, &["train", "config.toml", "--name", "cpu", "--device", "cpu", "--max-steps", "1"]);
    assert!(!nothing_to_say.expect(0).stderr.contains("GPU"));
}

#[test]
fn nccl_is_not_insisted_on_where_there_are_no_gpus() {
    let (lab, machine) = (Lab::new(), Machine::empty());
    let insist = ["train", "config.toml", "--set", "cluster.collective=nccl"];
    run(&lab, &machine, &insist).expect(2).says(&["cluster.collective is \"nccl\"", "no GPU", "hint: "]);
    let on_cpu = [&insist[..], &["--device", "cpu"]].concat();
    run(&lab, &machine, &on_cpu).expect(2).says(&["`cluster.collective`", "\"auto\" or \"tcp\""]);
    assert!(lab.is_untouched());
}

/// A machine of three GPUs with all that is needed, as far as can be seen without touching one: a worker for each. Their
/// driver can do nothing, which is an error and no hang.
#[cfg(feature = "cuda")]
#[test]
fn a_worker_is_started_for_each_gpu() {
    let lab = Lab::new();
    let machine = Machine::empty()
        .with("libcuda.so.1", &["DRIVER=12040", "GPUS=3", "ALIKE"])
        .with("libnvrtc.so.12", &["NVRTC=12040"])
        .with_headers();
    let failed = run(&lab, &machine, &["train", "config.toml", "--name", "run"]).expect(1);
    let failed = failed.says(&["NCCL cannot be used, so gradients go over TCP", "install NCCL 2"]);
    for gpu in ["cuda:0", "cuda:1", "cuda:2"] {
        let logs = (1..=3).map(|number| lab.run_of("run").text(&format!("worker-{number}.log")));
        assert!(logs.into_iter().any(|log| log.contains(&format!("computing on {gpu}"))), "{gpu}: {}", failed.stderr);
    }
    let one = ["train", "config.toml", "--name", "one", "--workers", "1"];
    run(&lab, &machine, &one).expect(1);
    assert!(lab.run_of("one").text("worker-1.log").contains("computing on cuda:0"));
}
