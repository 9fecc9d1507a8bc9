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

/// Changes the values of a tensor on any device; on the CPU in place where nobody else holds them.
pub(crate) fn change_anywhere<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    if on_host(&tensor) {
        return self::change(tensor, change);
    }
    let device = tensor.device();
    let mut data = tensor.into_data();
    change(data.as_mut_slice::<f32>().expect("f32 values"));
    Tensor::from_data(data, &device)
}

/// Changes the values of a tensor in place where nobody else holds them.
pub(crate) fn change<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let mut flex = tensor.try_into_primitive::<Flex>().expect("a tensor on the CPU");
    if !flex.is_contiguous() || flex.layout().start_offset() != 0 {
        flex = flex.to_contiguous();
    }
    let count = flex.layout().num_elements();
    change(&mut flex.storage_mut::<f32>()[..count]);
    Tensor::from_primitive::<Flex>(flex)
}

/// Takes a vector as a tensor without copying it.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}
