//! What is found on machines that are made up: folders with libraries that answer as NVIDIA's do.
//!
//! Each machine gets a process of its own (`examples/probe.rs`), since a library that was opened once stays. Needs a C
//! compiler, as the build does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;
use tempfile::TempDir;

/// A folder of libraries and headers, where a process looks and nowhere else.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, file: &str, defines: &[&str]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake.c");
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        let output = Command::new(compiler)
            .args(["-shared", "-fPIC", "-o"])
            .arg(self.0.path().join(file))
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg(source)
            .output()
            .expect("a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self
    }

    fn with_headers(self) -> Self {
        let folder = self.0.path().join("include");
        fs::create_dir(&folder).unwrap();
        for file in ["cuda_runtime.h", "cuda_fp16.h", "mma.h"] {
            fs::write(folder.join(file), "").unwrap();
        }
        fs::write(folder.join("cuda.h"), "#define CUDA_VERSION 12040\n").unwrap();
        self
    }

    fn probe(&self) -> Value {
        let output = Command::new(probe_program())
            .env("BALLAST_LIBRARY_PATH", format!("{}:-", self.0.path().display()))
            .env("CUDA_PATH", self.0.path())
            .output()
            .expect("the probe starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("the probe prints JSON")
    }
}

/// The example lies beside the folder of the tests.
fn probe_program() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/probe")
}

#[test]
fn a_whole_machine_is_described() {
    let found = Machine::new()
        .with("libcuda.so.1", &["DRIVER=12040", "GPUS=2"])
        .with("libnvrtc.so.12", &["NVRTC=12040"])
        .with("libnccl.so.2", &["NCCL=22105"])
        .with_headers()
        .probe();
    let machine = &found["machine"];
    for (part, version) in [("driver", "12.4"), ("nvrtc", "12.4"), ("headers", "12.4"), ("nccl", "2.21.5")] {
        assert_eq!(machine[part]["state"], "good", "{part}: {machine}");
        assert_eq!(machine[part]["version"], version, "{part}");
        assert!(machine[part]["path"].as_str().unwrap().starts_with('/'), "{part}: {machine}");
    }
    assert_eq!(machine["gpus"][0]["name"], "NVIDIA Test 80GB");
    assert_eq!(machine["gpus"][0]["memory_bytes"], 85_899_345_920_u64);
    assert_eq!(machine["gpus"][0]["compute_capability"], "9.0");
    assert_eq!(machine["gpus"][0]["uuid"], "GPU-abababab-abab-abab-abab-ababababab0a");
    assert_eq!(machine["gpus"][1]["uuid"], "GPU-abababab-abab-abab-abab-ababababab0b");
    assert!(machine["gpus"][1]["problem"].as_str().unwrap().contains("compute capability 8.0"), "{machine}");
    assert_eq!(found["can_train"], true);
}

#[test]
fn an_empty_machine_has_a_remedy_for_every_part() {
    let found = Machine::new().probe();
    let machine = &found["machine"];
    for (part, remedy) in [
        ("driver", "install NVIDIA's driver"),
        ("nvrtc", "NVRTC"),
        ("headers", "CUDA_PATH"),
        ("nccl", "install NCCL 2"),
    ] {
        assert_eq!(machine[part]["state"], "missing", "{part}: {machine}");
        assert!(machine[part]["remedy"].as_str().unwrap().contains(remedy), "{part}: {machine}");
    }
    assert_eq!(found["can_train"], false);
}

/// What the part of a machine with one bad library says: (file, its defines, part, what is said, what helps).
#[test]
fn a_bad_part_says_what_is_wrong_and_what_helps() {
    let cases = [
        ("libcuda.so.1", vec!["DRIVER=11080", "GPUS=1"], "driver", "12.0 is needed", "update NVIDIA's driver"),
        ("libcuda.so.1", vec!["DRIVER=12040", "GPUS=0"], "driver", "no GPU", "CUDA_VISIBLE_DEVICES"),
        ("libcuda.so.1", vec!["DRIVER=12040", "GPUS=1", "INIT=100"], "driver", "no GPU", "CUDA_VISIBLE_DEVICES"),
        ("libcuda.so.1", vec!["DRIVER=12040", "GPUS=1", "INIT=999"], "driver", "code 999", "restart"),
        ("libcuda.so.1", vec!["DRIVER=12040", "GPUS=1", "NO_ATTRIBUTE"], "driver", "cuDeviceGetAttribute", "update"),
        ("libnccl.so.2", vec!["NCCL=21701"], "nccl", "NCCL 2.17.1, and 2.18.0 or newer", "newer NCCL"),
        ("libnccl.so.2", vec!["NCCL=2708"], "nccl", "NCCL 2.7.8", "newer NCCL"),
        ("libnccl.so.2", vec!["NCCL=23007", "FEW"], "nccl", "has no ncclGetUniqueId", "newer NCCL"),
        ("libnvrtc.so.12", vec!["OTHER"], "nvrtc", "has no nvrtcVersion", "install"),
    ];
    for (file, defines, part, problem, remedy) in cases {
        let found = Machine::new().with(file, &defines).probe();
        let part = &found["machine"][part];
        assert_eq!(part["state"], "unusable", "{defines:?}: {part}");
        assert!(part["problem"].as_str().unwrap().contains(problem), "{defines:?}: {part}");
        assert!(part["remedy"].as_str().unwrap().contains(remedy), "{defines:?}: {part}");
        assert_eq!(found["can_train"], false);
    }
}

#[test]
fn an_nvrtc_newer_than_the_driver_is_noticed() {
    let driver = Machine::new().with("libcuda.so.1", &["DRIVER=12040", "GPUS=1"]);
    let found = driver.with("libnvrtc.so.13", &["NVRTC=13000"]).with_headers().probe();
    let nvrtc = &found["machine"]["nvrtc"];
    assert!(nvrtc["problem"].as_str().unwrap().contains("newer than the driver's CUDA 12.4"), "{nvrtc}");
    assert_eq!(found["can_train"], false);
}

/// One GPU needs no NCCL.
#[test]
fn a_single_gpu_trains_without_nccl() {
    let found = Machine::new()
        .with("libcuda.so.1", &["DRIVER=13000", "GPUS=1"])
        .with("libnvrtc.so.12", &["NVRTC=12090"])
        .with_headers()
        .probe();
    assert_eq!(found["machine"]["nccl"]["state"], "missing");
    assert_eq!(found["can_train"], true);
}
