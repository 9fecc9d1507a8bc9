//! What a single file says about itself: the fields of Stability AI's model specification, which other tools show, and
//! the configurations, so that no size or head count has to be guessed when the file is read again.

use super::recognise::Family;
use super::{ModelParts, RawConfigs};
use crate::PredictionType;
use crate::tokenizer::{Padding, Tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The configurations as JSON: `{"unet": {…}, …}`, as in the files of a diffusers folder.
const CONFIG: &str = "ballast.config";

/// `other` where the model's tokenizer is not the one that CLIP has for that number of tokens.
const TOKENIZER: &str = "ballast.tokenizer";

const PREDICTION_TYPE: &str = "modelspec.prediction_type";

/// The same for the same model: no date, no name of a file or machine.
pub(crate) fn of_model(parts: &ModelParts) -> BTreeMap<String, String> {
    let family = Family::of_text_config(&parts.raw.text_encoder);
    let prediction_type = parts.configs.noise_scheduler.config().prediction_type;
    let latent_side = parts.raw.unet["sample_size"].as_u64().unwrap_or(64);
    let side = latent_side.saturating_mul(parts.configs.vae.factor() as u64);
    let mut words = vec![
        ("format", "pt".to_owned()),
        ("modelspec.sai_model_spec", "1.0.0".to_owned()),
        ("modelspec.architecture", architecture(family, prediction_type).to_owned()),
        ("modelspec.implementation", "https://github.com/CompVis/stable-diffusion".to_owned()),
        ("modelspec.title", family.name().to_owned()),
        ("modelspec.resolution", format!("{side}x{side}")),
        (PREDICTION_TYPE, short_name(prediction_type).to_owned()),
        (CONFIG, config_json(parts.raw)),
    ];
    if !is_clips(parts.tokenizer, family, parts.configs.text_encoder.vocab_size) {
        words.push((TOKENIZER, "other".to_owned()));
    }
    words.into_iter().map(|(key, word)| (key.to_owned(), word)).collect()
}

/// Metadata of a file that is converted, without what would no longer be true.
pub(crate) fn carried(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    const ANEW: [&str; 6] =
        ["format", CONFIG, TOKENIZER, PREDICTION_TYPE, "modelspec.resolution", "modelspec.architecture"];
    const HASHES: [&str; 3] = ["modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"];
    let kept = metadata.iter().filter(|(key, _)| !ANEW.contains(&key.as_str()) && !HASHES.contains(&key.as_str()));
    kept.map(|(key, word)| (key.clone(), word.clone())).collect()
}

/// The configurations that a file carries, if it does.
pub(crate) fn configs(metadata: &BTreeMap<String, String>) -> Option<Result<RawConfigs, serde_json::Error>> {
    let parsed: Result<BTreeMap<String, Value>, _> = serde_json::from_str(metadata.get(CONFIG)?);
    Some(parsed.map(|mut parts| {
        let mut part = |name: &str| parts.remove(name).unwrap_or_default();
        RawConfigs {
            model_index: part("model_index"),
            text_encoder: part("text_encoder"),
            vae: part("vae"),
            unet: part("unet"),
            scheduler: part("scheduler"),
        }
    }))
}

/// Whether ballast wrote the file, and so said all that there is to say.
pub(crate) fn is_ours(metadata: &BTreeMap<String, String>) -> bool {
    metadata.contains_key(CONFIG)
}

/// Whether the file says that CLIP's own tokenizer is not its own.
pub(crate) fn has_other_tokenizer(metadata: &BTreeMap<String, String>) -> bool {
    metadata.contains_key(TOKENIZER)
}

/// What the model specification says that the UNet predicts.
pub(crate) fn prediction_type(metadata: &BTreeMap<String, String>) -> Option<PredictionType> {
    let word = metadata.get(PREDICTION_TYPE)?;
    match word.as_str() {
        "v" | "v_prediction" => Some(PredictionType::VPrediction),
        "epsilon" => Some(PredictionType::Epsilon),
        _ if metadata.get("modelspec.architecture").is_some_and(|a| a.ends_with("-v")) => {
            Some(PredictionType::VPrediction)
        }
        _ => None,
    }
}

/// Tokens of CLIP that are no merges: 256 bytes, 256 bytes that end a word, begin and end.
const UNMERGED: usize = 514;

/// CLIP's tokenizer with so many tokens: all of them, or fewer for tiny models. `None` when it has not so many.
pub(crate) fn clips_tokenizer(family: Family, vocab_size: usize) -> Option<Tokenizer> {
    let merges = vocab_size.checked_sub(UNMERGED).filter(|merges| *merges <= 48_894)?;
    let padding = match family {
        Family::Sd1 => Padding::EndOfText,
        Family::Sd2 => Padding::ExclamationMark,
    };
    Some(Tokenizer::clip(merges, padding))
}

/// Whether the tokenizer gives the ids that CLIP's would, for texts that use much of it.
fn is_clips(tokenizer: &Tokenizer, family: Family, vocab_size: usize) -> bool {
    const PROBES: [&str; 3] = [
        "a photo of an astronaut riding a horse on mars, highly detailed, 4k",
        "Zoë's 3 cats & 2 dogs: naïve café, don't! <|endoftext|> (((x)))",
        "the quick brown fox jumps over the lazy dog; 日本の桜",
    ];
    clips_tokenizer(family, vocab_size)
        .is_some_and(|clip| PROBES.iter().all(|probe| clip.encode(probe) == tokenizer.encode(probe)))
}

fn config_json(raw: &RawConfigs) -> String {
    let mut all = json!({
        "model_index": raw.model_index, "text_encoder": raw.text_encoder, "vae": raw.vae, "unet": raw.unet,
        "scheduler": raw.scheduler,
    });
    // Where the model once lay on somebody's machine.
    for part in all.as_object_mut().expect("an object").values_mut() {
        part.as_object_mut().and_then(|part| part.remove("_name_or_path"));
    }
    all.to_string()
}

fn architecture(family: Family, prediction_type: PredictionType) -> &'static str {
    match (family, prediction_type) {
        (Family::Sd1, _) => "stable-diffusion-v1",
        (Family::Sd2, PredictionType::Epsilon) => "stable-diffusion-v2-512",
        (Family::Sd2, PredictionType::VPrediction) => "stable-diffusion-v2-768-v",
    }
}

fn short_name(prediction_type: PredictionType) -> &'static str {
    match prediction_type {
        PredictionType::Epsilon => "epsilon",
        PredictionType::VPrediction => "v",
    }
}
