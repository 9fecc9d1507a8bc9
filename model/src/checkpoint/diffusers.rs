//! The diffusers folder layout: one folder per component, each with its configuration.

use super::tensors::{Outgoing, TensorFile, TensorsError, write_header};
use super::{CheckpointError, Configs, RawConfigs, SavePrecision, Sources, StableDiffusion, atomic};
use crate::clip::ClipTextConfig;
use crate::config::ConfigError;
use crate::params::NamedTensor;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use crate::weights::Source;
use crate::{Device, NoiseScheduler, Tokenizer, clip, params, vae};
use half::f16;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

const UNET_FILE: &str = "diffusion_pytorch_model.safetensors";
const TEXT_FILE: &str = "model.safetensors";

pub(crate) fn load(dir: &Path, device: &Device) -> Result<StableDiffusion, CheckpointError> {
    let raw = RawConfigs {
        model_index: read_json(&dir.join("model_index.json"))?,
        text_encoder: read_json(&dir.join("text_encoder/config.json"))?,
        vae: read_json(&dir.join("vae/config.json"))?,
        unet: read_json(&dir.join("unet/config.json"))?,
        scheduler: read_json(&dir.join("scheduler/scheduler_config.json"))?,
    };
    let configs = check(&raw).map_err(|(file, source)| CheckpointError::Config { path: dir.join(file), source })?;
    for component in not_carried(&raw.model_index) {
        tracing::warn!(component, model = %dir.display(), "a part of the model is not carried: what is saved has none");
    }
    if !dir.join("tokenizer").is_dir() {
        return Err(missing(&dir.join("tokenizer")));
    }
    let tokenizer = Tokenizer::load(&dir.join("tokenizer")).map_err(CheckpointError::Tokenizer)?;
    let text_encoder = FileSource::open(&dir.join("text_encoder"), TEXT_FILE, clip::keys::canonical)?;
    let vae = FileSource::open(&dir.join("vae"), UNET_FILE, vae::keys::canonical)?;
    let unet = FileSource::open(&dir.join("unet"), UNET_FILE, |key| Some(key.to_owned()))?;
    let sources = Sources { text_encoder: &text_encoder, vae: &vae, unet: &unet };
    let model = StableDiffusion::build(tokenizer, &configs, raw, &sources, device);
    text_encoder.finish()?;
    vae.finish()?;
    unet.finish()?;
    Ok(model)
}

/// Checks all configurations; an error comes with the file's place in the folder.
pub(crate) fn check(raw: &RawConfigs) -> Result<Configs, (&'static str, ConfigError)> {
    Ok(Configs {
        text_encoder: ClipTextConfig::from_json(&raw.text_encoder).map_err(|e| ("text_encoder/config.json", e))?,
        vae: VaeConfig::from_json(&raw.vae).map_err(|e| ("vae/config.json", e))?,
        unet: UNetConfig::from_json(&raw.unet).map_err(|e| ("unet/config.json", e))?,
        noise_scheduler: NoiseScheduler::from_json(&raw.scheduler)
            .map_err(|e| ("scheduler/scheduler_config.json", e))?,
    })
}

pub(crate) fn save(
    model: &StableDiffusion,
    dir: &Path,
    precision: SavePrecision,
) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut written = Vec::new();
    let raw = &model.configs;
    let mut json = |name: &str, value: &Value| -> Result<(), CheckpointError> {
        let path = dir.join(name);
        let folder = path.parent().expect("a file in a folder");
        std::fs::create_dir_all(folder).map_err(|source| atomic::failed(folder, source))?;
        let text = serde_json::to_string_pretty(value).expect("JSON values can be written") + "\n";
        atomic::write_bytes(&path, text.as_bytes())?;
        written.push(path);
        Ok(())
    };
    json("text_encoder/config.json", &with_dtype(&raw.text_encoder, precision))?;
    json("vae/config.json", &raw.vae)?;
    json("unet/config.json", &raw.unet)?;
    json("scheduler/scheduler_config.json", &raw.scheduler)?;
    let weights = [
        (format!("text_encoder/{TEXT_FILE}"), params::tensors(&model.text_encoder)),
        (format!("vae/{UNET_FILE}"), params::tensors(&model.vae)),
        (format!("unet/{UNET_FILE}"), params::tensors(&model.unet)),
    ];
    for (name, tensors) in weights {
        let path = dir.join(name);
        save_tensors(&path, tensors, precision)?;
        written.push(path);
    }
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).map_err(|source| atomic::failed(&tokenizer, source))?;
    for (name, bytes) in model.tokenizer.files() {
        let path = tokenizer.join(name);
        atomic::write_bytes(&path, bytes)?;
        written.push(path);
    }
    let index = dir.join("model_index.json");
    let text = serde_json::to_string_pretty(&saved_index(&raw.model_index)).expect("JSON values can be written") + "\n";
    atomic::write_bytes(&index, text.as_bytes())?;
    written.push(index);
    Ok(written)
}

fn save_tensors(path: &Path, mut tensors: Vec<NamedTensor>, precision: SavePrecision) -> Result<(), CheckpointError> {
    tensors.sort_by(|a, b| a.path.cmp(&b.path));
    let width = byte_width(precision);
    let outgoing: Vec<Outgoing> =
        tensors.iter().map(|t| Outgoing { key: t.path.clone(), shape: t.shape.clone(), width }).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    atomic::write(path, |out| {
        write_header(out, &outgoing, &metadata).map_err(|source| atomic::failed(path, source))?;
        for tensor in &tensors {
            let bytes = to_bytes(tensor, precision)?;
            out.write_all(&bytes).map_err(|source| atomic::failed(path, source))?;
        }
        Ok(())
    })
}

pub(crate) fn byte_width(precision: SavePrecision) -> usize {
    match precision {
        SavePrecision::Fp32 => 4,
        SavePrecision::Fp16 => 2,
    }
}

/// A parameter's numbers as they stand in a file.
pub(crate) fn to_bytes(tensor: &NamedTensor, precision: SavePrecision) -> Result<Vec<u8>, CheckpointError> {
    let data = tensor.values.to_data();
    let values = data.as_slice::<f32>().expect("parameters are f32");
    match precision {
        SavePrecision::Fp32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        SavePrecision::Fp16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            if halves.iter().zip(values).any(|(half, v)| half.is_infinite() && v.is_finite()) {
                return Err(CheckpointError::Overflow { key: tensor.path.clone() });
            }
            Ok(halves.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
    }
}

/// transformers loads a model in the type its configuration names: name the one that was written.
fn with_dtype(config: &Value, precision: SavePrecision) -> Value {
    let mut config = config.clone();
    let name = match precision {
        SavePrecision::Fp32 => "float32",
        SavePrecision::Fp16 => "float16",
    };
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(name);
        }
    }
    config
}

/// The components of a pipeline that are read and written.
const CARRIED: [&str; 5] = ["text_encoder", "tokenizer", "vae", "unet", "scheduler"];

/// Names the components that a model has and that are not carried (the safety checker).
fn not_carried(index: &Value) -> Vec<&str> {
    let is_there = |value: &Value| value.as_array().is_some_and(|class| class.iter().any(|name| !name.is_null()));
    let entries = index.as_object().into_iter().flatten();
    entries
        .filter(|(key, value)| is_there(value) && !CARRIED.contains(&key.as_str()))
        .map(|(key, _)| key.as_str())
        .collect()
}

/// The index without components that are not carried, which diffusers would look for.
fn saved_index(index: &Value) -> Value {
    let mut index = index.clone();
    for (key, value) in index.as_object_mut().into_iter().flatten() {
        if value.is_array() && !CARRIED.contains(&key.as_str()) {
            *value = json!([null, null]);
        } else if key == "requires_safety_checker" {
            *value = json!(false);
        }
    }
    index
}

fn missing(path: &Path) -> CheckpointError {
    let hint = "a model folder has model_index.json and the folders tokenizer, text_encoder, vae, unet and scheduler";
    CheckpointError::Missing { path: path.to_owned(), hint: hint.to_owned() }
}

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let text = std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => missing(path),
        _ => CheckpointError::Read { path: path.to_owned(), source },
    })?;
    serde_json::from_slice(&text).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })
}

/// One component's safetensors file, with a note of everything that does not fit.
struct FileSource {
    path: PathBuf,
    file: RefCell<TensorFile>,
    /// diffusers key → key in the file.
    keys: BTreeMap<String, String>,
    used: RefCell<BTreeSet<String>>,
    missing: RefCell<Vec<String>>,
    ill_shaped: RefCell<Vec<String>>,
    failed: RefCell<Option<TensorsError>>,
}

impl FileSource {
    /// `canonical` gives the diffusers key for a key of the file, or `None` for one that is not needed.
    fn open(folder: &Path, name: &str, canonical: impl Fn(&str) -> Option<String>) -> Result<Self, CheckpointError> {
        let path = weights_path(folder, name)?;
        let file = TensorFile::open(&path).map_err(|source| CheckpointError::Tensors { path: path.clone(), source })?;
        let keys = file.tensors().keys().filter_map(|key| Some((canonical(key)?, key.clone()))).collect();
        Ok(Self {
            path,
            file: RefCell::new(file),
            keys,
            used: RefCell::default(),
            missing: RefCell::default(),
            ill_shaped: RefCell::default(),
            failed: RefCell::default(),
        })
    }

    /// The error that sums up everything noted.
    fn finish(self) -> Result<(), CheckpointError> {
        let path = self.path;
        if let Some(source) = self.failed.into_inner() {
            return Err(CheckpointError::Tensors { path, source });
        }
        let used = self.used.into_inner();
        let unexpected: Vec<String> = self.keys.into_values().filter(|key| !used.contains(key)).collect();
        let lists = [
            ("missing", self.missing.into_inner()),
            ("not expected", unexpected),
            ("of another shape", self.ill_shaped.into_inner()),
        ];
        let problems: Vec<String> =
            lists.iter().filter(|(_, keys)| !keys.is_empty()).map(|(what, keys)| summary(what, keys)).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path, problems: problems.join("; ") })
    }
}

/// The file, or the variant with `fp16` in its name where that is the only one.
fn weights_path(folder: &Path, name: &str) -> Result<PathBuf, CheckpointError> {
    let path = folder.join(name);
    let half = folder.join(name.replace(".safetensors", ".fp16.safetensors"));
    if path.is_file() {
        return Ok(path);
    }
    if half.is_file() {
        return Ok(half);
    }
    let pickle = folder.join(name.replace("model.safetensors", "model.bin"));
    let hint = if pickle.is_file() || folder.join("pytorch_model.bin").is_file() {
        "only safetensors files are read; convert the .bin file".to_owned()
    } else {
        format!("each of text_encoder, vae and unet holds its weights in a safetensors file like {name}")
    };
    Err(CheckpointError::Missing { path, hint })
}

fn summary(what: &str, keys: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = keys.iter().take(SHOWN).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let more = keys.len().saturating_sub(SHOWN);
    if more > 0 { format!("{what}: {shown} and {more} more") } else { format!("{what}: {shown}") }
}

impl Source for FileSource {
    fn fetch(&self, path: &str, shape: &[usize]) -> Option<Vec<f32>> {
        let Some(key) = self.keys.get(path) else {
            self.missing.borrow_mut().push(path.to_owned());
            return None;
        };
        self.used.borrow_mut().insert(key.clone());
        let stored = self.file.borrow().tensors()[key].shape.clone();
        if !same_shape(&stored, shape) {
            self.ill_shaped.borrow_mut().push(format!("{key}: {stored:?} instead of {shape:?}"));
            return None;
        }
        match self.file.borrow_mut().read(key) {
            Ok(values) => Some(values),
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

/// Equal up to trailing ones: old autoencoders store linear layers as 1x1 convolutions.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let trim = |shape: &[usize]| shape.iter().rposition(|n| *n != 1).map_or(0, |last| last + 1);
    a[..trim(a)] == b[..trim(b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_carried_is_named_and_left_out_of_the_index() {
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "image_encoder": [null, null],
            "requires_safety_checker": true,
        });
        assert_eq!(not_carried(&index), ["safety_checker"]);
        let saved = saved_index(&index);
        assert_eq!(saved["unet"], index["unet"]);
        assert_eq!(
            (&saved["safety_checker"], &saved["requires_safety_checker"]),
            (&json!([null, null]), &json!(false))
        );
        assert!(not_carried(&saved).is_empty());
    }
}
