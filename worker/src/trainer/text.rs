//! From the config's `model.clip_skip` and `model.long_prompts` to the text encoder.

use std::ops::Range;

use ballast_common::config::RunConfig;
use ballast_model::{ClipSkipError, ClipTextModel, FlatLayout, ParamGroup, StableDiffusion, TextSettings};
use tracing::warn;

/// How the run's captions and prompts become text states.
pub(crate) fn text_settings(config: &RunConfig) -> TextSettings {
    TextSettings { clip_skip: config.model.clip_skip as usize, long_prompts: config.model.long_prompts }
}

/// Brings the settings to the text encoder, and into what is saved of the model.
///
/// # Errors
/// When the text encoder has too few layers.
pub(super) fn prepare(model: &mut StableDiffusion, settings: TextSettings) -> Result<(), ClipSkipError> {
    let before = model.text_settings();
    if before != TextSettings::default() && before != settings {
        warn!(
            clip_skip = before.clip_skip,
            long_prompts = before.long_prompts,
            "the model was trained with other settings of its text encoder than this run's: see model.clip_skip and \
             model.long_prompts"
        );
    }
    model.set_text_settings(settings)?;
    model.text_encoder = model.text_encoder.clone().with_clip_skip(settings.clip_skip)?;
    Ok(())
}

/// Where the text encoder's parameters lie without those of layers that are skipped: these have no gradient, and the
/// optimizer's decay of weights must not touch them either. Neighbours are joined.
pub(super) fn used_ranges(layout: &FlatLayout, text_encoder: &ClipTextModel) -> Vec<Range<usize>> {
    let prefix = format!("{}.", ParamGroup::TextEncoder.name());
    let keys = layout.entries.iter().filter_map(|entry| Some((entry, entry.path.strip_prefix(&prefix)?)));
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (entry, _) in keys.filter(|(_, key)| text_encoder.uses(key)) {
        let end = entry.offset + entry.len;
        match ranges.last_mut() {
            Some(last) if last.end == entry.offset => last.end = end,
            _ => ranges.push(entry.offset..end),
        }
    }
    ranges
}
