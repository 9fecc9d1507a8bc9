//! diffusers' `Transformer2DModel`: pixels as tokens that attend to each other and to the text.

use super::config::UNetConfig;
use crate::layers::{Conv2d, ConvShape, GroupNorm, LayerNorm, Linear};
use crate::ops::{self, AttentionShape, attention};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::Tensor;

/// Sizes of a [`Transformer2d`].
#[derive(Clone, Copy)]
pub(crate) struct TransformerShape {
    channels: usize,
    heads: usize,
    layers: usize,
    text_width: usize,
    groups: usize,
    linear_projection: bool,
}

impl TransformerShape {
    /// For the blocks of resolution `level`, counted from the finest.
    pub(crate) fn new(config: &UNetConfig, level: usize) -> Self {
        Self {
            channels: config.block_out_channels[level],
            heads: config.attention_head_dim.at(level),
            layers: config.transformer_layers_per_block.at(level),
            text_width: config.cross_attention_dim,
            groups: config.norm_num_groups,
            linear_projection: config.use_linear_projection,
        }
    }
}

#[derive(Module, Debug)]
pub(crate) struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2d {
    pub(crate) fn new(weights: &Weights, shape: TransformerShape) -> Self {
        let blocks = weights.at("transformer_blocks");
        Self {
            norm: GroupNorm::new(&weights.at("norm"), shape.groups, shape.channels, 1e-6),
            proj_in: Projection::new(&weights.at("proj_in"), shape),
            transformer_blocks: (0..shape.layers).map(|i| TransformerBlock::new(&blocks.at(i), shape)).collect(),
            proj_out: Projection::new(&weights.at("proj_out"), shape),
        }
    }

    /// `x`: `[batch, height, width, channels]`; `text`: `[batch, length, text_width]` → the shape of `x`
    pub(crate) fn forward(&self, x: Tensor<4>, text: &Tensor<3>) -> Tensor<4> {
        let dims @ [batch, height, width, channels] = x.dims();
        let rows = self.norm.forward(x.clone()).reshape([batch, height * width, channels]);
        let mut rows = self.proj_in.forward(rows); // [batch, pixels, channels]
        for block in &self.transformer_blocks {
            rows = block.forward(rows, text);
        }
        x + self.proj_out.forward(rows).reshape(dims)
    }
}

/// A projection of every pixel. SD 1.x stores it as a 1x1 convolution, SD 2.x as a linear layer: the same sum.
#[derive(Module, Debug)]
enum Projection {
    Convolution(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(weights: &Weights, shape: TransformerShape) -> Self {
        let channels = shape.channels;
        if shape.linear_projection {
            Self::Linear(Linear::new(weights, channels, channels, true))
        } else {
            Self::Convolution(Conv2d::new(weights, ConvShape::pointwise(channels, channels)))
        }
    }

    fn forward(&self, rows: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Convolution(conv) => conv.forward_rows(rows),
            Self::Linear(linear) => linear.forward(rows),
        }
    }
}

#[derive(Module, Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    fn new(weights: &Weights, shape: TransformerShape) -> Self {
        let channels = shape.channels;
        let norm = |name| LayerNorm::new(&weights.at(name), channels, 1e-5);
        Self {
            norm1: norm("norm1"),
            attn1: Attention::new(&weights.at("attn1"), channels, shape.heads, channels),
            norm2: norm("norm2"),
            attn2: Attention::new(&weights.at("attn2"), channels, shape.heads, shape.text_width),
            norm3: norm("norm3"),
            ff: FeedForward::new(&weights.at("ff"), channels),
        }
    }

    fn forward(&self, x: Tensor<3>, text: &Tensor<3>) -> Tensor<3> {
        let normal = self.norm1.forward(x.clone());
        let x = x + self.attn1.forward(normal.clone(), normal);
        let x = x.clone() + self.attn2.forward(self.norm2.forward(x), text.clone());
        x.clone() + self.ff.forward(self.norm3.forward(x))
    }
}

/// Attention whose keys and values come from `context`.
#[derive(Module, Debug)]
struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    heads: usize,
}

impl Attention {
    fn new(weights: &Weights, channels: usize, heads: usize, context_width: usize) -> Self {
        Self {
            to_q: Linear::new(&weights.at("to_q"), channels, channels, false),
            to_k: Linear::new(&weights.at("to_k"), context_width, channels, false),
            to_v: Linear::new(&weights.at("to_v"), context_width, channels, false),
            to_out: vec![Linear::new(&weights.at("to_out.0"), channels, channels, true)],
            heads,
        }
    }

    fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let query = self.to_q.forward(x);
        let key = self.to_k.forward(context.clone());
        let value = self.to_v.forward(context);
        let shape = AttentionShape { heads: self.heads, causal: false };
        self.to_out[0].forward(attention(query, key, value, shape))
    }
}

/// GEGLU (arXiv:2002.05202), then a linear layer. diffusers calls them `net.0` and `net.2`; `net.1` is a dropout.
#[derive(Module, Debug)]
struct FeedForward {
    net: (Geglu, NoDropout, Linear),
}

#[derive(Module, Debug)]
struct Geglu {
    proj: Linear,
}

/// Holds the place of a dropout in the module's names.
#[derive(Module, Debug)]
struct NoDropout;

impl FeedForward {
    fn new(weights: &Weights, channels: usize) -> Self {
        let proj = Linear::new(&weights.at("net.0.proj"), channels, 8 * channels, true);
        Self { net: (Geglu { proj }, NoDropout, Linear::new(&weights.at("net.2"), 4 * channels, channels, true)) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.net.2.forward(ops::geglu(self.net.0.proj.forward(x)))
    }
}
