//! The checkpoints of a run folder: which of them belong to the ledger, which is the newest sound one, and how old ones go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ballast_common::checkpoint::{self, CHAIN, CheckpointState, folder_name, steps_of_name};
use ballast_common::error_chain;

use crate::error::RunError;
use crate::ledger::{Ledger, LedgerError};
use crate::run::CHECKPOINTS_FOLDER;
use crate::wire;

/// End of the name of a checkpoint that is being deleted; the name begins with a dot.
const DELETED: &str = ".deleted";

/// Where a run goes on from.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Start {
    /// Steps done.
    pub(crate) next_step: u64,
    /// The checkpoint's folder; none: the config's model.
    pub(crate) checkpoint: Option<PathBuf>,
    /// Why newer ones were passed over, one by one.
    pub(crate) passed_over: Vec<String>,
}

impl Start {
    /// Says it in the words of the ledger's record of a rollback.
    fn reason(&self) -> String {
        let from = match self.checkpoint {
            Some(_) => format!("resumed from {CHECKPOINTS_FOLDER}/{}", folder_name(self.next_step)),
            None => "begun anew: there was no checkpoint yet".to_owned(),
        };
        let passed_over = self.passed_over.iter().map(|problem| format!("; passed over {problem}"));
        passed_over.fold(from, |text, problem| text + &problem)
    }
}

/// Finds the newest checkpoint that is sound and belongs to the ledger. Damaged ones are named and passed over. One that is
/// whole on disk and whose commits are the ledger's is taken into the ledger: its writer finished while there was no
/// coordinator.
pub(crate) fn newest_sound(run_folder: &Path, ledger: &mut Ledger) -> Result<Start, RunError> {
    let mut candidates: Vec<_> =
        ledger.checkpoints()?.into_iter().map(|(step, path, hash)| (step, path, Some(hash))).collect();
    candidates.extend(strangers(run_folder, ledger)?.into_iter().map(|(step, path)| (step, path, None)));
    candidates.sort();
    let mut passed_over = Vec::new();
    for (next_step, relative, params_hash) in candidates.into_iter().rev() {
        let path = run_folder.join(&relative);
        match check(&path, next_step, params_hash.as_deref(), ledger)? {
            Ok(state) => {
                if params_hash.is_none() {
                    tracing::info!(
                        checkpoint = relative,
                        "a checkpoint that was finished without the coordinator is taken up"
                    );
                    ledger.record_checkpoint(next_step, &relative, &state.params_hash)?;
                }
                return Ok(Start { next_step, checkpoint: Some(path), passed_over });
            }
            Err(problem) if params_hash.is_none() => {
                tracing::info!(checkpoint = relative, problem, "a folder that the ledger does not name is left alone");
            }
            Err(problem) => {
                tracing::warn!(checkpoint = relative, problem, "a damaged checkpoint is passed over");
                passed_over.push(format!("{relative}: {problem}"));
            }
        }
    }
    if passed_over.is_empty() {
        return Ok(Start::default());
    }
    Err(RunError::Checkpoint { path: run_folder.to_owned(), reason: passed_over.join("; ") })
}

/// Takes the ledger back to the newest sound checkpoint, with a record that says `why`.
pub(crate) fn go_back(ledger: &mut Ledger, run_folder: &Path, why: Option<&str>) -> Result<Start, RunError> {
    let start = newest_sound(run_folder, ledger)?;
    let committed = ledger.next_step()?;
    if committed > start.next_step {
        tracing::warn!(
            committed,
            checkpoint = start.next_step,
            "steps after the newest checkpoint are rolled back and computed again"
        );
        let why = why.map(|why| format!("{why}: ")).unwrap_or_default();
        ledger.roll_back(start.next_step, &(why + &start.reason()))?;
    }
    Ok(start)
}

/// Lists the folders that are named like a checkpoint of committed steps and are not in the ledger, by steps done.
pub(crate) fn strangers(run_folder: &Path, ledger: &Ledger) -> Result<Vec<(u64, String)>, RunError> {
    let committed = ledger.next_step()?;
    let known: Vec<u64> = ledger.checkpoints()?.into_iter().map(|(step, ..)| step).collect();
    let entries = match fs::read_dir(run_folder.join(CHECKPOINTS_FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(RunError::File { action: "read", path: run_folder.join(CHECKPOINTS_FOLDER), source });
        }
    };
    let steps = entries.filter_map(|entry| steps_of_name(entry.ok()?.file_name().to_str()?));
    let mut strangers: Vec<u64> = steps.filter(|step| *step <= committed && !known.contains(step)).collect();
    strangers.sort_unstable();
    Ok(strangers.into_iter().map(|step| (step, format!("{CHECKPOINTS_FOLDER}/{}", folder_name(step)))).collect())
}

/// Reads every byte of a checkpoint and compares it with what the ledger says: its parameters where they are on record, and
/// the chain of commits. The inner error says what is wrong with it.
pub(crate) fn check(
    path: &Path,
    next_step: u64,
    params_hash: Option<&str>,
    ledger: &Ledger,
) -> Result<Result<CheckpointState, String>, LedgerError> {
    let state = match checkpoint::verify(path) {
        Ok(state) => state,
        Err(error) => return Ok(Err(error_chain(&error))),
    };
    if state.next_step != next_step {
        return Ok(Err(format!("its state.json is of {} steps", state.next_step)));
    }
    if params_hash.is_some_and(|hash| hash != state.params_hash) {
        return Ok(Err("its parameters are not those that the ledger names".to_owned()));
    }
    let chain = state.run.get(CHAIN).and_then(|chain| chain.as_str());
    if chain.is_none() && params_hash.is_none() {
        return Ok(Err("its state.json does not say to which commits it belongs".to_owned()));
    }
    if chain.is_some() && chain != ledger.chain_after(next_step)?.map(|chain| wire::hex(&chain)).as_deref() {
        return Ok(Err("it belongs to other commits than the ledger's".to_owned()));
    }
    Ok(Ok(state))
}

/// Takes a checkpoint out of the run folder. It is gone under its name at once, and from the disk a little later.
pub(crate) fn delete(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let deleted = path.with_file_name(format!(".{name}{DELETED}"));
    if deleted.exists() {
        fs::remove_dir_all(&deleted)?; // an earlier one of these steps, whose deletion was cut short
    }
    fs::rename(path, &deleted)?;
    Ok(deleted)
}

/// Deletes what earlier deletions left behind that were cut short.
pub(crate) fn delete_leftovers(run_folder: &Path) {
    let Ok(entries) = fs::read_dir(run_folder.join(CHECKPOINTS_FOLDER)) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with('.') && name.ends_with(DELETED)) {
            delete_for_good(&path);
        }
    }
}

/// Frees the disk of a checkpoint that has no name any more.
pub(crate) fn delete_for_good(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::warn!(path = %path.display(), %error, "an old checkpoint could not be deleted");
    }
}
