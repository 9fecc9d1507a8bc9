//! What the tests that cross crates share: where the repository is and which files it holds, the simulation, and the check
//! of a model of full size.

pub mod full_size;
pub mod simulation;

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the folder that holds the workspace's `Cargo.toml`.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the package lies one folder below the repository").to_path_buf()
}

/// Lists the files under `folder`, sorted, without following links. Build outputs and run folders are left out.
pub fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("cannot list {}: {e}", folder.display()));
        for entry in entries {
            let entry = entry.expect("a folder's entry can be read");
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_file() {
                files.push(entry.path());
            } else if kind.is_dir() && !IGNORED_FOLDERS.iter().any(|ignored| entry.file_name() == *ignored) {
                folders.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// Folders that `.gitignore` names, and git's own.
const IGNORED_FOLDERS: [&str; 4] = [".git", ".venv", "runs", "target"];
