//! Writing the diffusers folder layout: one folder per component, each with its configuration.

use super::precision::encode;
use super::tensors::{Outgoing, write_header};
use super::values::{Component, Values};
use super::{CheckpointError, Configs, ModelParts, RawConfigs, SavePrecision, atomic, limits};
use crate::NoiseScheduler;
use crate::clip::ClipTextConfig;
use crate::config::ConfigError;
use crate::unet::UNetConfig;
use crate::vae::VaeConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Checks all configurations; an error comes with the file's place in the folder.
pub(crate) fn check(raw: &RawConfigs) -> Result<Configs, (&'static str, ConfigError)> {
    limits::check_timesteps(&raw.scheduler)?;
    let configs = Configs {
        text_encoder: ClipTextConfig::from_json(&raw.text_encoder).map_err(|e| ("text_encoder/config.json", e))?,
        vae: VaeConfig::from_json(&raw.vae).map_err(|e| ("vae/config.json", e))?,
        unet: UNetConfig::from_json(&raw.unet).map_err(|e| ("unet/config.json", e))?,
        noise_scheduler: NoiseScheduler::from_json(&raw.scheduler)
            .map_err(|e| ("scheduler/scheduler_config.json", e))?,
    };
    limits::check(&configs)?;
    Ok(configs)
}

/// Writes all files of a folder. Each appears under its name only when it is complete; `model_index.json` comes last.
pub(crate) fn write(
    parts: &ModelParts,
    values: &dyn Values,
    dir: &Path,
    precision: SavePrecision,
) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut written = Vec::new();
    let raw = parts.raw;
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
    for component in Component::ALL {
        let path = dir.join(component.name()).join(format!("{}.safetensors", component.weights_stem()));
        write_component(parts, values, component, &path, precision)?;
        written.push(path);
    }
    let tokenizer = dir.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).map_err(|source| atomic::failed(&tokenizer, source))?;
    for (name, bytes) in parts.tokenizer.files() {
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

fn write_component(
    parts: &ModelParts,
    values: &dyn Values,
    component: Component,
    path: &Path,
    precision: SavePrecision,
) -> Result<(), CheckpointError> {
    let mut tensors: Vec<Outgoing> = parts
        .shapes
        .get(component)
        .iter()
        .map(|param| Outgoing { key: param.path.clone(), shape: param.shape.clone() })
        .collect();
    tensors.sort_by(|a, b| a.key.cmp(&b.key));
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    atomic::write(path, |out| {
        write_header(out, &tensors, precision, &metadata).map_err(|source| atomic::failed(path, source))?;
        tensors.iter().try_for_each(|tensor| {
            values.read(&component.full_name(&tensor.key), &mut |numbers| {
                encode(out, numbers, precision, &tensor.key).map_err(|error| error.at(path))
            })
        })
    })
}

/// transformers loads a model in the type its configuration names: name the one that was written.
fn with_dtype(config: &Value, precision: SavePrecision) -> Value {
    let mut config = config.clone();
    for key in ["torch_dtype", "dtype"] {
        if config.get(key).is_some() {
            config[key] = json!(precision.torch());
        }
    }
    config
}

/// The components of a pipeline that are read and written.
const CARRIED: [&str; 5] = ["text_encoder", "tokenizer", "vae", "unet", "scheduler"];

/// Names the components that a model has and that are not carried (the safety checker).
pub(crate) fn not_carried(index: &Value) -> Vec<&str> {
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
