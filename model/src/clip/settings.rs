//! How prompts become text states: which layer of the text encoder is taken, and what becomes of long ones.
//!
//! A model draws best as it was trained. So the settings travel with it, in its text encoder's configuration, under two
//! keys of our own that other programs pass over; a model without them has the usual settings.

use crate::tokenizer::{CHUNK, MAX_CHUNKS};
use serde_json::{Value, json};

const CLIP_SKIP: &str = "ballast_clip_skip";
const LONG_PROMPTS: &str = "ballast_long_prompts";

/// How prompts become text states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextSettings {
    /// Which hidden state from the end is taken: 1 (or 0) the last, 2 the one before. The final layer norm follows
    /// either, as in kohya's trainers and AUTOMATIC1111's `CLIP stop at last layers`; diffusers counts one less.
    pub clip_skip: usize,
    /// Whether prompts of more than 75 tokens are encoded in chunks instead of cut off.
    pub long_prompts: bool,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self { clip_skip: 1, long_prompts: false }
    }
}

impl TextSettings {
    /// Tokens of a caption that are used.
    pub fn max_tokens(self) -> usize {
        if self.long_prompts { MAX_CHUNKS * CHUNK } else { CHUNK }
    }

    /// Reads the settings of a text encoder's configuration. What is no setting there is none.
    pub(crate) fn of_config(raw: &Value) -> Self {
        let clip_skip = raw[CLIP_SKIP].as_u64().and_then(|skip| usize::try_from(skip).ok()).unwrap_or(1);
        Self { clip_skip, long_prompts: raw[LONG_PROMPTS] == true }
    }

    /// Writes the settings into a text encoder's configuration: only what is not usual, so that the configurations of
    /// other models stay as they are.
    pub(crate) fn write_to(self, raw: &mut Value) {
        let Some(config) = raw.as_object_mut() else { return };
        config.remove(CLIP_SKIP);
        config.remove(LONG_PROMPTS);
        if self.clip_skip > 1 {
            config.insert(CLIP_SKIP.to_owned(), json!(self.clip_skip));
        }
        if self.long_prompts {
            config.insert(LONG_PROMPTS.to_owned(), json!(true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_carries_them_and_the_usual_ones_leave_no_trace() {
        let mut raw = json!({"hidden_size": 16});
        let original = raw.clone();
        assert_eq!(TextSettings::of_config(&raw), TextSettings::default());
        for settings in [
            TextSettings { clip_skip: 2, long_prompts: true },
            TextSettings { clip_skip: 3, long_prompts: false },
            TextSettings::default(),
        ] {
            settings.write_to(&mut raw);
            assert_eq!(TextSettings::of_config(&raw), settings);
        }
        assert_eq!(raw, original);
        assert_eq!(TextSettings::of_config(&json!({"ballast_clip_skip": "two"})), TextSettings::default());
    }
}
