//! For tests only (feature `emulation`): the operations, and a step of a small UNet, with the CUDA kernels of
//! `ballast-kernels` run by their emulation on the CPU.

use crate::Compute;
use crate::ops::{self, AttentionShape, GroupNormShape};
use crate::params::{ParamVisitor, visit};
use crate::rng::standard_normal;
use crate::unet::{UNet, UNetConfig};
use crate::weights::{Source, Weights};
use burn::module::{Module, Param};
use burn::tensor::{Gradients, Tensor};
use std::collections::BTreeMap;

pub use crate::ops::with_kernels;

/// [`ops::attention`]: `heads` heads, `causal` or not.
pub fn attention(inputs: [Tensor<3>; 3], heads: usize, causal: bool) -> Tensor<3> {
    let [query, key, value] = inputs;
    ops::attention(query, key, value, AttentionShape { heads, causal })
}

/// [`ops::group_norm`] of `x`, with `weight` and `bias`.
pub fn group_norm(x: Tensor<3>, parameters: [Tensor<1>; 2], groups: usize, silu: bool) -> Tensor<3> {
    let [weight, bias] = parameters;
    ops::group_norm(x, weight, bias, GroupNormShape { groups, eps: 1e-5, silu })
}

/// [`ops::layer_norm`] of `x`, with `weight` and `bias`.
pub fn layer_norm(x: Tensor<3>, parameters: [Tensor<1>; 2]) -> Tensor<3> {
    let [weight, bias] = parameters;
    ops::layer_norm(x, weight, bias, 1e-5)
}

/// [`ops::geglu`].
pub fn geglu(x: Tensor<3>) -> Tensor<3> {
    ops::geglu(x)
}

/// A UNet with random weights on the CPU, under autodiff.
pub fn unet(config: &UNetConfig) -> UNet {
    struct Random;
    impl Source for Random {
        fn fetch(&self, path: &str, shape: &[usize]) -> Option<Vec<f32>> {
            let fan_in: usize = shape[1..].iter().product();
            let (scale, shift) = match shape.len() {
                1 => (0.2, if path.contains("norm") && path.ends_with("weight") { 1.0 } else { 0.0 }),
                _ => ((fan_in as f32).powf(-0.5), 0.0),
            };
            let values = standard_normal(5, "emulation", path, shape.iter().product());
            Some(values.into_iter().map(|value| value * scale + shift).collect())
        }
    }
    UNet::new(&Weights::new(&Random, &crate::cpu_device()), config).train()
}

/// Loss and gradients of a training step.
pub struct Step {
    /// The mean square of the error.
    pub loss: f32,
    /// The gradient of every parameter by name.
    pub gradients: BTreeMap<String, Vec<f32>>,
}

/// A forward and a backward pass: the mean square between the prediction for `latents` and `target`.
pub fn step(unet: &UNet, latents: Tensor<4>, target: Tensor<4>, text: Tensor<3>, compute: Compute) -> Step {
    let mut unet = unet.clone();
    unet.compute_in(compute);
    let timesteps: Vec<f32> = (0..latents.dims()[0]).map(|sample| 100.0 + 300.0 * sample as f32).collect();
    let predicted = unet.forward(latents, &timesteps, text);
    let error = predicted - target;
    let loss = error.clone().mul(error).mean();
    let gradients = collect(&unet, &loss.backward());
    Step { loss: loss.into_scalar::<f32>(), gradients }
}

fn collect(unet: &UNet, gradients: &Gradients) -> BTreeMap<String, Vec<f32>> {
    struct Collect<'a>(&'a Gradients, BTreeMap<String, Vec<f32>>);
    impl ParamVisitor for Collect<'_> {
        fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
            let gradient = param.val().grad(self.0).expect("every parameter has a gradient");
            self.1.insert(path, gradient.try_into_vec_as::<f32>().expect("a tensor of the CPU"));
        }
    }
    visit(unet, Collect(gradients, BTreeMap::new())).1
}
