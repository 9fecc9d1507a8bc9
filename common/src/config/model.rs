//! `[model]`: the model and which of its parts are trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
}
