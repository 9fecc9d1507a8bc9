//! The small layers everything is made of, with parameters named and laid out as in PyTorch.

use crate::weights::Weights;
use burn::module::{Module, Param};
use burn::tensor::module::{conv2d, linear};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Int, Tensor, activation};

/// `y = x Wᵀ + b` with `weight: [outputs, inputs]`.
#[derive(Module, Debug)]
pub(crate) struct Linear {
    weight: Param<Tensor<2>>,
    bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    pub(crate) fn new(weights: &Weights, inputs: usize, outputs: usize, bias: bool) -> Self {
        Self {
            weight: weights.param("weight", [outputs, inputs]),
            bias: bias.then(|| weights.param("bias", [outputs])),
        }
    }

    /// `[.., inputs]` → `[.., outputs]`
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let weight = as_dtype(self.weight.val(), dtype).transpose();
        linear(x, weight, self.bias.as_ref().map(|b| as_dtype(b.val(), dtype)))
    }
}

/// Convolution with `weight: [outputs, inputs, kernel, kernel]`.
#[derive(Module, Debug)]
pub(crate) struct Conv2d {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
    stride: usize,
    padding: usize,
}

/// Sizes of a [`Conv2d`].
#[derive(Clone, Copy)]
pub(crate) struct ConvShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl ConvShape {
    /// 3x3, stride 1, padding 1: keeps height and width.
    pub(crate) fn same3(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, kernel: 3, stride: 1, padding: 1 }
    }

    /// 1x1.
    pub(crate) fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, kernel: 1, stride: 1, padding: 0 }
    }
}

impl Conv2d {
    pub(crate) fn new(weights: &Weights, shape: ConvShape) -> Self {
        let ConvShape { inputs, outputs, kernel, stride, padding } = shape;
        Self {
            weight: weights.param("weight", [outputs, inputs, kernel, kernel]),
            bias: weights.param("bias", [outputs]),
            stride,
            padding,
        }
    }

    /// `[batch, inputs, height, width]` → `[batch, outputs, height', width']`
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1, 1], 1);
        conv2d(x, as_dtype(self.weight.val(), dtype), Some(as_dtype(self.bias.val(), dtype)), options)
    }

    /// The same as [`forward`](Self::forward) of a 1x1 convolution, on pixels as rows.
    ///
    /// `[batch, pixels, inputs]` → `[batch, pixels, outputs]`
    pub(crate) fn forward_rows(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let [outputs, inputs, _, _] = self.weight.dims();
        let weight = as_dtype(self.weight.val(), dtype).reshape([outputs, inputs]).transpose();
        linear(x, weight, Some(as_dtype(self.bias.val(), dtype)))
    }
}

/// Normalises over groups of channels; statistics in f32 whatever the input is.
#[derive(Module, Debug)]
pub(crate) struct GroupNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn new(weights: &Weights, groups: usize, channels: usize, eps: f64) -> Self {
        Self { weight: weights.param("weight", [channels]), bias: weights.param("bias", [channels]), groups, eps }
    }

    /// `[batch, channels, height, width]` → the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let [batch, channels, height, width] = x.dims();
        let x = as_dtype(x, DType::F32).reshape([batch, self.groups, channels / self.groups * height * width]);
        let mean = x.clone().mean_dim(2);
        let centred = x - mean;
        let variance = centred.clone().square().mean_dim(2);
        let normal = centred / (variance + self.eps).sqrt();
        let normal = normal.reshape([batch, channels, height, width]);
        let y = normal * self.weight.val().reshape([1, channels, 1, 1]) + self.bias.val().reshape([1, channels, 1, 1]);
        as_dtype(y, dtype)
    }

    /// [`forward`](Self::forward), then SiLU.
    pub(crate) fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        activation::silu(self.forward(x))
    }
}

/// Normalises over the last dimension; statistics in f32 whatever the input is.
#[derive(Module, Debug)]
pub(crate) struct LayerNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(weights: &Weights, width: usize, eps: f64) -> Self {
        Self { weight: weights.param("weight", [width]), bias: weights.param("bias", [width]), eps }
    }

    /// `[batch, rows, width]` → the same shape.
    pub(crate) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let x = as_dtype(x, DType::F32);
        let mean = x.clone().mean_dim(2);
        let centred = x - mean;
        let variance = centred.clone().square().mean_dim(2);
        let normal = centred / (variance + self.eps).sqrt();
        as_dtype(normal * self.weight.val().unsqueeze() + self.bias.val().unsqueeze(), dtype)
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub(crate) struct Embedding {
    weight: Param<Tensor<2>>,
}

impl Embedding {
    pub(crate) fn new(weights: &Weights, rows: usize, width: usize) -> Self {
        Self { weight: weights.param("weight", [rows, width]) }
    }

    /// `[batch, length]` → `[batch, length, width]`
    pub(crate) fn forward(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        burn::tensor::module::embedding(self.weight.val(), ids)
    }

    /// The first `length` rows: `[1, length, width]`.
    pub(crate) fn first(&self, length: usize) -> Tensor<3> {
        let width = self.weight.dims()[1];
        self.weight.val().slice([0..length, 0..width]).unsqueeze()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.weight.lazy_shape()[0]
    }
}

/// Casts where the type differs: a cast that changes nothing would still cost a node of the autodiff graph.
pub(crate) fn as_dtype<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
