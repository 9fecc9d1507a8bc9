//! What is left on disk: checkpoints to go on from, and the finished model.
//!
//! Everything is written under a name that begins with a dot, synced, and renamed (law 8). So a folder with its final name is
//! complete, whenever the power fails.

mod background;
mod folder;
mod optimizer_file;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use ballast_common::checkpoint::{
    CheckpointState, FORMAT_VERSION, FileRecord, HISTORY, STATE_FILE, folder_name, read_state, record,
};
use ballast_model::adamw::AdamW;
use ballast_model::{FlatLayout, SavePrecision, StableDiffusion};
use thiserror::Error;

pub(crate) use background::{Background, Choice, OwnedSnapshot, Written, settled};
pub(crate) use folder::{replace_folder, write_file};
pub(crate) use optimizer_file::{OPTIMIZER_FILE, read_optimizer};

/// Folder of the model within a checkpoint.
pub(crate) const MODEL_FOLDER: &str = "model";

/// Why something could not be written. Nothing half-written is left.
#[derive(Debug, Error)]
pub enum SaveError {
    /// A file or folder.
    #[error("cannot write {path}")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The model.
    #[error("cannot save the model to {path}")]
    Model {
        /// Where it was to go.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<ballast_model::CheckpointError>,
    },
    /// What was written cannot be read back for its hash.
    #[error("cannot read back what was just written")]
    ReadBack(#[source] ballast_common::checkpoint::CheckpointError),
    /// The run has gone back to an earlier checkpoint since this save was asked for, and has made another one of these steps.
    #[error("{path} holds the state of a later history of the run, and is left as it is")]
    Outdated {
        /// The checkpoint that stays.
        path: PathBuf,
    },
    /// A bug.
    #[error("the thread that writes the checkpoint panicked")]
    Panicked,
}

impl SaveError {
    /// Returns what the user can do about it, where known.
    pub fn hint(&self) -> Option<String> {
        use ballast_model::CheckpointError;
        let source = match self {
            Self::Write { source, .. } => source,
            Self::Model { source, .. } => match source.as_ref() {
                CheckpointError::Write { source, .. } => source,
                CheckpointError::Overflow { .. } => return Some("set precision.save to \"fp32\"".to_owned()),
                _ => return None,
            },
            Self::ReadBack(_) | Self::Outdated { .. } | Self::Panicked => return None,
        };
        let hint = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space; the run can be resumed",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "check the permissions of the run folder"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// What belongs together after some number of steps.
pub(crate) struct Snapshot<'a> {
    pub(crate) run_id: &'a str,
    /// Steps that the parameters have made.
    pub(crate) next_step: u64,
    pub(crate) params_hash: &'a str,
    pub(crate) model: &'a StableDiffusion,
    pub(crate) layout: &'a FlatLayout,
    /// On the host: borrowed where training keeps it there.
    pub(crate) optimizer: Cow<'a, AdamW>,
}

/// Writes `checkpoints/step-NNNNNN` below the run folder and returns its path. The model is saved in fp32 whatever the
/// config says, so that a resumed run goes on with the same bits.
///
/// A disk may hold a save up for longer than the run takes to go back to a checkpoint and come here again. What it has made by
/// then stays: see [`SaveError::Outdated`].
pub(crate) fn save_checkpoint(
    snapshot: &Snapshot,
    run_folder: &Path,
    run: serde_json::Value,
) -> Result<PathBuf, SaveError> {
    let path = run_folder.join("checkpoints").join(folder_name(snapshot.next_step));
    let history = history_of(&run);
    let may_replace = || match read_state(&path) {
        Ok(state) if history_of(&state.run) > history => Err(SaveError::Outdated { path: path.clone() }),
        _ => Ok(()), // there is none, or none that can be read
    };
    folder::replace_folder_if(&path, may_replace, |folder| {
        let model = folder.join(MODEL_FOLDER);
        save_model(snapshot.model, &model, SavePrecision::Fp32)?;
        optimizer_file::write_optimizer(&folder.join(OPTIMIZER_FILE), snapshot.layout, &snapshot.optimizer)?;
        let state = CheckpointState {
            format_version: FORMAT_VERSION,
            run_id: snapshot.run_id.to_owned(),
            next_step: snapshot.next_step,
            params_hash: snapshot.params_hash.to_owned(),
            run,
            files: records(folder)?,
        };
        let text = serde_json::to_string_pretty(&state).expect("a state has a JSON form") + "\n";
        write_file(&folder.join(STATE_FILE), text.as_bytes())
    })?;
    Ok(path)
}

/// How often the run had gone back to a checkpoint when one with this `run` object was asked for.
pub(crate) fn history_of(run: &serde_json::Value) -> u64 {
    run.get(HISTORY).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// Writes `final/` and `final.safetensors` below the run folder and returns their paths.
pub(crate) fn save_final(
    snapshot: &Snapshot,
    run_folder: &Path,
    precision: SavePrecision,
) -> Result<[PathBuf; 2], SaveError> {
    let folder = run_folder.join("final");
    replace_folder(&folder, |folder| save_model(snapshot.model, folder, precision))?;
    let file = run_folder.join("final.safetensors");
    // Nothing that names the run: the same training gives the same bytes under any name.
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("ballast.steps".to_owned(), snapshot.next_step.to_string()),
    ]);
    let failed = |source| SaveError::Model { path: file.clone(), source: Box::new(source) };
    snapshot.model.save_single_file(&file, precision, &metadata).map_err(failed)?;
    Ok([folder, file])
}

fn save_model(model: &StableDiffusion, folder: &Path, precision: SavePrecision) -> Result<(), SaveError> {
    let failed = |source| SaveError::Model { path: folder.to_owned(), source: Box::new(source) };
    model.save_diffusers(folder, precision).map(|_| ()).map_err(failed)
}

/// Size and hash of every file below a folder, by its path with `/`.
fn records(root: &Path) -> Result<BTreeMap<String, FileRecord>, SaveError> {
    let mut records = BTreeMap::new();
    for path in folder::files(root)? {
        let relative = path.strip_prefix(root).expect("the file was found below the root");
        let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
        records.insert(parts.join("/"), record(&path).map_err(SaveError::ReadBack)?);
    }
    Ok(records)
}
