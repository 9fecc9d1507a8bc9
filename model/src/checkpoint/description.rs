//! What there is to say about a model on disk.

use super::Form;
use super::opened::Opened;
use super::recognise::Family;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model on disk, in words and numbers. As JSON it is what `ballast convert --format json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// The folder or file.
    pub path: PathBuf,
    /// The layout.
    pub form: Form,
    /// `Stable Diffusion 1.x` or `2.x`
    pub family: &'static str,
    /// `epsilon` or `v_prediction`
    pub prediction_type: &'static str,
    /// Pixels of a side of the pictures that it was made for.
    pub resolution: u64,
    /// Text encoder, autoencoder, UNet.
    pub parts: Vec<Part>,
    /// Number of tokens that the tokenizer knows.
    pub tokens: usize,
    /// Whether there are moving averages of the UNet's weights in the file.
    pub has_ema: bool,
    /// What a single file says about itself.
    pub metadata: BTreeMap<String, String>,
    /// What was assumed, and what is not used.
    pub notes: Vec<String>,
}

/// A part of a model.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// `text_encoder`, `vae`, `unet`
    pub name: &'static str,
    /// Number of its parameters.
    pub parameters: u64,
    /// How many of them are stored in which number format: `F32`, `F16`, …
    pub stored: BTreeMap<String, u64>,
}

impl Description {
    pub(crate) fn new(path: &Path, opened: &Opened, parts: Vec<Part>) -> Self {
        let latent_side = opened.raw.unet["sample_size"].as_u64().unwrap_or(64);
        Self {
            path: path.to_owned(),
            form: opened.form,
            family: Family::of_text_config(&opened.raw.text_encoder).name(),
            prediction_type: super::prediction_name(opened.configs.noise_scheduler.config().prediction_type),
            resolution: latent_side.saturating_mul(opened.configs.vae.factor() as u64),
            parts,
            tokens: opened.tokenizer.vocab_size(),
            has_ema: opened.has_ema,
            metadata: opened.metadata.clone(),
            notes: opened.notes.clone(),
        }
    }

    /// Number of all parameters.
    pub fn parameters(&self) -> u64 {
        self.parts.iter().map(|part| part.parameters).sum()
    }
}
