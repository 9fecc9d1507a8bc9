//! What a checkpoint folder holds, as files: `state.json` with the size and hash of every other file.
//!
//! Plain files, no tensors, so that the coordinator can tell a whole checkpoint from a damaged one. A checkpoint is
//! complete when its folder has its final name (it is written elsewhere and renamed), and sound when every hash agrees.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file that describes a checkpoint.
pub const STATE_FILE: &str = "state.json";

/// Version of the layout. A reader refuses another one by name.
pub const FORMAT_VERSION: u32 = 1;

/// The key of the `run` object ([`CheckpointState::run`]) for the ledger's chain at the checkpoint's step: the history that it
/// is of. Older checkpoints have none.
pub const CHAIN: &str = "chain";

/// The key of the `run` object that says how often steps had been taken back when the checkpoint was asked for. A writer
/// that was held up does not replace a checkpoint of a later history. Older checkpoints have none.
pub const HISTORY: &str = "history";

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// See [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Name of the run.
    pub run_id: String,
    /// Steps that the parameters have made, hence the next step to compute.
    pub next_step: u64,
    /// BLAKE3 (hex) of the flat trainable parameters, little-endian `f32`.
    pub params_hash: String,
    /// What the coordinator wants to find again.
    pub run: serde_json::Value,
    /// Every other file, by its path in the folder, with `/`.
    pub files: BTreeMap<String, FileRecord>,
}

/// Size and hash of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the content, hex.
    pub blake3: String,
}

/// Why a checkpoint cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// `state.json` is not what it should be.
    #[error("{path} does not describe a checkpoint")]
    State {
        /// The file.
        path: PathBuf,
        /// What serde found.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a version that this one does not know.
    #[error("{path} has format version {found}, this program reads version {FORMAT_VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
    },
    /// `state.json` names a file outside its folder.
    #[error("{path} names a file outside of its folder: `{name}`")]
    Outside {
        /// The file.
        path: PathBuf,
        /// What it names.
        name: String,
    },
    /// A file is not the one that was written.
    #[error("{path} is damaged: {problem}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it differs.
        problem: String,
    },
}

/// Returns the name of the folder with the state after `next_step` steps: `step-000100`.
pub fn folder_name(next_step: u64) -> String {
    format!("step-{next_step:06}")
}

/// Returns the count of steps that a folder name stands for: the reverse of [`folder_name`].
pub fn steps_of_name(name: &str) -> Option<u64> {
    let next_step = name.strip_prefix("step-")?.parse().ok()?;
    (folder_name(next_step) == name).then_some(next_step)
}

/// Keeps a checkpoint from being deleted for as long as it lives. Many may hold one.
#[derive(Debug)]
pub struct Hold {
    /// Locked; the lock goes with it.
    _state: Option<File>,
}

impl Hold {
    /// Takes hold of a checkpoint that is about to be read. Where the file system has no locks, or the file is missing,
    /// nothing is held: what is wrong with the checkpoint is for the reader to say.
    pub fn take(folder: &Path) -> Self {
        // Waits only for somebody who looks whether it is held.
        let state = File::open(folder.join(STATE_FILE)).ok().filter(|file| file.lock_shared().is_ok());
        Self { _state: state }
    }
}

/// Says whether somebody reads the checkpoint, on this machine or (where the file system carries locks) on another.
pub fn is_held(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(STATE_FILE)) else { return false };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Reads `state.json` and looks at every other file's size: quick, and enough to tell a whole checkpoint from one that is
/// not there or was cut short. Only [`verify`] tells it from an altered one.
///
/// # Errors
/// Names the first file that is missing or has another size.
pub fn glance(folder: &Path) -> Result<CheckpointState, CheckpointError> {
    check_files(folder, |path, expected| {
        let found =
            std::fs::metadata(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        Ok(FileRecord { bytes: found.len(), blake3: expected.blake3.clone() })
    })
}

/// Reads `state.json` and compares every file with it, byte for byte through its hash.
///
/// # Errors
/// Names the first file that is missing or differs.
pub fn verify(folder: &Path) -> Result<CheckpointState, CheckpointError> {
    let _reading = Hold::take(folder);
    check_files(folder, |path, _| record(path))
}

/// Compares what `look` finds of each file with what `state.json` says.
fn check_files(
    folder: &Path,
    look: impl Fn(&Path, &FileRecord) -> Result<FileRecord, CheckpointError>,
) -> Result<CheckpointState, CheckpointError> {
    let state = read_state(folder)?;
    for (name, expected) in &state.files {
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) || name.contains(['\\', ':', '\0']) {
            return Err(CheckpointError::Outside { path: folder.join(STATE_FILE), name: name.clone() });
        }
        let path = folder.join(name);
        let found = look(&path, expected)?;
        let problem = if found.bytes != expected.bytes {
            format!("it has {} bytes, {} were written", found.bytes, expected.bytes)
        } else if found.blake3 != expected.blake3 {
            "its hash differs from what was written".to_owned()
        } else {
            continue;
        };
        return Err(CheckpointError::Damaged { path, problem });
    }
    Ok(state)
}

/// Reads `state.json` alone; the files that it lists are not looked at.
///
/// # Errors
/// When the file is missing, no JSON of this form, or of another version.
pub fn read_state(folder: &Path) -> Result<CheckpointState, CheckpointError> {
    #[derive(Deserialize)]
    struct Version {
        format_version: u32,
    }
    let path = folder.join(STATE_FILE);
    let text = std::fs::read(&path).map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
    let no_state = |source| CheckpointError::State { path: path.clone(), source };
    let Version { format_version: found } = serde_json::from_slice(&text).map_err(no_state)?;
    if found != FORMAT_VERSION {
        return Err(CheckpointError::Version { path, found });
    }
    serde_json::from_slice(&text).map_err(no_state)
}

/// Returns size and hash of a file.
///
/// # Errors
/// When the file cannot be read.
pub fn record(path: &Path) -> Result<FileRecord, CheckpointError> {
    let failed = |source| CheckpointError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let bytes = io::copy(&mut reader, &mut hasher).map_err(failed)?;
    Ok(FileRecord { bytes, blake3: hasher.finalize().to_hex().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(run_folder: &Path, next_step: u64) -> PathBuf {
        let folder = run_folder.join(folder_name(next_step));
        std::fs::create_dir_all(folder.join("model")).unwrap();
        std::fs::write(folder.join("model/weights"), next_step.to_le_bytes()).unwrap();
        let state = CheckpointState {
            format_version: FORMAT_VERSION,
            run_id: "cats".to_owned(),
            next_step,
            params_hash: "00".to_owned(),
            run: serde_json::json!({ "epoch": 3 }),
            files: BTreeMap::from([("model/weights".to_owned(), record(&folder.join("model/weights")).unwrap())]),
        };
        std::fs::write(folder.join(STATE_FILE), serde_json::to_vec(&state).unwrap()).unwrap();
        folder
    }

    #[test]
    fn a_whole_checkpoint_is_trusted_and_a_damaged_file_is_named() {
        let run = tempfile::tempdir().unwrap();
        let folder = write(run.path(), 7);
        assert_eq!(verify(&folder).unwrap().next_step, 7);
        std::fs::write(folder.join("model/weights"), 8_u64.to_le_bytes()).unwrap();
        let error = verify(&folder).unwrap_err();
        assert!(matches!(&error, CheckpointError::Damaged { path, .. } if path.ends_with("model/weights")), "{error}");
        std::fs::write(folder.join("model/weights"), "short").unwrap();
        assert!(verify(&folder).unwrap_err().to_string().contains("5 bytes, 8 were written"));
        std::fs::remove_file(folder.join("model/weights")).unwrap();
        assert!(matches!(verify(&folder), Err(CheckpointError::Read { .. })));
    }

    #[test]
    fn a_glance_sees_what_is_missing_or_cut_short() {
        let run = tempfile::tempdir().unwrap();
        let folder = write(run.path(), 7);
        assert_eq!(glance(&folder).unwrap().next_step, 7);
        std::fs::write(folder.join("model/weights"), "short").unwrap();
        assert!(glance(&folder).unwrap_err().to_string().contains("5 bytes, 8 were written"));
        std::fs::remove_file(folder.join("model/weights")).unwrap();
        assert!(matches!(glance(&folder), Err(CheckpointError::Read { .. })));
        std::fs::remove_file(folder.join(STATE_FILE)).unwrap();
        assert!(matches!(glance(&folder), Err(CheckpointError::Read { .. })));
    }

    #[test]
    fn a_checkpoint_is_held_while_it_is_read() {
        let run = tempfile::tempdir().unwrap();
        let folder = write(run.path(), 7);
        assert!(!is_held(&folder));
        let (one, other) = (Hold::take(&folder), Hold::take(&folder));
        drop(one);
        assert!(is_held(&folder));
        drop(other);
        assert!(!is_held(&folder) && !is_held(&run.path().join("step-000008")));
    }

    #[test]
    fn names_and_steps_belong_to_each_other() {
        for steps in [0, 7, 999_999, 1_000_000, 12_345_678] {
            assert_eq!(steps_of_name(&folder_name(steps)), Some(steps));
        }
        for other in ["step-7", "step-0000007", "step-", ".step-000007", "step-00000x", "final"] {
            assert_eq!(steps_of_name(other), None, "{other}");
        }
    }

    #[test]
    fn other_versions_and_paths_that_lead_out_are_refused() {
        let run = tempfile::tempdir().unwrap();
        let folder = write(run.path(), 7);
        let text = std::fs::read_to_string(folder.join(STATE_FILE)).unwrap();
        std::fs::write(folder.join(STATE_FILE), text.replace("model/weights", "../weights")).unwrap();
        assert!(matches!(verify(&folder), Err(CheckpointError::Outside { .. })));
        std::fs::write(folder.join(STATE_FILE), r#"{"format_version":2}"#).unwrap();
        assert!(matches!(verify(&folder), Err(CheckpointError::Version { found: 2, .. })));
    }
}
