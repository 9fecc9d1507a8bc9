//! `[model]`: the model and which of its parts are trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Check;

/// The model and which of its parts are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A diffusers folder or a single file. Training needs it.
    pub path: Option<PathBuf>,
    /// Whether the UNet is trained.
    pub train_unet: bool,
    /// Whether the text encoder is trained.
    pub train_text_encoder: bool,
    /// Whether most activations are computed again in the backward pass instead of kept: a third more computing for a
    /// fraction of their memory. What is learned is the same, bit by bit.
    pub gradient_checkpointing: bool,
    /// Which layer of the text encoder the captions are taken from, counted from the end: 1 is the last, 2 the one before.
    /// The text encoder's final layer norm follows either.
    pub clip_skip: u32,
    /// Whether captions of more than 75 tokens are encoded in chunks of 75 instead of cut off.
    pub long_prompts: bool,
}

impl ModelConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.within("clip_skip", self.clip_skip, 1..=100, "a whole number from 1 (the last layer) to 100");
    }
}
