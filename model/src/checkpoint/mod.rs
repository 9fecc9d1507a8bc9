//! A complete model, and the file layouts it is read from and written to.
//!
//! [`Checkpoint`] is a model on disk: open and checked, nothing of it in memory. [`StableDiffusion`] is one in memory.
//! Both are written by the same code, which asks for one parameter after the other.

mod atomic;
mod checksum;
mod derive;
mod description;
mod diffusers;
mod error;
mod fit;
mod folder;
mod limits;
mod metadata;
mod opened;
mod original;
mod precision;
mod recognise;
mod single_file;
mod stored;
mod tensors;
mod torch;
mod values;

use crate::clip::{ClipSkipError, ClipTextConfig, TextSettings};
use crate::params::{self, NamedTensor};
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::{Source, Weights};
use crate::{AutoencoderKl, ClipTextModel, Compute, Device, NoiseScheduler, PredictionType, Tokenizer, UNet};
use burn::tensor::Tensor;
pub use description::{Description, Part};
pub(crate) use diffusers::check;
pub use error::CheckpointError;
pub use opened::{Checkpoint, OpenOptions};
pub use precision::SavePrecision;
use serde::Serialize;
use serde_json::Value;
pub(crate) use single_file::SingleFileTensor;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
pub use tensors::TensorsError;
pub use torch::{PickleError, TorchError};
pub(crate) use values::{Component, ComponentShapes};
use values::{Sink, Values};

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

/// The layouts of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// A folder with a folder for each component.
    Diffusers,
    /// One file, under the original names.
    SingleFile,
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

/// The checked configurations of a model.
#[derive(Clone, Debug)]
pub(crate) struct Configs {
    pub(crate) text_encoder: ClipTextConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) unet: UNetConfig,
    pub(crate) noise_scheduler: NoiseScheduler,
}

/// All of a model but the numbers, as the writers need it.
pub(crate) struct ModelParts<'a> {
    pub(crate) raw: &'a RawConfigs,
    pub(crate) configs: &'a Configs,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) shapes: &'a ComponentShapes,
}

/// Where the parameters of each component come from.
pub(crate) struct Sources<'a> {
    pub(crate) text_encoder: &'a dyn Source,
    pub(crate) vae: &'a dyn Source,
    pub(crate) unet: &'a dyn Source,
}

impl StableDiffusion {
    /// Reads a model: a diffusers folder or a single file. Weights become f32 whatever they are stored as. What was
    /// assumed or ignored is logged.
    ///
    /// # Errors
    ///
    /// Names the file, and the keys that are missing, not expected or ill-shaped.
    pub fn load(path: &Path, device: &Device) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
        for note in checkpoint.notes() {
            tracing::warn!(model = %path.display(), note, "about the model");
        }
        checkpoint.load(device)
    }

    /// The JSON files of the parts.
    pub(crate) fn configs(&self) -> &RawConfigs {
        &self.configs
    }

    /// Writes a complete diffusers folder and returns the files. Each file appears under its name only when it is
    /// complete; `model_index.json` comes last.
    ///
    /// # Errors
    ///
    /// When a file cannot be written, or a value does not fit the precision.
    pub fn save_diffusers(&self, dir: &Path, precision: SavePrecision) -> Result<Vec<PathBuf>, CheckpointError> {
        self.with_parts(|parts, values| diffusers::write(parts, values, dir, precision))
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
        self.with_parts(|parts, values| single_file::write(parts, values, path, precision, metadata))
    }

    /// Turns prompts into text states: `[prompts, 77, width]`, or a multiple of 77 for long ones where they are allowed.
    /// Neighbours of one length are in one tensor, those of another in the next: nothing is padded for its neighbour.
    ///
    /// # Errors
    ///
    /// When the text encoder has too few layers for the clip skip.
    pub fn encode_prompts(&self, prompts: &[&str], settings: TextSettings) -> Result<Vec<Tensor<3>>, ClipSkipError> {
        let ids: Vec<Vec<i32>> = prompts.iter().map(|prompt| self.tokenizer.encode_with(prompt, settings)).collect();
        let encoder = self.text_encoder.clone().with_clip_skip(settings.clip_skip)?;
        let alike = ids.chunk_by(|ids, next| ids.len() == next.len());
        Ok(alike.map(|ids| encoder.encode(ids, &self.device)).collect())
    }

    /// How the model's prompts became text states in its training, as far as its files say.
    pub fn text_settings(&self) -> TextSettings {
        TextSettings::of_config(&self.configs.text_encoder)
    }

    /// Says how prompts become text states, for whoever draws with the model once it is saved.
    ///
    /// # Errors
    ///
    /// When the text encoder has too few layers for the clip skip.
    pub fn set_text_settings(&mut self, settings: TextSettings) -> Result<(), ClipSkipError> {
        self.text_encoder.clone().with_clip_skip(settings.clip_skip)?;
        settings.write_to(&mut self.configs.text_encoder);
        Ok(())
    }

    /// Computes in another number format from now on: the UNet and the text encoder. The autoencoder stays in f32, and so
    /// do all parameters.
    pub fn compute_in(&mut self, compute: Compute) {
        self.unet.compute_in(compute);
        self.text_encoder.compute_in(compute);
    }

    /// The device that the parameters were loaded to.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Pixels of a side of the pictures that the model was made for: its UNet's `sample_size`, brought from latents to
    /// pixels.
    pub fn native_side(&self) -> usize {
        // 64 is diffusers' own default for a UNet that does not say.
        let latents = self.configs.unet["sample_size"].as_u64().unwrap_or(64);
        usize::try_from(latents).unwrap_or(usize::MAX).saturating_mul(self.vae.factor())
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

    fn with_parts<T>(&self, write: impl FnOnce(&ModelParts, &dyn Values) -> T) -> T {
        let configs = check(&self.configs).expect("checked when the model was made");
        let shapes = ComponentShapes {
            unet: params::shapes(&self.unet),
            vae: params::shapes(&self.vae),
            text_encoder: params::shapes(&self.text_encoder),
        };
        let parts = ModelParts { raw: &self.configs, configs: &configs, tokenizer: &self.tokenizer, shapes: &shapes };
        write(&parts, &InMemory::new(self))
    }
}

/// The parameters of a model in memory, by full name.
struct InMemory(HashMap<String, NamedTensor>);

impl InMemory {
    fn new(model: &StableDiffusion) -> Self {
        let components = [
            (Component::Unet, params::tensors(&model.unet)),
            (Component::Vae, params::tensors(&model.vae)),
            (Component::TextEncoder, params::tensors(&model.text_encoder)),
        ];
        let named = components
            .into_iter()
            .flat_map(|(component, tensors)| tensors.into_iter().map(move |t| (component.full_name(&t.path), t)));
        Self(named.collect())
    }
}

impl Values for InMemory {
    fn read(&self, full_name: &str, sink: &mut Sink) -> Result<(), CheckpointError> {
        let data = self.0[full_name].values.to_data();
        sink(data.as_slice::<f32>().expect("parameters are f32"))
    }
}

/// The word of a scheduler's configuration.
pub(crate) fn prediction_name(prediction_type: PredictionType) -> &'static str {
    match prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v_prediction",
    }
}
