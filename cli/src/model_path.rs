//! Whether a model is there and complete, asked before anything is started.

use std::path::Path;

use ballast_common::config::ModelConfig;
use ballast_model::{Checkpoint, CheckpointError, OpenOptions};

use crate::failure::Failure;

/// Files that a diffusers folder cannot do without.
const NEEDED: [&str; 5] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
];

/// Checks that a model lies at the path: a folder in the diffusers layout, or a single file. Reads no weights.
pub(crate) fn check(path: &Path) -> Result<Checkpoint, Failure> {
    open(path, &OpenOptions::default())
}

/// Checks that the model is there and that the config fits it.
pub(crate) fn check_for(path: &Path, config: &ModelConfig) -> Result<Checkpoint, Failure> {
    let checkpoint = check(path)?;
    checkpoint.check_clip_skip(config.clip_skip as usize).map_err(|error| {
        let hint = "set model.clip_skip to 1 for the last layer";
        Failure::usage(format_args!("config: `model.clip_skip` does not fit {}: {error}", path.display())).hint(hint)
    })?;
    Ok(checkpoint)
}

/// Opens the model at the path.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Checkpoint, Failure> {
    const MAKE_ONE: &str = "`ballast init-model tiny --out DIR` makes one with random weights, to try things out";
    let what = path.display();
    if !path.exists() {
        let hint = "a model is a folder in the diffusers layout, or a .safetensors or .ckpt file";
        return Err(Failure::usage(format_args!("there is no model at {what}")).hint(format!("{hint}; {MAKE_ONE}")));
    }
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !path.join(name).is_file()).collect();
    if path.is_dir() && !missing.is_empty() {
        return Err(Failure::usage(format_args!(
            "{what} is no model in the diffusers layout: it lacks {}",
            missing.join(", ")
        ))
        .hint(MAKE_ONE));
    }
    Checkpoint::open(path, options).map_err(failure)
}

/// Turns the error of a model's files into a failure: the person's to solve where they asked for what is not there.
pub(crate) fn failure(error: CheckpointError) -> Failure {
    let is_usage = matches!(
        error,
        CheckpointError::Foreign { .. }
            | CheckpointError::Option { .. }
            | CheckpointError::NoTokenizer { .. }
            | CheckpointError::Exists { .. }
    );
    let is_in_the_way = matches!(&error, CheckpointError::Exists { problem, .. } if problem.is_empty());
    let hint = is_in_the_way.then_some("--force replaces a model");
    let mut failure = Failure::from(anyhow::Error::new(error));
    if is_usage {
        failure = failure.blaming_usage();
    }
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
