//! The small layers everything is made of, with parameters named and laid out as in PyTorch.
//!
//! A layer computes in the number format of its input. Operations are given the f32 parameters as they are, and round
//! them themselves: a cast in the autodiff graph would cost a node, and its gradient a copy.

use crate::ops::{self, Geometry, GroupNormShape};
use crate::weights::Weights;
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor};

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
        linear_of_rows(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }
}

fn linear_of_rows<const D: usize>(x: Tensor<D>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<D> {
    let [outputs, inputs] = weight.dims();
    let mut dims = x.dims();
    let y = ops::linear(x.reshape([-1, inputs as i64]), weight, bias); // [rows, outputs]
    dims[D - 1] = outputs;
    y.reshape(dims)
}

/// Convolution with `weight: [outputs, inputs, kernel, kernel]`, over `[batch, height, width, channels]`.
#[derive(Module, Debug)]
pub(crate) struct Conv2d {
    weight: Param<Tensor<4>>,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    geometry: Geometry,
}

/// Sizes of a [`Conv2d`].
#[derive(Clone, Copy)]
pub(crate) struct ConvShape {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) geometry: Geometry,
}

impl ConvShape {
    /// 3x3, stride 1, padding 1: keeps height and width.
    pub(crate) fn same3(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, geometry: Geometry { kernel: 3, stride: 1, before: 1, after: 1 } }
    }

    /// 1x1.
    pub(crate) fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, geometry: Geometry { kernel: 1, stride: 1, before: 0, after: 0 } }
    }
}

impl Conv2d {
    pub(crate) fn new(weights: &Weights, shape: ConvShape) -> Self {
        let ConvShape { inputs, outputs, geometry } = shape;
        Self {
            weight: weights.param("weight", [outputs, inputs, geometry.kernel, geometry.kernel]),
            bias: weights.param("bias", [outputs]),
            geometry,
        }
    }

    /// `[batch, height, width, inputs]` → `[batch, height', width', outputs]`
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        if self.geometry.kernel == 1 {
            return self.forward_rows(x);
        }
        ops::conv2d(x, self.weight.val(), self.bias.val().unsqueeze(), self.geometry)
    }

    /// [`forward`](Self::forward), with `shift` (`[batch, outputs]`) added to every pixel of its sample.
    pub(crate) fn forward_shifted(&self, x: Tensor<4>, shift: Tensor<2>) -> Tensor<4> {
        let bias = as_dtype(self.bias.val(), shift.dtype()).unsqueeze() + shift;
        ops::conv2d(x, self.weight.val(), bias, self.geometry)
    }

    /// A 1x1 convolution of pixels in any arrangement: `[.., inputs]` → `[.., outputs]`
    pub(crate) fn forward_rows<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [outputs, inputs, _, _] = self.weight.dims();
        linear_of_rows(x, self.weight.val().reshape([outputs, inputs]), Some(self.bias.val()))
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

    /// `[batch, height, width, channels]` → the same shape.
    pub(crate) fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalise(x, false)
    }

    /// [`forward`](Self::forward), then SiLU.
    pub(crate) fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalise(x, true)
    }

    fn normalise(&self, x: Tensor<4>, silu: bool) -> Tensor<4> {
        let dims @ [batch, height, width, channels] = x.dims();
        let shape = GroupNormShape { groups: self.groups, eps: self.eps, silu };
        let rows = x.reshape([batch, height * width, channels]);
        ops::group_norm(rows, self.weight.val(), self.bias.val(), shape).reshape(dims)
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
        ops::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
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
}

/// Casts where the type differs: a cast that changes nothing would still cost a node of the autodiff graph.
pub(crate) fn as_dtype<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// `[batch, channels, height, width]` → `[batch, height, width, channels]`
pub(crate) fn to_rows(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 2, 3, 1])
}

/// `[batch, height, width, channels]` → `[batch, channels, height, width]`
pub(crate) fn from_rows(x: Tensor<4>) -> Tensor<4> {
    x.permute([0, 3, 1, 2])
}
