//! Reading the single-file layout: all components in one file, under the original names.

use super::diffusers::check;
use super::fit::{Offered, OpenFile, Places, fit, summary};
use super::opened::{OpenOptions, Opened};
use super::recognise::Family;
use super::single_file::layout;
use super::stored::StoredTensor;
use super::values::ComponentShapes;
use super::{CheckpointError, Form, RawConfigs, derive, folder, metadata, prediction_name, recognise};
use crate::files::FileError;
use crate::{PredictionType, Tokenizer};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const UNET: &str = "model.diffusion_model.";
const EMA: &str = "model_ema.";

/// Prefixes of the three components. An unexpected key below one of them means another architecture.
const COMPONENTS: [&str; 3] = [UNET, "first_stage_model.", "cond_stage_model."];

/// Opens a single file: recognises the model, finds or derives its configurations, and the places of all weights.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Opened, CheckpointError> {
    if let Some(variant) = &options.variant {
        let problem = format!("a single file has no variants such as `{variant}`");
        return Err(CheckpointError::Option { path: path.to_owned(), problem });
    }
    let file = OpenFile::open(path)?;
    let tensors = canonical_tensors(&file);
    let family =
        recognise::single_file(&tensors).map_err(|what| CheckpointError::Foreign { path: path.to_owned(), what })?;
    let mut notes = Vec::new();
    let raw = configs(path, &file, &tensors, family, options, &mut notes)?;
    let configs = check(&raw).map_err(|(part, source)| CheckpointError::Config {
        path: options.config.as_ref().map_or_else(|| path.to_owned(), |dir| dir.join(part)),
        source,
    })?;
    let tokenizer = tokenizer(path, &file, family, configs.text_encoder.vocab_size, options, &mut notes)?;
    let shapes = ComponentShapes::of(&configs);
    let expected = layout(&shapes, &configs.text_encoder);
    let has_ema = file.weights.tensors().keys().any(|key| key.starts_with(EMA));
    let mut offered = offered(&file);
    if options.ema {
        if !has_ema {
            let problem = "there are no EMA weights in it (`model_ema.*`)".to_owned();
            return Err(CheckpointError::Option { path: path.to_owned(), problem });
        }
        take_ema(&mut offered, &expected, &file);
    } else if has_ema {
        notes.push("there are EMA weights in it (`model_ema.*`), which are not used; --ema takes them".to_owned());
    }
    let files = vec![file];
    let mut places = Places::new();
    let mut misfits = fit(&expected, &offered, &files, &mut places);
    misfits.unexpected.retain(|key| !is_known_extra(key, configs.text_encoder.num_hidden_layers));
    let (foreign, ignored) = std::mem::take(&mut misfits.unexpected)
        .into_iter()
        .partition(|key| COMPONENTS.iter().any(|prefix| key.starts_with(prefix)));
    misfits.unexpected = foreign;
    misfits.check(path)?;
    let ignored: Vec<String> = ignored;
    if !ignored.is_empty() {
        notes.push(summary("keys that belong to no part of the model are ignored", &ignored));
    }
    let metadata = files[0].weights.metadata().clone();
    Ok(Opened { form: Form::SingleFile, raw, configs, tokenizer, shapes, files, places, metadata, has_ema, notes })
}

/// The configurations: of the folder that was named, or of the file's metadata, or derived.
fn configs(
    path: &Path,
    file: &OpenFile,
    tensors: &BTreeMap<String, StoredTensor>,
    family: Family,
    options: &OpenOptions,
    notes: &mut Vec<String>,
) -> Result<RawConfigs, CheckpointError> {
    let words = file.weights.metadata();
    let stored = match &options.config {
        Some(dir) => Some(folder::read_configs(dir)?),
        None => {
            metadata::configs(words).transpose().map_err(|source| FileError::Json { path: path.to_owned(), source })?
        }
    };
    if let Some(mut raw) = stored {
        if let Some(prediction_type) = options.prediction_type {
            raw.scheduler["prediction_type"] = json!(prediction_name(prediction_type));
        }
        return Ok(raw);
    }
    let stated = derive::Stated {
        prediction_type: prediction_type(path, file, family, options, notes),
        zero_terminal_snr: file.weights.tensors().contains_key("ztsnr"),
    };
    let derived = derive::configs(tensors, family, stated).map_err(|problem| CheckpointError::Mismatch {
        path: path.to_owned(),
        problems: format!("taken for {}, {problem}", family.name()),
    })?;
    if !derived.guesses.is_empty() {
        notes.push(format!(
            "a guess, since the shapes of its tensors do not tell: {}. If that is wrong, so are its pictures: \
             `ballast convert FILE FOLDER --config DIR` takes it from the config.json files of a folder that knows",
            derived.guesses.join("; ")
        ));
    }
    Ok(derived.raw)
}

/// What the UNet predicts: what the person says, else what lies beside the file or stands in it, else ε.
fn prediction_type(
    path: &Path,
    file: &OpenFile,
    family: Family,
    options: &OpenOptions,
    notes: &mut Vec<String>,
) -> PredictionType {
    let has_key = || file.weights.tensors().contains_key("v_pred").then_some(PredictionType::VPrediction);
    let stated = options
        .prediction_type
        .or_else(|| beside(path))
        .or_else(|| metadata::prediction_type(file.weights.metadata()))
        .or_else(has_key);
    if let (None, Family::Sd2) = (stated, family) {
        notes.push(
            "nothing says whether this SD 2.x model predicts the noise (512-base) or the velocity (768-v): taken for \
             epsilon; --prediction-type v if that is wrong"
                .to_owned(),
        );
    }
    stated.unwrap_or_default()
}

/// The `NAME.yaml` that the original repositories, and many tools after them, keep beside `NAME.ckpt`: of it only
/// whether it says `parameterization: "v"`.
fn beside(path: &Path) -> Option<PredictionType> {
    const MAX_BYTES: u64 = 1 << 20;
    let yaml = path.with_extension("yaml");
    let is_small = std::fs::metadata(&yaml).is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES);
    let text = if is_small { std::fs::read_to_string(yaml).ok()? } else { return None };
    let value = text.lines().find_map(|line| line.trim().strip_prefix("parameterization:"));
    match value.map(|value| value.trim().trim_matches(['"', '\''])) {
        Some("v") => Some(PredictionType::VPrediction),
        _ => Some(PredictionType::Epsilon),
    }
}

fn tokenizer(
    path: &Path,
    file: &OpenFile,
    family: Family,
    vocab_size: usize,
    options: &OpenOptions,
    notes: &mut Vec<String>,
) -> Result<Tokenizer, CheckpointError> {
    let of_config = options.config.as_ref().map(|dir| dir.join("tokenizer")).filter(|dir| dir.is_dir());
    if let Some(dir) = options.tokenizer.clone().or(of_config) {
        return Tokenizer::load(&dir).map_err(CheckpointError::Tokenizer);
    }
    let needs = |problem: String| CheckpointError::NoTokenizer { path: path.to_owned(), problem };
    if metadata::has_other_tokenizer(file.weights.metadata()) {
        return Err(needs("it was saved with another one than CLIP's".to_owned()));
    }
    const CLIPS_TOKENS: usize = 49_408;
    let tokenizer = metadata::clips_tokenizer(family, vocab_size)
        .ok_or_else(|| needs(format!("it has {vocab_size} tokens, CLIP's own has {CLIPS_TOKENS}")))?;
    if vocab_size != CLIPS_TOKENS && !metadata::is_ours(file.weights.metadata()) {
        notes.push(format!(
            "it has {vocab_size} tokens instead of CLIP's {CLIPS_TOKENS}: taken for the first of CLIP's; --tokenizer DIR \
             if that is wrong"
        ));
    }
    Ok(tokenizer)
}

/// Today's original name for a name in a file.
fn canonical(key: &str) -> String {
    const TEXT: &str = "cond_stage_model.transformer.";
    let bare = ["embeddings.", "encoder.", "final_layer_norm."];
    match key.strip_prefix(TEXT) {
        Some(rest) if bare.iter().any(|start| rest.starts_with(start)) => format!("{TEXT}text_model.{rest}"),
        _ => key.to_owned(),
    }
}

fn canonical_tensors(file: &OpenFile) -> BTreeMap<String, StoredTensor> {
    file.weights.tensors().iter().map(|(key, tensor)| (canonical(key), tensor.clone())).collect()
}

fn offered(file: &OpenFile) -> Offered {
    let keys = file.weights.tensors().keys();
    keys.map(|key| (canonical(key), (0, key.clone()))).collect()
}

/// Puts the UNet's moving averages in the place of its weights. Their names have no dots: `model_ema.` and then
/// `diffusion_modelinput_blocks00weight`.
fn take_ema(offered: &mut Offered, expected: &[super::SingleFileTensor], file: &OpenFile) {
    offered.retain(|key, _| !key.starts_with(UNET));
    for tensor in expected.iter().filter(|tensor| tensor.key.starts_with(UNET)) {
        let flat = format!("{EMA}{}", tensor.key["model.".len()..].replace('.', ""));
        if file.weights.tensors().contains_key(&flat) {
            offered.remove(&flat);
            offered.insert(tensor.key.clone(), (0, flat));
        }
    }
}

/// Buffers of the noise schedule, and words without a value.
const BUFFERS: [&str; 17] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "lvlb_weights",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
];

/// What single files have beside the weights and no part of the model uses.
fn is_known_extra(key: &str, text_layers: usize) -> bool {
    const PARTS: [&str; 3] = [EMA, "first_stage_model.loss.", "first_stage_model.model_ema."];
    const OPEN_CLIP: &str = "cond_stage_model.model.";
    const LEAVES: [&str; 4] = ["position_ids", "logit_scale", "text_projection", "text_projection.weight"];
    let is_text_leaf = || key.starts_with("cond_stage_model.") && LEAVES.iter().any(|leaf| key.ends_with(leaf));
    let is_last_layer = || {
        let layer = key.strip_prefix(OPEN_CLIP).and_then(|rest| rest.strip_prefix("transformer.resblocks."));
        layer.and_then(|rest| rest.split_once('.')).is_some_and(|(n, _)| n.parse() == Ok(text_layers))
    };
    BUFFERS.contains(&key)
        || PARTS.iter().any(|part| key.starts_with(part))
        || key == "cond_stage_model.model.attn_mask"
        || is_text_leaf()
        || is_last_layer()
}
