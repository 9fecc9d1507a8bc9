//! Plans on CUDA tensors, in CubeCL's memory and on its stream.

use super::{Executor, Rows};
use crate::cuda::launch::{Argument, Buffer, Gpu};
use crate::ops::record::Any;
use crate::ops::rows::row_stride;
use ballast_kernels::plan::{Kind, Plan, Role};
use burn::backend::{BackendTensor, Cube, DispatchTensorKind};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// The executor of CUDA tensors.
pub(super) struct OnCube;

/// Whether this is a tensor on a CUDA device, without autodiff.
pub(super) fn reaches(tensor: &Any) -> bool {
    match &tensor.dispatch().kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor)) => matches!(tensor.device, CubeDevice::Cuda(_)),
        _ => false,
    }
}

impl Executor for OnCube {
    fn rows(&self, tensor: Any) -> Rows {
        let cube = primitive(&tensor);
        match row_stride(&cube.meta.shape()[..], &cube.meta.strides()[..]) {
            Some(stride) if aligned(&cube, stride) => Rows { tensor, stride: stride as u64 },
            _ => {
                let cube = into_contiguous(cube);
                let stride = cube.meta.shape()[..].last().copied().unwrap_or(1) as u64;
                Rows { tensor: Tensor::<1>::from_primitive::<Cube>(cube).into(), stride }
            }
        }
    }

    fn run(&self, plan: &Plan, inputs: &[&Any]) -> Vec<Tensor<1>> {
        let inputs: Vec<CubeTensor> = inputs.iter().map(|input| primitive(input)).collect();
        let first = inputs.first().expect("an operation has inputs");
        let gpu = Gpu::of(first.client.clone());
        let mut given = inputs.iter();
        let buffers: Vec<Buffer> = plan
            .buffers
            .iter()
            .map(|buffer| match &buffer.role {
                Role::Input => {
                    let input = given.next().expect("an input for every buffer that wants one");
                    let own = Buffer::of(input.handle.clone());
                    assert_eq!(input.dtype, dtype(buffer.kind), "{}", buffer.name);
                    assert!(
                        own.bytes() >= buffer.bytes(),
                        "{} has {} of {} bytes",
                        buffer.name,
                        own.bytes(),
                        buffer.bytes()
                    );
                    own
                }
                Role::Settings(bytes) => gpu.constant(bytes),
                Role::Output | Role::Temporary => gpu.alloc(buffer.bytes()),
            })
            .collect();
        for launch in &plan.launches {
            let arguments: Vec<_> = launch
                .arguments
                .iter()
                .map(|argument| {
                    let buffer = &buffers[argument.buffer];
                    if argument.written { Argument::Write(buffer) } else { Argument::Read(buffer) }
                })
                .collect();
            gpu.launch(launch.kernel, launch.grid, &arguments);
        }
        let outputs = plan.buffers.iter().zip(buffers).filter(|(buffer, _)| buffer.role == Role::Output);
        let tensors = outputs.map(|(buffer, memory)| {
            let shape = [buffer.count as usize].into();
            let (client, device) = (first.client.clone(), first.device.clone());
            let handle = memory.handle().clone();
            let cube = CubeTensor::new_contiguous(client, device, shape, handle, dtype(buffer.kind));
            Tensor::from_primitive::<Cube>(cube)
        });
        tensors.collect()
    }
}

fn dtype(kind: Kind) -> DType {
    match kind {
        Kind::Bf16 => DType::BF16,
        Kind::F32 => DType::F32,
        Kind::Word => unreachable!("settings are no tensors"),
    }
}

fn primitive(tensor: &Any) -> CubeTensor {
    let tensor = Tensor::<1>::from_dispatch(tensor.dispatch());
    tensor.try_into_primitive::<Cube>().expect("a tensor on a CUDA device")
}

/// Whether rows begin at multiples of 16 bytes.
fn aligned(cube: &CubeTensor, stride: usize) -> bool {
    let start = cube.handle.offset_start.unwrap_or(0);
    (stride * cube.dtype.size()).is_multiple_of(16) && start.is_multiple_of(16)
}
