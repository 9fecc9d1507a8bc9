//! Where parameters come from while a model is built: a checkpoint, a random generator, or nowhere (names only).
//!
//! A constructor asks its [`Weights`] for each parameter by name and shape. The same constructors therefore
//! load, initialise, and list the parameters of a model, and cannot disagree about them.

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Shape, Tensor, TensorData};

/// Gives the values of one parameter, or `None` for a parameter that stays without storage until it is used.
pub(crate) trait Source {
    /// `path` is the diffusers name of the parameter within its component.
    fn fetch(&self, path: &str, shape: &[usize]) -> Option<Vec<f32>>;
}

/// Gives nothing: for a model of which only the names and shapes are wanted.
pub(crate) struct NoValues;

impl Source for NoValues {
    fn fetch(&self, _: &str, _: &[usize]) -> Option<Vec<f32>> {
        None
    }
}

/// A [`Source`] together with the place in the module tree that a constructor stands at.
pub(crate) struct Weights<'a> {
    source: &'a dyn Source,
    device: &'a Device,
    prefix: String,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(source: &'a dyn Source, device: &'a Device) -> Self {
        Self { source, device, prefix: String::new() }
    }

    /// Steps into the submodule `name`.
    pub(crate) fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { source: self.source, device: self.device, prefix: self.path(&name.to_string()) }
    }

    /// Makes the trainable parameter `name` of this module.
    pub(crate) fn param<const D: usize>(&self, name: &str, shape: [usize; D]) -> Param<Tensor<D>> {
        match self.source.fetch(&self.path(name), &shape) {
            Some(values) => Param::from_data(TensorData::new(values, shape), self.device),
            None => Param::uninitialized(
                ParamId::new(),
                move |device, _| Tensor::zeros(shape, device),
                self.device.clone(),
                true,
                Shape::from(shape),
            ),
        }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}
