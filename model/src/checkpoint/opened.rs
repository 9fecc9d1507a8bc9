//! A model whose files are open and found to be complete, while no weight has been read yet. From here it is loaded,
//! described, or written in another form, tensor by tensor.

use super::description::{Description, Part};
use super::fit::{OpenFile, Place, Places};
use super::tensors::TensorsError;
use super::values::{Component, ComponentShapes, Sink, Values};
use super::{
    CheckpointError, Configs, Form, ModelParts, RawConfigs, SavePrecision, Sources, StableDiffusion, atomic, diffusers,
    folder, metadata, original, single_file,
};
use crate::clip::{ClipSkipError, TextSettings};
use crate::weights::Source;
use crate::{Device, PredictionType, Tokenizer};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a person may say about a model that its files do not.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// What the UNet predicts, whatever the files say.
    pub prediction_type: Option<PredictionType>,
    /// Takes the UNet's moving averages (`model_ema.*`) of a single file instead of its weights.
    pub ema: bool,
    /// A tokenizer's folder, instead of the model's own or CLIP's.
    pub tokenizer: Option<PathBuf>,
    /// A diffusers folder whose configurations are used; its weights are not.
    pub config: Option<PathBuf>,
    /// The variant of a diffusers folder's weights, such as `fp16`.
    pub variant: Option<String>,
}

/// A model on disk, in any of the forms that are read.
pub struct Checkpoint {
    path: PathBuf,
    opened: Opened,
}

/// What the two layouts have in common once they are open.
pub(crate) struct Opened {
    pub(crate) form: Form,
    pub(crate) raw: RawConfigs,
    pub(crate) configs: Configs,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) shapes: ComponentShapes,
    pub(crate) files: Vec<OpenFile>,
    pub(crate) places: Places,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) has_ema: bool,
    /// What was assumed, and what is not used: to be said once.
    pub(crate) notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a diffusers folder or a single file (safetensors, or a pickle of `torch.save`, which is read as data).
    ///
    /// Reads headers and configurations only, and checks that every parameter is there in its shape.
    ///
    /// # Errors
    ///
    /// Names the file, and what is wrong with it: damaged, another kind of model, keys that are missing, not expected or
    /// ill-shaped.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, CheckpointError> {
        let opened = if path.is_file() { original::open(path, options)? } else { folder::open(path, options)? };
        let (tokens, rows) = (opened.tokenizer.vocab_size(), opened.configs.text_encoder.vocab_size);
        if tokens > rows {
            return Err(CheckpointError::TokenizerSize { path: path.to_owned(), tokens, rows });
        }
        Ok(Self { path: path.to_owned(), opened })
    }

    /// Which of the layouts it has.
    pub fn form(&self) -> Form {
        self.opened.form
    }

    /// The configurations of its parts.
    pub(crate) fn configs(&self) -> &Configs {
        &self.opened.configs
    }

    /// Keys and shapes of the parameters of its parts.
    pub(crate) fn shapes(&self) -> &ComponentShapes {
        &self.opened.shapes
    }

    /// What was assumed about the model and what of it is not used, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.opened.notes
    }

    /// How the model's prompts became text states in its training, as far as its files say.
    pub fn text_settings(&self) -> TextSettings {
        TextSettings::of_config(&self.opened.raw.text_encoder)
    }

    /// Whether the text encoder has enough layers for a clip skip.
    ///
    /// # Errors
    ///
    /// When it has not.
    pub fn check_clip_skip(&self, clip_skip: usize) -> Result<(), ClipSkipError> {
        self.opened.configs.text_encoder.check_clip_skip(clip_skip)
    }

    /// What there is to say about the model.
    pub fn describe(&self) -> Description {
        let opened = &self.opened;
        let parts = Component::ALL.map(|component| {
            let mut stored = BTreeMap::new();
            for param in opened.shapes.get(component) {
                let place = &opened.places[&component.full_name(&param.path)];
                let tensor = &opened.files[place.file].weights.tensors()[&place.key];
                *stored.entry(tensor.number_type.name().to_owned()).or_insert(0) += place.range.len() as u64;
            }
            Part { name: component.name(), parameters: opened.shapes.count(component), stored }
        });
        Description::new(&self.path, opened, parts.to_vec())
    }

    /// The precision that its weights have: the one to keep when no other is asked for.
    pub fn precision(&self) -> SavePrecision {
        let parts = self.describe().parts;
        let mut types = parts.iter().flat_map(|part| part.stored.keys());
        let all = |name: &str| types.clone().all(|stored| stored == name);
        if all("F16") {
            SavePrecision::Fp16
        } else if all("BF16") {
            SavePrecision::Bf16
        } else {
            debug_assert!(types.next().is_some());
            SavePrecision::Fp32
        }
    }

    /// Reads all weights, as f32 whatever they are stored as.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or a weight is not finite: names its key.
    pub fn load(self, device: &Device) -> Result<StableDiffusion, CheckpointError> {
        let failed = RefCell::new(None);
        let source = |component| Loader { checkpoint: &self, component, failed: &failed };
        let (text_encoder, vae, unet) =
            (source(Component::TextEncoder), source(Component::Vae), source(Component::Unet));
        let sources = Sources { text_encoder: &text_encoder, vae: &vae, unet: &unet };
        let opened = &self.opened;
        let (tokenizer, raw) = (opened.tokenizer.clone(), opened.raw.clone());
        let model = StableDiffusion::build(tokenizer, &opened.configs, raw, &sources, device);
        match failed.into_inner() {
            Some(error) => Err(error),
            None => Ok(model),
        }
    }

    /// Writes the model as a diffusers folder, a piece of a tensor at a time. The folder appears under its name only when
    /// it is complete. One that is there already is replaced when `replace` says so and it is a model's.
    ///
    /// # Errors
    ///
    /// When something is in the way, cannot be read or written, or a value does not fit the precision.
    pub fn write_diffusers(&self, dir: &Path, precision: SavePrecision, replace: bool) -> Result<(), CheckpointError> {
        atomic::write_folder(dir, replace, |folder| {
            diffusers::write(&self.parts(), self, folder, precision).map(|_| ())
        })
    }

    /// Writes the model as a single safetensors file, a piece of a tensor at a time, with the metadata that it has (unless it
    /// is about the old file) and `metadata`.
    ///
    /// # Errors
    ///
    /// When something is in the way, cannot be read or written, or a value does not fit the precision.
    pub fn write_single_file(
        &self,
        path: &Path,
        precision: SavePrecision,
        metadata: &BTreeMap<String, String>,
        replace: bool,
    ) -> Result<(), CheckpointError> {
        if path.is_dir() || path.exists() && !replace {
            let problem = if path.is_dir() { " and is a folder" } else { "" }.to_owned();
            return Err(CheckpointError::Exists { path: path.to_owned(), problem });
        }
        let mut all = metadata::carried(&self.opened.metadata);
        all.extend(metadata.clone());
        single_file::write(&self.parts(), self, path, precision, &all)
    }

    fn parts(&self) -> ModelParts<'_> {
        let Opened { raw, configs, tokenizer, shapes, .. } = &self.opened;
        ModelParts { raw, configs, tokenizer, shapes }
    }
}

/// A reader or the one it reads for has failed.
enum Stopped {
    Reading(TensorsError),
    Writing(CheckpointError),
}

impl From<TensorsError> for Stopped {
    fn from(error: TensorsError) -> Self {
        Self::Reading(error)
    }
}

impl Values for Checkpoint {
    fn read(&self, full_name: &str, sink: &mut Sink) -> Result<(), CheckpointError> {
        let Place { file, key, range } = &self.opened.places[full_name];
        let file = &self.opened.files[*file];
        let read = file.weights.read(key, range.clone(), &mut |numbers| sink(numbers).map_err(Stopped::Writing));
        read.map_err(|stopped| match stopped {
            Stopped::Reading(source) => CheckpointError::Tensors { path: file.path.clone(), source },
            Stopped::Writing(error) => error,
        })
    }
}

/// Gives the weights of one component to the constructors. After a failure it gives nothing more.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    component: Component,
    failed: &'a RefCell<Option<CheckpointError>>,
}

impl Source for Loader<'_> {
    fn fetch(&self, path: &str, shape: &[usize]) -> Option<Vec<f32>> {
        if self.failed.borrow().is_some() {
            return None;
        }
        let mut values = Vec::with_capacity(shape.iter().product());
        let mut take = |numbers: &[f32]| {
            values.extend_from_slice(numbers);
            Ok(())
        };
        match self.checkpoint.read(&self.component.full_name(path), &mut take) {
            Ok(()) => Some(values),
            Err(error) => {
                self.failed.replace(Some(error));
                None
            }
        }
    }
}
