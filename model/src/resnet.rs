//! The residual block and the two changes of size that UNet and autoencoder share.

use crate::layers::{Conv2d, ConvShape, GroupNorm, Linear};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

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

    /// `x`: `[batch, inputs, height, width]`; `time`: `[batch, time_width]`, SiLU already applied (it is the same
    /// for every block) → `[batch, outputs, height, width]`
    pub(crate) fn forward(&self, x: Tensor<4>, time: Option<Tensor<2>>) -> Tensor<4> {
        let mut hidden = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        if let (Some(projection), Some(time)) = (&self.time_emb_proj, time) {
            let shift = projection.forward(time);
            let [batch, channels] = shift.dims();
            hidden = hidden + shift.reshape([batch, channels, 1, 1]);
        }
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
    /// Pads right and below only, as the autoencoder does.
    asymmetric: bool,
}

impl Downsample {
    /// `padding`: on all sides; 0 means one row below and one column to the right.
    pub(crate) fn new(weights: &Weights, channels: usize, padding: usize) -> Self {
        let shape = ConvShape { inputs: channels, outputs: channels, kernel: 3, stride: 2, padding };
        Self { conv: Conv2d::new(&weights.at("conv"), shape), asymmetric: padding == 0 }
    }

    /// `[batch, channels, height, width]` → half the height and width, rounded up in the UNet, down in the
    /// autoencoder.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(if self.asymmetric { x.pad((0, 1, 0, 1), 0.0) } else { x })
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

    /// `[batch, channels, height, width]` → `[batch, channels, size[0], size[1]]`
    pub(crate) fn forward(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size);
        self.conv.forward(interpolate(x, options))
    }
}
