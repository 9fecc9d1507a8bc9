//! The losses of a run, as the ledger has them.

use std::path::Path;

use crate::error::RunError;
use crate::ledger::Ledger;
use crate::run::LEDGER_FILE;

/// The loss of one use of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct LossPoint {
    /// Step of the run, 0-based.
    pub step: u64,
    /// Folder of the picture, relative to the data root; `.` for the root itself.
    pub folder: String,
    /// Mean squared error over channels and pixels, unweighted.
    pub loss: f64,
}

/// Reads the losses of all committed steps, in order; skipped pictures have none.
///
/// # Errors
/// When there is no ledger or it cannot be read.
pub fn losses(run_folder: &Path) -> Result<Vec<LossPoint>, RunError> {
    let rows = Ledger::open(&run_folder.join(LEDGER_FILE))?.losses_by_path()?;
    let folder = |path: &str| path.rsplit_once('/').map_or_else(|| ".".to_owned(), |(folder, _)| folder.to_owned());
    Ok(rows.into_iter().map(|(step, path, loss)| LossPoint { step, folder: folder(&path), loss }).collect())
}
