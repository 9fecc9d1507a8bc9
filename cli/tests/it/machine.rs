//! Machines that are made up: folders with libraries that answer as NVIDIA's do, where a command looks and nowhere else.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) struct Machine(TempDir);

impl Machine {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// With a driver and a GPU, and nothing else.
    pub(crate) fn with_gpu() -> Self {
        Self::empty().with("libcuda.so.1", &["DRIVER=12040", "GPUS=1"])
    }

    /// Adds a library of `cuda/tests/fake.c`.
    pub(crate) fn with(self, file: &str, defines: &[&str]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda/tests/fake.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let made = Command::new(compiler)
            .args(["-shared", "-fPIC", "-o"])
            .arg(self.0.path().join(file))
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg(source)
            .status();
        assert!(made.expect("a C compiler").success());
        self
    }

    /// Adds the headers of a toolkit.
    #[cfg(feature = "cuda")]
    pub(crate) fn with_headers(self) -> Self {
        let folder = self.0.path().join("include");
        std::fs::create_dir(&folder).unwrap();
        for file in ["cuda_runtime.h", "cuda_fp16.h", "mma.h"] {
            std::fs::write(folder.join(file), "").unwrap();
        }
        self
    }

    /// Has a command run on this machine.
    pub(crate) fn settle<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("BALLAST_LIBRARY_PATH", format!("{}:-", self.0.path().display()));
        command.env("CUDA_PATH", self.0.path()).env("HOME", self.0.path()).env_remove("CUDA_VISIBLE_DEVICES")
    }

    pub(crate) fn doctor(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.arg("doctor").args(args).arg("--out").arg(self.0.path());
        self.settle(&mut command).output().expect("ballast starts")
    }

    pub(crate) fn json(&self, args: &[&str], exit_code: i32) -> Value {
        let output = self.doctor(&[args, &["--format", "json"]].concat());
        assert_eq!(output.status.code(), Some(exit_code), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }
}
