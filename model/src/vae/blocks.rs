//! Encoder and decoder of the autoencoder.

use super::VaeConfig;
use crate::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use crate::ops::{AttentionShape, attention};
use crate::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::Tensor;

/// Epsilon of every norm of the autoencoder.
const EPS: f64 = 1e-6;

fn resnet(weights: &Weights, config: &VaeConfig, inputs: usize, outputs: usize) -> ResnetBlock {
    let groups = config.norm_num_groups;
    ResnetBlock::new(weights, ResnetShape { inputs, outputs, time_width: None, groups, eps: EPS })
}

#[derive(Module, Debug)]
pub(crate) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<EncoderBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn new(weights: &Weights, config: &VaeConfig) -> Self {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let down = weights.at("down_blocks");
        Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), ConvShape::same3(config.in_channels, channels[0])),
            down_blocks: (0..channels.len()).map(|i| EncoderBlock::new(&down.at(i), config, i)).collect(),
            mid_block: MidBlock::new(&weights.at("mid_block"), config, last),
            conv_norm_out: GroupNorm::new(&weights.at("conv_norm_out"), config.norm_num_groups, last, EPS),
            conv_out: Conv2d::new(&weights.at("conv_out"), ConvShape::same3(last, 2 * config.latent_channels)),
        }
    }

    /// `[batch, height, width, 3]` → `[batch, height/8, width/8, 8]`
    pub(crate) fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let mut hidden = self.conv_in.forward(images);
        for block in &self.down_blocks {
            hidden = block.forward(hidden);
        }
        hidden = self.mid_block.forward(hidden);
        self.conv_out.forward(self.conv_norm_out.forward_silu(hidden))
    }
}

#[derive(Module, Debug)]
struct EncoderBlock {
    resnets: Vec<ResnetBlock>,
    /// One, or none at the coarsest resolution.
    downsamplers: Vec<Downsample>,
}

impl EncoderBlock {
    fn new(weights: &Weights, config: &VaeConfig, index: usize) -> Self {
        let channels = &config.block_out_channels;
        let (inputs, outputs) = (channels[index.saturating_sub(1)], channels[index]);
        let resnets = weights.at("resnets");
        let halves = index + 1 < channels.len();
        Self {
            resnets: (0..config.layers_per_block)
                .map(|j| resnet(&resnets.at(j), config, if j == 0 { inputs } else { outputs }, outputs))
                .collect(),
            downsamplers: halves
                .then(|| Downsample::new(&weights.at("downsamplers").at(0), outputs, 0))
                .into_iter()
                .collect(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
        self.downsamplers.iter().fold(x, |x, down| down.forward(x))
    }
}

#[derive(Module, Debug)]
pub(crate) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<DecoderBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn new(weights: &Weights, config: &VaeConfig) -> Self {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let up = weights.at("up_blocks");
        Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), ConvShape::same3(config.latent_channels, last)),
            mid_block: MidBlock::new(&weights.at("mid_block"), config, last),
            up_blocks: (0..channels.len()).map(|i| DecoderBlock::new(&up.at(i), config, i)).collect(),
            conv_norm_out: GroupNorm::new(&weights.at("conv_norm_out"), config.norm_num_groups, channels[0], EPS),
            conv_out: Conv2d::new(&weights.at("conv_out"), ConvShape::same3(channels[0], config.out_channels)),
        }
    }

    /// `[batch, height/8, width/8, 4]` → `[batch, height, width, 3]`
    pub(crate) fn forward(&self, latents: Tensor<4>) -> Tensor<4> {
        let mut hidden = self.mid_block.forward(self.conv_in.forward(latents));
        for block in &self.up_blocks {
            hidden = block.forward(hidden);
        }
        self.conv_out.forward(self.conv_norm_out.forward_silu(hidden))
    }
}

#[derive(Module, Debug)]
struct DecoderBlock {
    resnets: Vec<ResnetBlock>,
    /// One, or none at the finest resolution.
    upsamplers: Vec<Upsample>,
}

impl DecoderBlock {
    /// `index` counts from the coarsest resolution.
    fn new(weights: &Weights, config: &VaeConfig, index: usize) -> Self {
        let reversed: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (inputs, outputs) = (reversed[index.saturating_sub(1)], reversed[index]);
        let resnets = weights.at("resnets");
        let doubles = index + 1 < reversed.len();
        Self {
            resnets: (0..config.layers_per_block + 1)
                .map(|j| resnet(&resnets.at(j), config, if j == 0 { inputs } else { outputs }, outputs))
                .collect(),
            upsamplers: doubles.then(|| Upsample::new(&weights.at("upsamplers").at(0), outputs)).into_iter().collect(),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets.iter().fold(x, |x, resnet| resnet.forward(x, None));
        self.upsamplers.iter().fold(x, |x, up| {
            let [_, height, width, _] = x.dims();
            up.forward(x, [2 * height, 2 * width])
        })
    }
}

/// Two residual blocks with an attention block between them.
#[derive(Module, Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<PixelAttention>,
}

impl MidBlock {
    fn new(weights: &Weights, config: &VaeConfig, channels: usize) -> Self {
        let resnets = weights.at("resnets");
        Self {
            resnets: (0..2).map(|i| resnet(&resnets.at(i), config, channels, channels)).collect(),
            attentions: vec![PixelAttention::new(&weights.at("attentions").at(0), config, channels)],
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let x = self.resnets[0].forward(x, None);
        let x = self.attentions[0].forward(x);
        self.resnets[1].forward(x, None)
    }
}

/// Self-attention over pixels with one head.
#[derive(Module, Debug)]
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
}

impl PixelAttention {
    fn new(weights: &Weights, config: &VaeConfig, channels: usize) -> Self {
        let linear = |name| Linear::new(&weights.at(name), channels, channels, true);
        Self {
            group_norm: GroupNorm::new(&weights.at("group_norm"), config.norm_num_groups, channels, EPS),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: vec![linear("to_out.0")],
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let dims @ [batch, height, width, channels] = x.dims();
        let rows = self.group_norm.forward(x.clone()).reshape([batch, height * width, channels]);
        let query = self.to_q.forward(rows.clone()); // [batch, pixels, channels]
        let key = self.to_k.forward(rows.clone());
        let value = self.to_v.forward(rows);
        let mixed = attention(query, key, value, AttentionShape { heads: 1, causal: false });
        x + self.to_out[0].forward(mixed).reshape(dims)
    }
}
