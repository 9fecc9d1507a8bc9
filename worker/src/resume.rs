//! Going on from a checkpoint: nothing of it is used before every byte has been checked.

use std::path::Path;

use ballast_common::checkpoint::{self, Hold};
use ballast_common::config::RunConfig;
use ballast_model::{Device, StableDiffusion};

use crate::engine::Engine;
use crate::error::WorkerError;
use crate::latents::Encoder;
use crate::save::{MODEL_FOLDER, OPTIMIZER_FILE, read_optimizer};
use crate::trainer::Trainer;

/// Loads model and optimizer of a checkpoint.
///
/// # Errors
/// Names the file that is missing, damaged, or belongs to another model.
pub(crate) fn load_checkpoint<E: Engine>(
    config: &RunConfig,
    folder: &Path,
    encoder: Encoder,
    device: &Device,
) -> Result<Trainer<E>, WorkerError> {
    let _reading = Hold::take(folder); // the run that has made newer ones may be deleting old ones
    let state =
        checkpoint::verify(folder).map_err(|source| WorkerError::Checkpoint { path: folder.to_owned(), source })?;
    let model_folder = folder.join(MODEL_FOLDER);
    let model = StableDiffusion::load(&model_folder, device)
        .map_err(|source| WorkerError::Model { path: model_folder.clone(), source: Box::new(source) })?;
    let mut trainer = Trainer::new(config, model, encoder)?;
    trainer.restore(state.next_step, |layout, optimizer| {
        read_optimizer(&folder.join(OPTIMIZER_FILE), layout, optimizer)
    })?;
    let found = trainer.params_hash();
    if found != state.params_hash {
        let problem = format!("its parameters hash to {found}, state.json says {}", state.params_hash);
        return Err(WorkerError::CheckpointContent { path: model_folder, problem });
    }
    Ok(trainer)
}
