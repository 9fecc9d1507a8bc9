//! The autoencoder: pictures to latents (eight times smaller, four channels) and back.

mod blocks;
pub(crate) mod keys;

use crate::config::{self, ConfigError, ensure};
use crate::layers::{Conv2d, ConvShape, from_rows, to_rows};
use crate::weights::Weights;
use blocks::{Decoder, Encoder};
use burn::module::Module;
use burn::tensor::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

/// The keys of `vae/config.json` that shape the computation; defaults are those of diffusers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct VaeConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of a decoded picture.
    pub out_channels: usize,
    /// Channels at each resolution, finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per resolution in the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Brings the latents to about unit variance before diffusion (arXiv:2112.10752, §4.3.2 and §D.1).
    pub scaling_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
}

impl Default for VaeConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            block_out_channels: vec![64],
            layers_per_block: 1,
            latent_channels: 4,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl VaeConfig {
    /// Reads and checks a `vae/config.json`.
    ///
    /// # Errors
    ///
    /// On wrong types, settings that are not implemented, and numbers that do not fit together.
    pub fn from_json(raw: &Value) -> Result<Self, ConfigError> {
        const NAME: &str = "vae";
        config::refuse_unsupported(
            NAME,
            raw,
            &[
                ("act_fn", &["silu".into(), "swish".into()]),
                ("mid_block_add_attention", &[true.into()]),
                ("shift_factor", &[json!(0.0)]),
                ("latents_mean", &[]),
                ("latents_std", &[]),
            ],
        )?;
        for (key, supported) in [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")] {
            let mut types = raw.get(key).and_then(Value::as_array).into_iter().flatten();
            if let Some(value) = types.find(|v| *v != supported) {
                let (key, value) = (key.to_owned(), value.to_string());
                return Err(ConfigError::Unsupported { component: NAME, key, value, supported: supported.to_owned() });
            }
        }
        let config: Self = config::parse(NAME, raw)?;
        ensure(NAME, !config.block_out_channels.is_empty(), || "block_out_channels is empty".to_owned())?;
        for channels in &config.block_out_channels {
            ensure(NAME, channels.is_multiple_of(config.norm_num_groups), || {
                format!("{channels} channels do not divide into {} groups", config.norm_num_groups)
            })?;
        }
        Ok(config)
    }

    /// Pixels per latent in each direction (8).
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// diffusers' `AutoencoderKL`.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    scaling_factor: f64,
    factor: usize,
    latent_channels: usize,
}

impl AutoencoderKl {
    pub(crate) fn new(weights: &Weights, config: &VaeConfig) -> Self {
        let latent = config.latent_channels;
        let conv = |name, channels| Conv2d::new(&weights.at(name), ConvShape::pointwise(channels, channels));
        Self {
            encoder: Encoder::new(&weights.at("encoder"), config),
            decoder: Decoder::new(&weights.at("decoder"), config),
            quant_conv: config.use_quant_conv.then(|| conv("quant_conv", 2 * latent)),
            post_quant_conv: config.use_post_quant_conv.then(|| conv("post_quant_conv", latent)),
            scaling_factor: config.scaling_factor,
            factor: config.factor(),
            latent_channels: latent,
        }
    }

    /// Encodes pictures to a distribution over latents.
    ///
    /// `images`: `[batch, 3, height, width]` in -1..=1 → [`Posterior`] of `[batch, 4, height/8, width/8]`
    pub fn encode(&self, images: Tensor<4>) -> Posterior {
        let mut moments = self.encoder.forward(to_rows(images));
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(moments);
        }
        let mut halves = from_rows(moments).chunk(2, 1).into_iter();
        let mean = halves.next().expect("two halves");
        let logvar = halves.next().expect("two halves").clamp(-30.0, 20.0);
        Posterior { mean, logvar, scaling_factor: self.scaling_factor }
    }

    /// Decodes latents as the UNet knows them (scaled) to pictures.
    ///
    /// `latents`: `[batch, 4, height/8, width/8]` → `[batch, 3, height, width]`, about -1..=1
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut latents = to_rows(latents / self.scaling_factor);
        if let Some(conv) = &self.post_quant_conv {
            latents = conv.forward(latents);
        }
        from_rows(self.decoder.forward(latents))
    }

    /// Pixels per latent in each direction (8).
    pub fn factor(&self) -> usize {
        self.factor
    }

    /// Channels of the latents (4).
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// What the encoder's latents are multiplied by (0.18215).
    pub fn scaling_factor(&self) -> f64 {
        self.scaling_factor
    }
}

/// What the encoder says about latents: a diagonal Gaussian, not yet scaled.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// `[batch, 4, height/8, width/8]`
    pub mean: Tensor<4>,
    /// The logarithm of the variance, in -30..=20, shaped as `mean`.
    pub logvar: Tensor<4>,
    scaling_factor: f64,
}

impl Posterior {
    /// Draws latents with the given standard normal `noise` and scales them for the UNet.
    ///
    /// All shapes `[batch, 4, height/8, width/8]`.
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        let deviation = (self.logvar.clone() * 0.5).exp();
        (self.mean.clone() + deviation * noise) * self.scaling_factor
    }

    /// The mean, scaled for the UNet: `[batch, 4, height/8, width/8]`.
    pub fn mode(&self) -> Tensor<4> {
        self.mean.clone() * self.scaling_factor
    }
}
