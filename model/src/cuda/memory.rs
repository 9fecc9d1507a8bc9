//! CubeCL's device as the accelerator that the trained state lies on. **Not seen on a GPU yet.**

use super::launch::{self, Buffer, Gpu, GpuError};
use crate::accelerator::{Accelerator, Address, Argument, ElementKind};
use ballast_kernels::Kernel;
use burn::backend::Cube;
use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

/// A CUDA device that burn has opened, and the calling thread's stream on it.
#[derive(Clone)]
pub struct CubeMemory {
    gpu: Gpu,
    device: CubeDevice,
}

/// Memory of a CUDA device.
#[derive(Clone)]
pub struct CubeBuffer(Buffer);

/// A device that fails is of no further use: see [`Accelerator`].
fn done<T>(result: Result<T, GpuError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("a tensor on a CUDA device, without autodiff")
}

impl Accelerator for CubeMemory {
    type Buffer = CubeBuffer;

    const SHARES_TENSORS: bool = true;

    fn open(device: &Device) -> Self {
        let CubeTensor { client, device, .. } = primitive(Tensor::<1>::zeros([1], device));
        Self { gpu: Gpu::of(client), device }
    }

    fn alloc(&self, bytes: u64) -> CubeBuffer {
        CubeBuffer(self.gpu.alloc(bytes))
    }

    fn alloc_lasting(&self, bytes: u64) -> CubeBuffer {
        CubeBuffer(self.gpu.alloc_persistent(bytes))
    }

    fn part(&self, of: &CubeBuffer, start: u64, bytes: u64) -> CubeBuffer {
        CubeBuffer(of.0.part(start, bytes))
    }

    fn bytes(&self, of: &CubeBuffer) -> u64 {
        of.0.bytes()
    }

    fn constant(&self, bytes: &[u8]) -> CubeBuffer {
        CubeBuffer(self.gpu.constant(bytes))
    }

    fn upload(&self, bytes: &[u8]) -> CubeBuffer {
        CubeBuffer(self.gpu.upload(bytes))
    }

    fn write(&self, to: &CubeBuffer, bytes: Vec<u8>) {
        self.gpu.write(&to.0, bytes);
    }

    fn download(&self, from: &CubeBuffer) -> Vec<u8> {
        done(self.gpu.download(&from.0))
    }

    fn sync(&self) {
        done(self.gpu.sync());
    }

    fn address(&self, of: &CubeBuffer) -> Address {
        let held = done(self.gpu.address(&of.0));
        Address::new(held.pointer, held)
    }

    fn launch(&self, kernel: &'static Kernel, blocks: u32, arguments: &[Argument<'_, CubeBuffer>]) {
        let arguments = arguments.iter().map(|argument| match argument {
            Argument::Read(buffer) => launch::Argument::Read(&buffer.0),
            Argument::Write(buffer) => launch::Argument::Write(&buffer.0),
            Argument::Change(buffer) => launch::Argument::Change(&buffer.0),
        });
        let arguments: Vec<_> = arguments.collect();
        self.gpu.launch(kernel, [blocks, 1, 1], &arguments);
    }

    fn tensor<const D: usize>(&self, of: &CubeBuffer, shape: [usize; D]) -> Tensor<D> {
        let (client, handle) = (self.gpu.client().clone(), of.0.handle().clone());
        let tensor = CubeTensor::new_contiguous(client, self.device.clone(), Shape::from(shape), handle, DType::F32);
        Tensor::from_primitive::<Cube>(tensor)
    }

    fn buffer_of<const D: usize>(&self, tensor: Tensor<D>) -> (CubeBuffer, ElementKind) {
        let tensor = into_contiguous(primitive(tensor));
        let kind = match tensor.dtype {
            DType::F32 => ElementKind::F32,
            DType::BF16 => ElementKind::Bf16,
            other => panic!("tensors of {other:?} are not brought to a flat buffer"),
        };
        (CubeBuffer(Buffer::of(tensor.handle)), kind)
    }
}
