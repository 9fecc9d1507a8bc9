//! Checkpoints that lie in the run folder and not in the ledger: a worker saved its state because its coordinator was gone, or
//! the coordinator died before it could note that one was complete.
//!
//! Each names the chain of the ledger that its state belongs to (`state.json`, `run.chain`), so that one of another history
//! is not taken for one of this.

use std::path::Path;

use ballast_common::checkpoint;

use crate::error::RunError;
use crate::ledger::Ledger;
use crate::run::CHECKPOINTS_FOLDER;
use crate::wire;

/// The key of `state.json`'s `run` object that names the chain.
pub(crate) const CHAIN: &str = "chain";

/// Puts on record what belongs to this ledger, is newer than what is there, and is whole.
pub(crate) fn adopt(run_folder: &Path, ledger: &mut Ledger) -> Result<(), RunError> {
    let known = ledger.checkpoints()?;
    let newest = known.last().map_or(0, |(next_step, ..)| *next_step);
    let committed = ledger.next_step()?;
    let Ok(entries) = std::fs::read_dir(run_folder.join(CHECKPOINTS_FOLDER)) else { return Ok(()) };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<(u64, String)> = names
        .filter_map(|name| Some((name.strip_prefix("step-")?.parse().ok()?, name)))
        .filter(|(next_step, _)| (newest + 1..=committed).contains(next_step))
        .collect();
    found.sort_unstable();
    for (next_step, name) in found.into_iter().rev() {
        let relative = format!("{CHECKPOINTS_FOLDER}/{name}");
        let state = match checkpoint::verify(&run_folder.join(&relative)) {
            Ok(state) => state,
            Err(error) => {
                let problem = ballast_common::error_chain(&error);
                tracing::warn!(
                    checkpoint = relative,
                    problem,
                    "a checkpoint without a record is damaged and passed over"
                );
                continue;
            }
        };
        let chain = ledger.chain_after(next_step)?.map(|chain| wire::hex(&chain));
        let is_ours =
            state.next_step == next_step && state.run.get(CHAIN).and_then(|value| value.as_str()) == chain.as_deref();
        if !is_ours {
            tracing::warn!(
                checkpoint = relative,
                "a checkpoint without a record is of another history and passed over"
            );
            continue;
        }
        tracing::info!(checkpoint = relative, "found a checkpoint that was not on record");
        ledger.record_checkpoint(next_step, &relative, &state.params_hash)?;
        return Ok(());
    }
    Ok(())
}
