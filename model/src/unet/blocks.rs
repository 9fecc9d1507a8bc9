//! The blocks of the UNet: one resolution on the way down or up, and the middle.

use super::config::{BlockType, UNetConfig};
use super::transformer::{Transformer2d, TransformerShape};
use crate::resnet::{Downsample, ResnetBlock, ResnetShape, Upsample};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::Tensor;

/// One resolution: residual blocks, each followed by a transformer where the type says so, and a change of size.
#[derive(Module, Debug)]
pub(crate) struct Block {
    resnets: Vec<ResnetBlock>,
    /// As many as `resnets`, or none.
    attentions: Vec<Transformer2d>,
    /// One, or none; always none on the way up.
    downsamplers: Vec<Downsample>,
    /// One, or none; always none on the way down.
    upsamplers: Vec<Upsample>,
}

/// What tells one [`Block`] from another.
pub(crate) struct BlockShape {
    /// Input channels of each residual block, skip connection included.
    inputs: Vec<usize>,
    outputs: usize,
    /// `None`: no attention.
    attention: Option<TransformerShape>,
    resize: Resize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Resize {
    Down,
    Up,
    Keep,
}

impl BlockShape {
    /// Block `index` on the way down, counted from the finest resolution.
    pub(crate) fn down(config: &UNetConfig, index: usize) -> Self {
        let channels = &config.block_out_channels;
        let (inputs, outputs) = (channels[index.saturating_sub(1)], channels[index]);
        let last = index + 1 == channels.len();
        Self {
            inputs: (0..config.layers_per_block).map(|j| if j == 0 { inputs } else { outputs }).collect(),
            outputs,
            attention: (config.down_block_types[index] == BlockType::CrossAttention)
                .then(|| TransformerShape::new(config, index)),
            resize: if last { Resize::Keep } else { Resize::Down },
        }
    }

    /// Block `index` on the way up, counted from the coarsest resolution.
    pub(crate) fn up(config: &UNetConfig, index: usize) -> Self {
        let blocks = config.block_out_channels.len();
        let level = blocks - 1 - index; // counted from the finest
        let at = |level: usize| config.block_out_channels[level];
        let (previous, outputs, finer) = (at((level + 1).min(blocks - 1)), at(level), at(level.saturating_sub(1)));
        let count = config.layers_per_block + 1;
        let inputs = (0..count).map(|j| {
            let hidden = if j == 0 { previous } else { outputs };
            let skip = if j + 1 == count { finer } else { outputs };
            hidden + skip
        });
        Self {
            inputs: inputs.collect(),
            outputs,
            attention: (config.up_block_types[index] == BlockType::CrossAttention)
                .then(|| TransformerShape::new(config, level)),
            resize: if level == 0 { Resize::Keep } else { Resize::Up },
        }
    }
}

fn resnet(weights: &Weights, config: &UNetConfig, inputs: usize, outputs: usize) -> ResnetBlock {
    let (groups, eps) = (config.norm_num_groups, config.norm_eps);
    ResnetBlock::new(weights, ResnetShape { inputs, outputs, time_width: Some(config.time_width()), groups, eps })
}

impl Block {
    pub(crate) fn new(weights: &Weights, config: &UNetConfig, shape: &BlockShape) -> Self {
        let (resnets, attentions) = (weights.at("resnets"), weights.at("attentions"));
        let count = if shape.attention.is_some() { shape.inputs.len() } else { 0 };
        let downsample = || Downsample::new(&weights.at("downsamplers.0"), shape.outputs, config.downsample_padding);
        let upsample = || Upsample::new(&weights.at("upsamplers.0"), shape.outputs);
        Self {
            resnets: shape
                .inputs
                .iter()
                .enumerate()
                .map(|(j, inputs)| resnet(&resnets.at(j), config, *inputs, shape.outputs))
                .collect(),
            attentions: (0..count)
                .filter_map(|j| shape.attention.map(|attention| Transformer2d::new(&attentions.at(j), attention)))
                .collect(),
            downsamplers: (shape.resize == Resize::Down).then(downsample).into_iter().collect(),
            upsamplers: (shape.resize == Resize::Up).then(upsample).into_iter().collect(),
        }
    }

    /// Residual blocks, each with its transformer where the type has them.
    pub(crate) fn layers(&self) -> usize {
        self.resnets.len()
    }

    /// The residual block `index` and its transformer.
    ///
    /// `x`: `[batch, height, width, inputs]`, skip connection included → `[batch, height, width, outputs]`
    pub(crate) fn layer(&self, index: usize, x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let x = self.resnets[index].forward(x, Some(time.clone()));
        match self.attentions.get(index) {
            Some(attention) => attention.forward(x, text),
            None => x,
        }
    }

    pub(crate) fn downsamplers(&self) -> &[Downsample] {
        &self.downsamplers
    }

    pub(crate) fn upsamplers(&self) -> &[Upsample] {
        &self.upsamplers
    }
}

/// The coarsest resolution: residual block, transformer, residual block.
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2d>,
}

impl MidBlock {
    pub(crate) fn new(weights: &Weights, config: &UNetConfig) -> Self {
        let last = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[last];
        let resnets = weights.at("resnets");
        let attention = TransformerShape::new(config, last);
        Self {
            resnets: (0..2).map(|i| resnet(&resnets.at(i), config, channels, channels)).collect(),
            attentions: vec![Transformer2d::new(&weights.at("attentions.0"), attention)],
        }
    }

    /// `[batch, height, width, channels]` → the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let x = self.resnets[0].forward(x, Some(time.clone()));
        let x = self.attentions[0].forward(x, text);
        self.resnets[1].forward(x, Some(time.clone()))
    }
}
