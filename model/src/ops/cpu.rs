//! CPU tensors as slices.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};

/// A contiguous f32 tensor in memory.
pub(crate) struct Host(FlexTensor);

impl Host {
    /// `None` on other devices and for other types.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let flex = tensor.clone().try_into_primitive::<Flex>().ok()?;
        Some(Self(if flex.as_slice::<f32>().is_some() { flex } else { flex.to_contiguous() }))
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice().expect("made contiguous")
    }
}

/// Whether the operation can work on slices.
pub(crate) fn on_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// The values of a tensor of which it is known that it is on the host.
pub(crate) fn host<const D: usize>(tensor: &Tensor<D>) -> Host {
    Host::of(tensor).expect("an f32 tensor on the CPU")
}

/// Takes a vector as a tensor without copying it.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}
