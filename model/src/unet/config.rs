//! `unet/config.json`.

use crate::config::{self, ConfigError, PerBlock, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// Which attention a block has. Names of the JSON: `CrossAttnDownBlock2D`, `DownBlock2D` and their `Up` twins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum BlockType {
    /// Residual blocks, each followed by a transformer that attends to the text.
    #[serde(rename = "CrossAttnDownBlock2D", alias = "CrossAttnUpBlock2D")]
    CrossAttention,
    /// Residual blocks only.
    #[serde(rename = "DownBlock2D", alias = "UpBlock2D")]
    Plain,
}

/// The keys of `unet/config.json` that shape the computation; defaults are those of diffusers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct UNetConfig {
    /// Channels of the noisy latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels at each resolution, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per resolution on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// Blocks on the way down, finest first.
    pub down_block_types: Vec<BlockType>,
    /// Blocks on the way up, coarsest first.
    pub up_block_types: Vec<BlockType>,
    /// The NUMBER of attention heads; diffusers keeps the wrong name for the sake of old configs.
    pub attention_head_dim: PerBlock,
    /// Width of the text states.
    pub cross_attention_dim: usize,
    /// Transformer blocks per attention.
    pub transformer_layers_per_block: PerBlock,
    /// Whether the transformers' outer projections are linear layers or 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the norms in the residual blocks and before `conv_out`; the transformers' norms have 1e-6.
    pub norm_eps: f64,
    /// Padding of the strided convolutions.
    pub downsample_padding: usize,
    /// Cosines before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f64,
}

impl Default for UNetConfig {
    fn default() -> Self {
        use BlockType::{CrossAttention, Plain};
        Self {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: 2,
            down_block_types: vec![CrossAttention, CrossAttention, CrossAttention, Plain],
            up_block_types: vec![Plain, CrossAttention, CrossAttention, CrossAttention],
            attention_head_dim: PerBlock::One(8),
            cross_attention_dim: 1280,
            transformer_layers_per_block: PerBlock::One(1),
            use_linear_projection: false,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            downsample_padding: 1,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
        }
    }
}

const NAME: &str = "unet";

impl UNetConfig {
    /// Reads and checks a `unet/config.json`.
    ///
    /// # Errors
    ///
    /// On wrong types, settings that are not implemented, and numbers that do not fit together.
    pub fn from_json(raw: &Value) -> Result<Self, ConfigError> {
        refuse_unsupported(raw)?;
        let config: Self = config::parse(NAME, raw)?;
        config.check()?;
        Ok(config)
    }

    /// Width of the time embedding.
    pub(crate) fn time_width(&self) -> usize {
        4 * self.block_out_channels[0]
    }

    fn check(&self) -> Result<(), ConfigError> {
        let blocks = self.block_out_channels.len();
        ensure(NAME, blocks > 0, || "block_out_channels is empty".to_owned())?;
        ensure(NAME, self.down_block_types.len() == blocks && self.up_block_types.len() == blocks, || {
            format!("{blocks} block_out_channels need as many down_block_types and up_block_types")
        })?;
        for (key, value) in [
            ("attention_head_dim", &self.attention_head_dim),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
        ] {
            ensure(NAME, value.fits(blocks), || format!("`{key}` has not one value per block"))?;
        }
        for (i, channels) in self.block_out_channels.iter().enumerate() {
            let heads = self.attention_head_dim.at(i);
            ensure(NAME, channels.is_multiple_of(self.norm_num_groups), || {
                format!("{channels} channels do not divide into {} groups", self.norm_num_groups)
            })?;
            ensure(NAME, channels.is_multiple_of(heads), || {
                format!("{channels} channels do not divide into {heads} heads (attention_head_dim counts heads)")
            })?;
        }
        Ok(())
    }
}

/// Settings that diffusers offers and no SD 1.x or 2.x model has.
fn refuse_unsupported(raw: &Value) -> Result<(), ConfigError> {
    let no = [json!(false)];
    let zero = [json!(0.0)];
    let one = [json!(1.0)];
    let three = [json!(3)];
    config::refuse_unsupported(
        NAME,
        raw,
        &[
            ("act_fn", &["silu".into(), "swish".into()]),
            ("mid_block_type", &["UNetMidBlock2DCrossAttn".into()]),
            ("center_input_sample", &no),
            ("only_cross_attention", &no),
            ("dual_cross_attention", &no),
            ("mid_block_only_cross_attention", &no),
            ("resnet_skip_time_act", &no),
            ("dropout", &zero),
            ("mid_block_scale_factor", &one),
            ("resnet_out_scale_factor", &one),
            ("conv_in_kernel", &three),
            ("conv_out_kernel", &three),
            ("resnet_time_scale_shift", &["default".into()]),
            ("time_embedding_type", &["positional".into()]),
            ("attention_type", &["default".into()]),
            ("num_attention_heads", &[]),
            ("class_embed_type", &[]),
            ("num_class_embeds", &[]),
            ("addition_embed_type", &[]),
            ("encoder_hid_dim", &[]),
            ("encoder_hid_dim_type", &[]),
            ("time_embedding_dim", &[]),
            ("time_embedding_act_fn", &[]),
            ("timestep_post_act", &[]),
            ("time_cond_proj_dim", &[]),
            ("cross_attention_norm", &[]),
            ("reverse_transformer_layers_per_block", &[]),
        ],
    )
}
