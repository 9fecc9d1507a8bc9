//! The CLIP text encoder: token ids in, one vector per token out (`encoder_hidden_states` for the UNet).

mod blocks;
pub(crate) mod keys;

use crate::config::{self, ConfigError, ensure};
use crate::weights::Weights;
use blocks::TextTransformer;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::Deserialize;
use serde_json::Value;

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
        Ok(config)
    }
}

/// The text encoder of SD 1.x (CLIP ViT-L) and 2.x (OpenCLIP ViT-H), by configuration.
#[derive(Module, Debug)]
pub struct ClipTextModel {
    text_model: TextTransformer,
}

impl ClipTextModel {
    pub(crate) fn new(weights: &Weights, config: &ClipTextConfig) -> Self {
        Self { text_model: TextTransformer::new(&weights.at("text_model"), config) }
    }

    /// Encodes token ids to the last hidden state, after the final layer norm.
    ///
    /// `token_ids`: `[batch, length]` → `[batch, length, hidden_size]`
    pub fn forward(&self, token_ids: Tensor<2, Int>) -> Tensor<3> {
        self.text_model.forward(token_ids)
    }

    /// [`forward`](Self::forward) of ids on the host, all rows of one length.
    ///
    /// # Panics
    ///
    /// When the rows differ in length or there are none.
    pub fn encode(&self, token_ids: &[Vec<i32>], device: &Device) -> Tensor<3> {
        let length = token_ids.first().expect("at least one caption").len();
        assert!(token_ids.iter().all(|row| row.len() == length), "captions are padded to one length");
        let data = TensorData::new(token_ids.concat(), [token_ids.len(), length]);
        self.forward(Tensor::from_data(data, device))
    }

    /// Longest sequence that has position embeddings (77).
    pub fn max_length(&self) -> usize {
        self.text_model.max_length()
    }
}
