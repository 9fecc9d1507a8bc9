//! Every script of the repository can be started, and its shell can read it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use ballast_tests::{files_under, repository};

#[test]
fn scripts_are_executable() {
    let not_executable: Vec<_> = scripts()
        .into_iter()
        .filter(|path| fs::metadata(path).expect("a listed file exists").permissions().mode() & 0o111 == 0)
        .collect();
    assert!(not_executable.is_empty(), "chmod +x {not_executable:?}");
}

#[test]
fn bash_can_parse_every_script() {
    for path in scripts() {
        let output = Command::new("bash").arg("-n").arg(&path).output().expect("bash starts");
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
}

/// The files under `deploy/` and `.ci/` whose first line names a shell. There are some: otherwise the tests look at
/// nothing.
fn scripts() -> Vec<PathBuf> {
    let names_a_shell = |path: &PathBuf| {
        let text = fs::read(path).expect("a listed file can be read");
        let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        first_line.starts_with(b"#!") && first_line.ends_with(b"bash")
    };
    let mut scripts: Vec<_> = [".ci", "deploy"]
        .iter()
        .flat_map(|folder| files_under(&repository().join(folder)))
        .filter(names_a_shell)
        .collect();
    scripts.sort();
    for expected in [".ci/run", "deploy/slurm/ballast.sbatch", "deploy/ssh/launch"] {
        assert!(scripts.contains(&repository().join(expected)), "{expected} is missing");
    }
    scripts
}
