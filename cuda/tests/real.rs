//! The calls to NCCL and to the driver themselves (`nccl/real.rs`), between processes: libraries that work, over the host's
//! memory and a shared file (`fake_group.c`), in the place of NVIDIA's.
//!
//! That shows addresses, lengths, the configuration's layout, and that the calls come in an order that works. It does not show
//! what NVIDIA's libraries make of them. Needs a C compiler, as the build does.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a driver and an NCCL that work, where a process looks and nowhere else.
fn machine() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let compile = |arguments: &[&str]| {
        let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_group.c");
        let mut command = Command::new(compiler);
        command.current_dir(&folder).args(["-O1", "-shared", "-fPIC"]).arg(source).args(arguments);
        let output = command.output().expect("a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    compile(&["-DDRIVER", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1"]);
    compile(&["-DNCCL", "-Wl,-rpath,$ORIGIN", "-L.", "-l:libcuda.so.1", "-o", "libnccl.so.2"]);
    folder
}

/// The example lies beside the folder of the tests.
fn rank_program() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/nccl_rank")
}

/// What every rank of a group of processes says.
fn ranks(machine: &TempDir, world_size: u32) -> Vec<Value> {
    let shared = tempfile::tempdir().unwrap();
    let start = |rank: u32| {
        let mut command = Command::new(rank_program());
        command.args([rank, world_size, rank].map(|number| number.to_string()));
        command.arg(shared.path().join("id")).arg("3"); // MiB
        command.env("BALLAST_LIBRARY_PATH", format!("{}:-", machine.path().display()));
        command.env("FAKE_NCCL_DIR", shared.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    };
    let running: Vec<_> = (0..world_size).map(start).collect();
    let outputs = running.into_iter().map(|process| process.wait_with_output().unwrap());
    outputs
        .map(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        })
        .collect()
}

#[test]
fn ranks_in_processes_of_their_own_add_up_and_exchange() {
    let machine = machine();
    for world_size in 1..=4 {
        for (rank, said) in ranks(&machine, world_size).into_iter().enumerate() {
            assert_eq!(said["sum_is_right"], true, "rank {rank} of {world_size}: {said}");
            assert_eq!(said["exchange_is_right"], true, "rank {rank} of {world_size}: {said}");
        }
    }
}

#[test]
fn a_driver_that_does_not_work_is_an_error_of_its_call() {
    let machine = machine();
    // The driver has four GPUs.
    let shared = tempfile::tempdir().unwrap();
    let output = Command::new(rank_program())
        .args(["0", "1", "7"])
        .arg(shared.path().join("id"))
        .env("BALLAST_LIBRARY_PATH", format!("{}:-", machine.path().display()))
        .output()
        .expect("the program starts");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = said["error"].as_str().unwrap();
    assert!(error.contains("cuDeviceGet failed: CUDA_ERROR_MADE_UP (code 101)"), "{error}");
    // No folder for the group: NCCL finds nothing to listen on, and makes no id.
    let output = Command::new(rank_program())
        .args(["0", "1", "0"])
        .arg(shared.path().join("id"))
        .env("BALLAST_LIBRARY_PATH", format!("{}:-", machine.path().display()))
        .env_remove("FAKE_NCCL_DIR")
        .output()
        .expect("the program starts");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["error"].as_str().unwrap().contains("ncclGetUniqueId failed"), "{said}");
}
