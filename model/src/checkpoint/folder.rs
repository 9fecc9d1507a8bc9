//! Reading the diffusers folder layout.
//!
//! The weights of a component may have several names: one file or many with an index, safetensors or a pickle, with a
//! variant's name (`fp16`) in it or without. The first of [`candidates`] that is there is read.

use super::diffusers::{check, not_carried};
use super::fit::{Misfits, Offered, OpenFile, Places, fit, summary};
use super::opened::{OpenOptions, Opened};
use super::recognise::{conditioned, foreign_pipeline};
use super::single_file::SingleFileTensor;
use super::values::{Component, ComponentShapes};
use super::{CheckpointError, Form, RawConfigs, prediction_name};
use crate::files::{parse_json, read_small};
use crate::{Tokenizer, clip, vae};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Opens a folder: configurations, tokenizer, and the places of all weights. No weight is read.
pub(crate) fn open(dir: &Path, options: &OpenOptions) -> Result<Opened, CheckpointError> {
    if options.ema {
        let problem = "a diffusers folder has no EMA weights beside the others; only single files have".to_owned();
        return Err(CheckpointError::Option { path: dir.to_owned(), problem });
    }
    let mut raw = read_configs(options.config.as_deref().unwrap_or(dir))?;
    if let Some(what) = foreign(&raw) {
        return Err(CheckpointError::Foreign { path: dir.to_owned(), what });
    }
    if let Some(prediction_type) = options.prediction_type {
        raw.scheduler["prediction_type"] = json!(prediction_name(prediction_type));
    }
    let configs = check(&raw).map_err(|(file, source)| CheckpointError::Config { path: dir.join(file), source })?;
    let mut notes: Vec<String> = not_carried(&raw.model_index)
        .iter()
        .map(|part| format!("`{part}` is not carried: what is saved has none"))
        .collect();
    let tokenizer_dir = options.tokenizer.clone().unwrap_or_else(|| dir.join("tokenizer"));
    if !tokenizer_dir.is_dir() {
        return Err(missing(&tokenizer_dir));
    }
    let tokenizer = Tokenizer::load(&tokenizer_dir).map_err(CheckpointError::Tokenizer)?;
    let shapes = ComponentShapes::of(&configs);
    let (mut files, mut places) = (Vec::new(), Places::new());
    for component in Component::ALL {
        let weights = find_weights(&dir.join(component.name()), component, options.variant.as_deref())?;
        notes.extend(weights.note.clone());
        let shown = weights.path.clone();
        let offered = offer(weights, component, &mut files)?;
        let expected: Vec<SingleFileTensor> = shapes
            .get(component)
            .iter()
            .map(|param| SingleFileTensor {
                key: param.path.clone(),
                shape: param.shape.clone(),
                parts: vec![component.full_name(&param.path)],
            })
            .collect();
        let misfits: Misfits = fit(&expected, &offered, &files, &mut places);
        misfits.check(&shown)?;
    }
    Ok(Opened {
        form: Form::Diffusers,
        raw,
        configs,
        tokenizer,
        shapes,
        files,
        places,
        metadata: BTreeMap::new(),
        has_ema: false,
        notes,
    })
}

/// Reads the configurations of a folder.
pub(crate) fn read_configs(dir: &Path) -> Result<RawConfigs, CheckpointError> {
    Ok(RawConfigs {
        model_index: read_json(&dir.join("model_index.json"))?,
        text_encoder: read_json(&dir.join("text_encoder/config.json"))?,
        vae: read_json(&dir.join("vae/config.json"))?,
        unet: read_json(&dir.join("unet/config.json"))?,
        scheduler: read_json(&dir.join("scheduler/scheduler_config.json"))?,
    })
}

fn foreign(raw: &RawConfigs) -> Option<String> {
    let in_channels = raw.unet["in_channels"].as_u64().unwrap_or(4);
    foreign_pipeline(&raw.model_index).or_else(|| conditioned(usize::try_from(in_channels).ok()?))
}

/// The files that hold a component's weights.
struct Weights {
    /// The one file, or the index.
    path: PathBuf,
    /// For an index: key → file beside it.
    index: Option<BTreeMap<String, String>>,
    note: Option<String>,
}

fn find_weights(folder: &Path, component: Component, variant: Option<&str>) -> Result<Weights, CheckpointError> {
    for name in candidates(component, variant) {
        let path = folder.join(&name);
        if path.is_file() {
            let index = if name.contains(".index.") { Some(read_index(&path)?) } else { None };
            return Ok(Weights { path, index, note: None });
        }
    }
    let stem = component.weights_stem();
    let others = variants(folder, component);
    if let Some(variant) = variant {
        let among = if others.is_empty() { String::new() } else { format!(" (there are: {})", others.join(", ")) };
        let problem = format!("no variant `{variant}` of the weights{among}");
        return Err(CheckpointError::Option { path: folder.to_owned(), problem });
    }
    // In half precision only: what most downloads consist of.
    let usual = ["fp16", "bf16"].into_iter().find(|usual| others.iter().any(|other| other == usual));
    let only = usual.or_else(|| if let [only] = others.as_slice() { Some(only) } else { None });
    match only {
        Some(variant) => {
            let note = format!("{}: only the variant `{variant}` is there, so that is read", component.name());
            Ok(Weights { note: Some(note), ..find_weights(folder, component, Some(variant))? })
        }
        None if others.is_empty() => {
            let hint =
                format!("each of text_encoder, vae and unet holds its weights in a file like {stem}.safetensors");
            Err(CheckpointError::Missing { path: folder.join(format!("{stem}.safetensors")), hint })
        }
        None => {
            let problem = format!("several variants of the weights: name one with --variant: {}", others.join(", "));
            Err(CheckpointError::Option { path: folder.to_owned(), problem })
        }
    }
}

/// Names of the weights, the best first.
fn candidates(component: Component, variant: Option<&str>) -> Vec<String> {
    let stem = component.weights_stem();
    let pickle = pickle_stem(component);
    match variant {
        None => vec![
            format!("{stem}.safetensors"),
            format!("{stem}.safetensors.index.json"),
            format!("{pickle}.bin"),
            format!("{pickle}.bin.index.json"),
        ],
        Some(variant) => vec![
            format!("{stem}.{variant}.safetensors"),
            format!("{stem}.safetensors.index.{variant}.json"),
            format!("{stem}.{variant}.safetensors.index.json"),
            format!("{pickle}.{variant}.bin"),
            format!("{pickle}.bin.index.{variant}.json"),
        ],
    }
}

fn pickle_stem(component: Component) -> &'static str {
    match component {
        Component::TextEncoder => "pytorch_model",
        Component::Vae | Component::Unet => component.weights_stem(),
    }
}

/// Variants of which there is a file, sorted: what stands between the stem and the ending.
fn variants(folder: &Path, component: Component) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let variant = |name: &str| {
        let inner = [(component.weights_stem(), ".safetensors"), (pickle_stem(component), ".bin")];
        let found = inner.iter().find_map(|(stem, ending)| name.strip_prefix(stem)?.strip_suffix(ending));
        let of_index =
            || name.strip_prefix(component.weights_stem())?.strip_prefix(".safetensors.index")?.strip_suffix(".json");
        let name = found.or_else(of_index)?.strip_prefix('.')?;
        (!name.is_empty() && !name.contains("-of-")).then(|| name.to_owned())
    };
    let mut variants: Vec<String> = names.filter_map(|entry| variant(entry.file_name().to_str()?)).collect();
    variants.sort_unstable();
    variants.dedup();
    variants
}

/// Opens the files, and lists what they offer under today's names.
fn offer(weights: Weights, component: Component, files: &mut Vec<OpenFile>) -> Result<Offered, CheckpointError> {
    let mut offered = Offered::new();
    let Some(index) = weights.index else {
        files.push(OpenFile::open(&weights.path)?);
        let file = files.len() - 1;
        for key in files[file].weights.tensors().keys() {
            offered.extend(canonical(component, key).map(|name| (name, (file, key.clone()))));
        }
        return Ok(offered);
    };
    let folder = weights.path.parent().expect("a file in a folder");
    let mut opened: BTreeMap<&str, usize> = BTreeMap::new();
    let mut lost = Vec::new();
    for (key, name) in &index {
        let file = match opened.get(name.as_str()) {
            Some(file) => *file,
            None => {
                files.push(OpenFile::open(&folder.join(name))?);
                opened.insert(name, files.len() - 1);
                files.len() - 1
            }
        };
        if !files[file].weights.tensors().contains_key(key) {
            lost.push(format!("{key} in {name}"));
            continue;
        }
        offered.extend(canonical(component, key).map(|today| (today, (file, key.clone()))));
    }
    if lost.is_empty() {
        return Ok(offered);
    }
    let problem = summary("it names what is not there", &lost);
    Err(CheckpointError::Index { path: weights.path, problem })
}

fn canonical(component: Component, key: &str) -> Option<String> {
    match component {
        Component::TextEncoder => clip::keys::canonical(key),
        Component::Vae => vae::keys::canonical(key),
        Component::Unet => Some(key.to_owned()),
    }
}

/// An index has no more than a few thousand keys.
const MAX_INDEX_FILES: usize = 1000;

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let failed = |problem: &str| CheckpointError::Index { path: path.to_owned(), problem: problem.to_owned() };
    let json = read_json(path)?;
    let map = json["weight_map"].as_object().ok_or_else(|| failed("no `weight_map` in it"))?;
    let mut index = BTreeMap::new();
    for (key, name) in map {
        let name = name.as_str().ok_or_else(|| failed("a file's name that is no text"))?;
        let is_beside = !name.contains(['/', '\\']) && !name.starts_with('.') && !name.is_empty();
        if !is_beside {
            return Err(failed(&format!("`{name}` is not the name of a file beside it")));
        }
        index.insert(key.clone(), name.to_owned());
    }
    let mut names: Vec<&String> = index.values().collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_INDEX_FILES {
        return Err(failed("more than 1000 files"));
    }
    Ok(index)
}

fn missing(path: &Path) -> CheckpointError {
    let hint = "a model folder has model_index.json and the folders tokenizer, text_encoder, vae, unet and scheduler";
    CheckpointError::Missing { path: path.to_owned(), hint: hint.to_owned() }
}

/// Configurations and indices have some kilobytes.
const MAX_JSON_BYTES: u64 = 16 << 20;

fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    let text = read_small(path, MAX_JSON_BYTES)?.ok_or_else(|| missing(path))?;
    Ok(parse_json(path, &text)?)
}
