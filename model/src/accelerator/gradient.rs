//! The gradients of a model's tensors, brought together on the device.

use std::sync::Arc;

use burn::tensor::Tensor;

use super::device_vec::DeviceVec;
use super::layout::PaddedLayout;
use super::memory::Accelerator;
use crate::{FlatEntry, GradientSink};

/// A flat gradient while it is being filled: each parameter's is copied to its place, from `bf16` or `f32`, and given up.
pub struct DeviceGradient<A: Accelerator> {
    device: A,
    layout: Arc<PaddedLayout>,
    values: DeviceVec<A>,
}

impl<A: Accelerator> DeviceGradient<A> {
    /// Starts with zeros.
    pub(super) fn zeros(device: &A, layout: &Arc<PaddedLayout>) -> Self {
        Self { device: device.clone(), layout: Arc::clone(layout), values: DeviceVec::zeros(device, layout.padded()) }
    }

    pub(super) fn add(self, other: Self) -> Self {
        Self { values: self.values.plus(&other.values), ..self }
    }

    pub(super) fn into_values(self) -> DeviceVec<A> {
        self.values
    }
}

impl<A: Accelerator> GradientSink for DeviceGradient<A> {
    fn put<const D: usize>(&mut self, entry: &FlatEntry, gradient: Tensor<D>) {
        let (buffer, kind) = self.device.buffer_of(gradient.without_autodiff());
        self.values.put(self.layout.place(entry.offset), entry.len, (&buffer, kind));
    }
}
