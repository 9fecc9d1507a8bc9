//! A complete model, and the file layouts it is read from and written to.

mod atomic;
mod diffusers;
mod single_file;
mod tensors;

use crate::clip::ClipTextConfig;
use crate::config::ConfigError;
use crate::tokenizer::TokenizerError;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::{Source, Weights};
use crate::{AutoencoderKl, ClipTextModel, Device, NoiseScheduler, Tokenizer, UNet};
pub(crate) use diffusers::check;
use serde::{Deserialize, Serialize};
use serde_json::Value;
#[cfg(test)]
pub(crate) use single_file::ComponentShapes;
pub(crate) use single_file::SingleFileTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
pub use tensors::TensorsError;

/// Everything that turns text into pictures.
#[derive(Clone, Debug)]
pub struct StableDiffusion {
    /// Text to token ids.
    pub tokenizer: Tokenizer,
    /// Token ids to text states.
    pub text_encoder: ClipTextModel,
    /// Pictures to latents and back.
    pub vae: AutoencoderKl,
    /// Noisy latents to predictions.
    pub unet: UNet,
    /// The noise schedule.
    pub noise_scheduler: NoiseScheduler,
    configs: RawConfigs,
    device: Device,
}

/// The JSON files as they were read, so that saving writes back every key.
#[derive(Clone, Debug)]
pub(crate) struct RawConfigs {
    pub(crate) model_index: Value,
    pub(crate) text_encoder: Value,
    pub(crate) vae: Value,
    pub(crate) unet: Value,
    pub(crate) scheduler: Value,
}

/// Number format of saved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavePrecision {
    /// 32 bits, exact.
    #[default]
    Fp32,
    /// 16 bits, half the size: enough for making pictures.
    Fp16,
}

/// A model that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder is no diffusers model.
    #[error("{path} is missing: not a Stable Diffusion model in the diffusers folder layout ({hint})")]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What a model folder needs.
        hint: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is no JSON.
    #[error("cannot parse {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration that this crate cannot run.
    #[error("cannot use {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The tokenizer's folder.
    #[error("cannot use the tokenizer")]
    Tokenizer(#[source] TokenizerError),
    /// A safetensors file.
    #[error("cannot use {path}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TensorsError,
    },
    /// The weights do not fit the configuration.
    #[error("{path} does not fit its config.json: {problems}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Keys that are missing, not expected, or of another shape.
        problems: String,
    },
    /// A value is too large for 16 bits.
    #[error("cannot save `{key}` as fp16: a value is beyond ±65504; save as fp32")]
    Overflow {
        /// The parameter.
        key: String,
    },
}

/// The checked configurations of a model.
#[derive(Clone, Debug)]
pub(crate) struct Configs {
    pub(crate) text_encoder: ClipTextConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) unet: UNetConfig,
    pub(crate) noise_scheduler: NoiseScheduler,
}

/// Where the parameters of each component come from.
pub(crate) struct Sources<'a> {
    pub(crate) text_encoder: &'a dyn Source,
    pub(crate) vae: &'a dyn Source,
    pub(crate) unet: &'a dyn Source,
}

impl StableDiffusion {
    /// Reads a model in the diffusers folder layout. Weights become f32 whatever they are stored as.
    ///
    /// # Errors
    ///
    /// Names the file, and the keys that are missing, not expected or ill-shaped.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, CheckpointError> {
        diffusers::load(dir, device)
    }

    /// Writes a complete diffusers folder and returns the files. Each file appears under its name only when it is
    /// complete; `model_index.json` comes last.
    ///
    /// # Errors
    ///
    /// When a file cannot be written, or a value does not fit the precision.
    pub fn save_diffusers(&self, dir: &Path, precision: SavePrecision) -> Result<Vec<PathBuf>, CheckpointError> {
        diffusers::save(self, dir, precision)
    }

    /// Writes one safetensors file with the key names of the original Stable Diffusion repositories. The same
    /// model and metadata give the same bytes.
    ///
    /// # Errors
    ///
    /// When the file cannot be written, or a value does not fit the precision.
    pub fn save_single_file(
        &self,
        path: &Path,
        precision: SavePrecision,
        metadata: &BTreeMap<String, String>,
    ) -> Result<(), CheckpointError> {
        single_file::save(self, path, precision, metadata)
    }

    /// The device that the parameters were loaded to.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Builds a model of known configuration.
    pub(crate) fn build(
        tokenizer: Tokenizer,
        configs: &Configs,
        raw: RawConfigs,
        sources: &Sources,
        device: &Device,
    ) -> Self {
        Self {
            tokenizer,
            text_encoder: ClipTextModel::new(&Weights::new(sources.text_encoder, device), &configs.text_encoder),
            vae: AutoencoderKl::new(&Weights::new(sources.vae, device), &configs.vae),
            unet: UNet::new(&Weights::new(sources.unet, device), &configs.unet),
            noise_scheduler: configs.noise_scheduler.clone(),
            configs: raw,
            device: device.clone(),
        }
    }
}
