//! The kernels of `kernels/src/cuda/flat.cu`, and the norm of `optimizer.cu`, with their grids and settings.

use ballast_kernels::{DIGEST_CHUNK, Kernel, NORM_CHUNK};

use super::memory::{Accelerator, Argument, ElementKind};
use crate::adamw::Factors;

/// Threads of a block, of all these kernels.
const THREADS: u64 = 256;

/// Blocks of a grid that loops over its elements: enough for the largest GPU many times over.
const MAX_BLOCKS: u64 = 4096;

/// Sums that the norm's kernel takes side by side.
const NORM_LANES: u64 = 8;

/// Bytes of the norm and the factor that clips.
pub(super) const NORM_BYTES: u64 = 16;

fn kernel(name: &str) -> &'static Kernel {
    ballast_kernels::kernel(name).expect("a kernel of this name is in the crate")
}

fn words(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn blocks_of(elements: u64) -> u64 {
    elements.div_ceil(THREADS).clamp(1, MAX_BLOCKS)
}

/// Launches a kernel over `elements`, with its settings behind the other arguments.
fn each<A: Accelerator>(device: &A, name: &str, elements: usize, arguments: &[Argument<'_, A::Buffer>]) {
    let elements = elements as u64;
    if elements == 0 {
        return;
    }
    let blocks = blocks_of(elements);
    let settings = device.constant(&words(&[elements, blocks]));
    let arguments: Vec<_> = arguments.iter().copied().chain([Argument::Read(&settings)]).collect();
    device.launch(kernel(name), blocks as u32, &arguments);
}

/// Sets all elements to zero.
pub(super) fn clear<A: Accelerator>(device: &A, buffer: &A::Buffer, elements: usize) {
    each(device, "flat_clear", elements, &[Argument::Write(buffer)]);
}

/// Copies elements, from whatever kind.
pub(super) fn put<A: Accelerator>(
    device: &A,
    to: &A::Buffer,
    from: Argument<'_, A::Buffer>,
    kind: ElementKind,
    elements: usize,
) {
    let name = match kind {
        ElementKind::F32 => "flat_put_f32",
        ElementKind::Bf16 => "flat_put_bf16",
    };
    each(device, name, elements, &[Argument::Write(to), from]);
}

/// Adds `right` to `left`.
pub(super) fn add<A: Accelerator>(device: &A, left: &A::Buffer, right: &A::Buffer, elements: usize) {
    each(device, "flat_add", elements, &[Argument::Change(left), Argument::Read(right)]);
}

/// Writes the L2 norm of `values`, and 1, to `norm`: two `f64`.
pub(super) fn norm<A: Accelerator>(device: &A, values: &A::Buffer, elements: usize, norm: &A::Buffer) {
    let elements = elements as u64;
    let chunks = elements.div_ceil(NORM_CHUNK).max(1);
    let sums = device.alloc(chunks * size_of::<f64>() as u64);
    let (count, no_limit) = (device.constant(&words(&[elements])), device.constant(&0_f64.to_le_bytes()));
    let blocks = (chunks * NORM_LANES).div_ceil(THREADS) as u32;
    let (values, count) = (Argument::Read(values), Argument::Read(&count));
    device.launch(kernel("norm_chunks"), blocks, &[values, Argument::Write(&sums), count]);
    let finish = [Argument::Read(&sums), Argument::Write(norm), Argument::Read(&no_limit), count];
    device.launch(kernel("norm_finish"), 1, &finish);
}

/// Bytes of the digests of so many elements.
pub(super) fn digest_bytes(elements: usize) -> u64 {
    (elements as u64).div_ceil(DIGEST_CHUNK) * 16
}

/// Writes the digests of the chunks of `values`.
pub(super) fn digest<A: Accelerator>(device: &A, values: &A::Buffer, elements: usize, digests: &A::Buffer) {
    let elements = elements as u64;
    let blocks = elements.div_ceil(DIGEST_CHUNK) as u32;
    if blocks > 0 {
        let settings = device.constant(&words(&[elements]));
        let arguments = [Argument::Read(values), Argument::Write(digests), Argument::Read(&settings)];
        device.launch(kernel("flat_digest"), blocks, &arguments);
    }
}

/// What AdamW changes, and what it reads.
pub(super) struct Step<'a, B> {
    pub(super) params: &'a B,
    pub(super) exp_avg: &'a B,
    pub(super) exp_avg_sq: &'a B,
    pub(super) gradient: &'a B,
    /// The norm, and the factor that clips.
    pub(super) norm: &'a B,
}

/// Moves the parameters `range`.
pub(super) fn adamw<A: Accelerator>(
    device: &A,
    step: &Step<'_, A::Buffer>,
    range: std::ops::Range<usize>,
    factors: &Factors,
) {
    if range.is_empty() {
        return;
    }
    let blocks = blocks_of(range.len() as u64);
    let mut group = words(&[range.start as u64, range.end as u64]);
    let Factors { decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size } = *factors;
    let factors = [decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size, 0.0];
    group.extend(factors.iter().flat_map(|factor: &f32| factor.to_le_bytes()));
    let (group, settings) = (device.upload(&group), device.constant(&words(&[blocks])));
    let arguments = [
        Argument::Change(step.params),
        Argument::Change(step.exp_avg),
        Argument::Change(step.exp_avg_sq),
        Argument::Read(step.gradient),
        Argument::Read(step.norm),
        Argument::Read(&group),
        Argument::Read(&settings),
    ];
    device.launch(kernel("flat_adamw"), blocks as u32, &arguments);
}
