//! For tests: plans on bf16 tensors of the CPU, by the emulation of the kernels.

use super::{Executor, Rows};
use crate::ops::record::Any;
use ballast_kernels::emulation::{Emulation, Order};
use ballast_kernels::plan::{Buffer, Kind, Plan, Role};
use burn::backend::DispatchTensorKind;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The executor of CPU tensors while [`with_kernels`] runs.
pub(super) struct Emulated;

/// How often which kernel was launched.
type Launches = BTreeMap<String, usize>;

thread_local! {
    static LAUNCHED: RefCell<Option<Launches>> = const { RefCell::new(None) };
}

/// Computes `run` with the emulated kernels where they cover an operation in bf16, on this thread; also says which kernels
/// ran how often. Backward passes of what is computed within use them wherever they are run.
pub fn with_kernels<R>(run: impl FnOnce() -> R) -> (R, Launches) {
    LAUNCHED.set(Some(Launches::new()));
    let result = run();
    (result, LAUNCHED.take().expect("nobody else took it"))
}

/// Whether this is a tensor of the CPU, and kernels are asked for.
pub(super) fn reaches(tensor: &Any) -> bool {
    LAUNCHED.with_borrow(Option::is_some) && matches!(tensor.dispatch().kind, DispatchTensorKind::Flex(_))
}

impl Executor for Emulated {
    /// Rows padded as CubeCL pads them on CUDA (`PitchedMemoryLayoutPolicy`): to the next power of two from 16 bytes to
    /// 512, or to multiples of 512.
    fn rows(&self, tensor: Any) -> Rows {
        let bytes = 2 * shape(&tensor).last().copied().unwrap_or(1);
        let pitch = bytes.next_multiple_of(bytes.next_power_of_two().clamp(16, 512));
        Rows { tensor, stride: pitch as u64 / 2 }
    }

    fn run(&self, plan: &Plan, inputs: &[&Any]) -> Vec<Tensor<1>> {
        let wanted = plan.inputs();
        let inputs: Vec<_> = wanted.zip(inputs).map(|(buffer, input)| in_memory(buffer, input)).collect();
        let inputs: Vec<_> = inputs.iter().map(Vec::as_slice).collect();
        LAUNCHED.with_borrow_mut(|launched| {
            let Some(launched) = launched else { return };
            for launch in &plan.launches {
                *launched.entry(launch.kernel.name.clone()).or_default() += 1;
            }
        });
        let found = Emulation::shared().run(plan, &inputs, Order::Forwards);
        let outputs = plan.buffers.iter().filter(|buffer| buffer.role == Role::Output);
        let tensors = outputs.zip(found).map(|(buffer, bytes)| {
            let dtype = if buffer.kind == Kind::Bf16 { DType::BF16 } else { DType::F32 };
            let data = TensorData::from_bytes_vec(bytes, [buffer.count as usize], dtype);
            Tensor::from_data(data, (&Device::flex(), dtype))
        });
        tensors.collect()
    }
}

fn shape(tensor: &Any) -> Vec<usize> {
    Tensor::<1>::from_dispatch(tensor.dispatch()).shape().to_vec()
}

/// The bytes that a device has for an input: rows of bf16 with NaN between them where the plan expects padding.
fn in_memory(buffer: &Buffer, input: &Any) -> Vec<u8> {
    let data = Tensor::<1>::from_dispatch(input.dispatch()).into_data();
    let bytes = data.as_bytes();
    if bytes.len() as u64 == buffer.bytes() {
        return bytes.to_vec();
    }
    let width = 2 * shape(input).last().copied().expect("rows have a width");
    let rows = bytes.len() / width;
    let padding = (buffer.bytes() as usize - bytes.len()) / (rows - 1);
    bytes.chunks(width).map(<[u8]>::to_vec).collect::<Vec<_>>().join(&vec![0xff; padding][..])
}
