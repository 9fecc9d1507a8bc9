//! The residual block and the two changes of size that UNet and autoencoder share.

use crate::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use crate::ops::{self, Geometry};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::Tensor;

/// Sizes of a [`ResnetBlock`].
#[derive(Clone, Copy)]
pub(crate) struct ResnetShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// Width of the time embedding; `None` in the autoencoder.
    pub(crate) time_width: Option<usize>,
    pub(crate) groups: usize,
    pub(crate) eps: f64,
}

/// diffusers' `ResnetBlock2D`: norm, SiLU, convolution, twice, with the time embedding added in between.
#[derive(Module, Debug)]
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    pub(crate) fn new(weights: &Weights, shape: ResnetShape) -> Self {
        let ResnetShape { inputs, outputs, time_width, groups, eps } = shape;
        Self {
            norm1: GroupNorm::new(&weights.at("norm1"), groups, inputs, eps),
            conv1: Conv2d::new(&weights.at("conv1"), ConvShape::same3(inputs, outputs)),
            time_emb_proj: time_width.map(|width| Linear::new(&weights.at("time_emb_proj"), width, outputs, true)),
            norm2: GroupNorm::new(&weights.at("norm2"), groups, outputs, eps),
            conv2: Conv2d::new(&weights.at("conv2"), ConvShape::same3(outputs, outputs)),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(&weights.at("conv_shortcut"), ConvShape::pointwise(inputs, outputs))),
        }
    }

    /// `x`: `[batch, height, width, inputs]`; `time`: `[batch, time_width]`, SiLU already applied (it is the same
    /// for every block) → `[batch, height, width, outputs]`
    pub(crate) fn forward(&self, x: Tensor<4>, time: Option<Tensor<2>>) -> Tensor<4> {
        let hidden = self.norm1.forward_silu(x.clone());
        let hidden = match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => self.conv1.forward_shifted(hidden, projection.forward(time)),
            _ => self.conv1.forward(hidden),
        };
        let hidden = self.conv2.forward(self.norm2.forward_silu(hidden));
        match &self.conv_shortcut {
            Some(shortcut) => shortcut.forward(x) + hidden,
            None => x + hidden,
        }
    }
}

/// Halves height and width with a strided convolution.
#[derive(Module, Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// `padding`: on all sides; 0 means one row below and one column to the right, as in the autoencoder.
    pub(crate) fn new(weights: &Weights, channels: usize, padding: usize) -> Self {
        let geometry = Geometry { kernel: 3, stride: 2, before: padding, after: padding.max(1) };
        let shape = ConvShape { inputs: channels, outputs: channels, geometry };
        Self { conv: Conv2d::new(&weights.at("conv"), shape) }
    }

    /// `[batch, height, width, channels]` → half the height and width, rounded up in the UNet, down in the
    /// autoencoder.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }
}

/// Nearest-neighbour enlargement, then a convolution.
#[derive(Module, Debug)]
pub(crate) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub(crate) fn new(weights: &Weights, channels: usize) -> Self {
        Self { conv: Conv2d::new(&weights.at("conv"), ConvShape::same3(channels, channels)) }
    }

    /// `[batch, height, width, channels]` → `[batch, size[0], size[1], channels]`
    pub(crate) fn forward(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        self.conv.forward(ops::upsample(x, size))
    }
}
