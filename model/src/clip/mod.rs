//! The CLIP text encoder: token ids in, one vector per token out (`encoder_hidden_states` for the UNet).

mod blocks;
pub(crate) mod keys;
mod settings;

use crate::Compute;
use crate::config::{self, ConfigError, ensure};
use crate::tokenizer::MAX_LENGTH;
use crate::weights::Weights;
use blocks::TextTransformer;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;
use serde_json::Value;
pub use settings::TextSettings;

/// The keys of `text_encoder/config.json` that shape the computation; defaults are those of transformers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Transformer blocks. SD 2.x configs have one less than OpenCLIP: its penultimate state is the output.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// `quick_gelu` (OpenAI) or `gelu` (OpenCLIP).
    pub hidden_act: String,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipTextConfig {
    /// Reads and checks a `text_encoder/config.json`.
    ///
    /// # Errors
    ///
    /// On wrong types, settings that are not implemented, and numbers that do not fit together.
    pub fn from_json(raw: &Value) -> Result<Self, ConfigError> {
        const NAME: &str = "text_encoder";
        config::refuse_unsupported(NAME, raw, &[("hidden_act", &["quick_gelu".into(), "gelu".into()])])?;
        let config: Self = config::parse(NAME, raw)?;
        ensure(NAME, config.hidden_size.is_multiple_of(config.num_attention_heads), || {
            format!("hidden_size {} is no multiple of {} heads", config.hidden_size, config.num_attention_heads)
        })?;
        ensure(NAME, config.max_position_embeddings >= MAX_LENGTH, || {
            format!("max_position_embeddings is {}, captions have {MAX_LENGTH} tokens", config.max_position_embeddings)
        })?;
        let stated = config.check_clip_skip(TextSettings::of_config(raw).clip_skip);
        ensure(NAME, stated.is_ok(), || stated.map_or_else(|error| error.to_string(), |()| String::new()))?;
        Ok(config)
    }
}

impl ClipTextConfig {
    /// Whether there are enough blocks for a clip skip.
    ///
    /// # Errors
    ///
    /// When there are not.
    pub fn check_clip_skip(&self, clip_skip: usize) -> Result<(), ClipSkipError> {
        check_clip_skip(clip_skip, self.num_hidden_layers)
    }
}

/// The text encoder of SD 1.x (CLIP ViT-L) and 2.x (OpenCLIP ViT-H), by configuration.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    text_model: TextTransformer,
    /// Blocks that are run: all, or fewer with clip skip.
    layers: usize,
    #[module(skip)]
    compute: Compute,
}

/// A clip skip that the text encoder has too few blocks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a clip skip of {clip_skip} is too much for a text encoder of {layers} layers: 1 (none) to {layers}")]
pub struct ClipSkipError {
    /// Asked for.
    pub clip_skip: usize,
    /// Blocks of the text encoder.
    pub layers: usize,
}

fn check_clip_skip(clip_skip: usize, layers: usize) -> Result<(), ClipSkipError> {
    if clip_skip > layers { Err(ClipSkipError { clip_skip, layers }) } else { Ok(()) }
}

impl ClipTextModel {
    pub(crate) fn new(weights: &Weights, config: &ClipTextConfig) -> Self {
        let text_model = TextTransformer::new(&weights.at("text_model"), config);
        Self { text_model, layers: config.num_hidden_layers, compute: Compute::default() }
    }

    /// Computes in another number format from now on, and gives its states in it.
    pub fn compute_in(&mut self, compute: Compute) {
        self.compute = compute;
    }

    /// Takes the `clip_skip`-th hidden state from the end instead of the last, and the final norm of that: 1 (or 0) is
    /// the last, 2 the one before.
    ///
    /// # Errors
    ///
    /// When there are not as many.
    pub fn with_clip_skip(mut self, clip_skip: usize) -> Result<Self, ClipSkipError> {
        let layers = self.text_model.layers();
        check_clip_skip(clip_skip, layers)?;
        self.layers = layers + 1 - clip_skip.max(1);
        Ok(self)
    }

    /// Whether the text states depend on the parameter with this key; they do not on those of blocks that are skipped.
    pub fn uses(&self, key: &str) -> bool {
        let block = key.strip_prefix("text_model.encoder.layers.").and_then(|rest| rest.split('.').next());
        block.and_then(|block| block.parse().ok()).is_none_or(|block: usize| block < self.layers)
    }

    /// Encodes token ids to the last hidden state, after the final layer norm.
    ///
    /// `token_ids`: `[batch, length]` → `[batch, length, hidden_size]`
    pub fn forward(&self, token_ids: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.forward(token_ids, self.layers, self.compute)
    }

    /// [`forward`](Self::forward) without the final layer norm.
    pub fn hidden_state(&self, token_ids: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.hidden_state(token_ids, self.layers, self.compute)
    }

    /// [`forward`](Self::forward) of ids on the host, all rows of one length.
    ///
    /// Rows longer than 77 are encoded in chunks of 77, each by itself, and the states are put together again.
    ///
    /// # Panics
    ///
    /// When there are no rows, when they differ in length, and when they are long and do not divide into pieces.
    pub fn encode(&self, token_ids: &[Vec<i32>], device: &Device) -> Tensor<3> {
        let (batch, length) = (token_ids.len(), token_ids.first().expect("at least one caption").len());
        assert!(token_ids.iter().all(|row| row.len() == length), "captions are padded to one length");
        let piece = length.min(MAX_LENGTH);
        assert!(length.is_multiple_of(piece), "long captions are padded to a multiple of {piece}");
        let pieces = batch * length / piece;
        let data = TensorData::new(token_ids.concat(), [pieces, piece]);
        let states = self.forward(Tensor::from_data(data, device)); // [pieces, piece, width]
        if pieces == batch { states } else { states.reshape([batch as i64, length as i64, -1]) }
    }
}
