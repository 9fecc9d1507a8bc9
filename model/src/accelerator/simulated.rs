//! An accelerator in the host's memory, for tests of what stands above one.
//!
//! Memory starts as NaN, as a device's may hold anything. A launch runs the kernel's plain description in Rust, checked
//! against the kernels' own text in `kernels/tests`. Launches, transfers and waits are counted, so that a test can say what a
//! step may cost.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ballast_kernels::{DIGEST_CHUNK, Kernel, NORM_CHUNK};
use burn::tensor::{DType, Device, Tensor, TensorData};
use half::bf16;

use super::memory::{Accelerator, Address, Argument, ElementKind};

/// A device that is simulated. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Simulated(Arc<Mutex<Counts>>);

/// What was asked of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels launched.
    pub launches: usize,
    /// Times that the host waited.
    pub waits: usize,
    /// Bytes brought to the host.
    pub bytes_down: u64,
    /// Bytes brought from the host.
    pub bytes_up: u64,
    /// Bytes that are allocated now.
    pub bytes_held: u64,
}

/// Memory of a simulated device.
#[derive(Debug, Clone)]
pub struct SimulatedBuffer {
    memory: Arc<Memory>,
    start: usize,
    len: usize,
}

#[derive(Debug)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    device: Simulated,
}

impl Drop for Memory {
    fn drop(&mut self) {
        let len = lock(&self.bytes).len() as u64;
        self.device.counts().bytes_held -= len;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Simulated {
    /// What was asked of it up to now.
    pub fn asked(&self) -> Counts {
        *self.counts()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.0)
    }

    fn holding(&self, bytes: Vec<u8>) -> SimulatedBuffer {
        let len = bytes.len();
        self.counts().bytes_held += len as u64;
        SimulatedBuffer { memory: Arc::new(Memory { bytes: Mutex::new(bytes), device: self.clone() }), start: 0, len }
    }
}

impl SimulatedBuffer {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    fn get(&self) -> Vec<u8> {
        lock(&self.memory.bytes)[self.range()].to_vec()
    }

    fn set(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "{} bytes into {}", bytes.len(), self.len);
        lock(&self.memory.bytes)[self.start..self.start + bytes.len()].copy_from_slice(bytes);
    }

    fn f32s(&self) -> Vec<f32> {
        self.get().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn u32s(&self) -> Vec<u32> {
        self.get().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    fn u64s(&self) -> Vec<u64> {
        self.get().as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
    }

    fn f64s(&self) -> Vec<f64> {
        self.get().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    }

    fn set_f32s(&self, values: &[f32]) {
        self.set(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    }

    fn set_f64s(&self, values: &[f64]) {
        self.set(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>());
    }
}

impl Accelerator for Simulated {
    type Buffer = SimulatedBuffer;

    const SHARES_TENSORS: bool = false;

    fn open(_: &Device) -> Self {
        Self::default()
    }

    fn alloc(&self, bytes: u64) -> SimulatedBuffer {
        self.holding(vec![0xff; usize::try_from(bytes).expect("a size of this machine")])
    }

    fn alloc_lasting(&self, bytes: u64) -> SimulatedBuffer {
        self.alloc(bytes)
    }

    fn part(&self, of: &SimulatedBuffer, start: u64, bytes: u64) -> SimulatedBuffer {
        let (start, len) = (start as usize, bytes as usize);
        assert!(start + len <= of.len, "the part is within the buffer");
        SimulatedBuffer { memory: Arc::clone(&of.memory), start: of.start + start, len }
    }

    fn bytes(&self, of: &SimulatedBuffer) -> u64 {
        of.len as u64
    }

    fn constant(&self, bytes: &[u8]) -> SimulatedBuffer {
        self.upload(bytes)
    }

    fn upload(&self, bytes: &[u8]) -> SimulatedBuffer {
        self.counts().bytes_up += bytes.len() as u64;
        self.holding(bytes.to_vec())
    }

    fn write(&self, to: &SimulatedBuffer, bytes: Vec<u8>) {
        self.counts().bytes_up += bytes.len() as u64;
        to.set(&bytes);
    }

    fn download(&self, from: &SimulatedBuffer) -> Vec<u8> {
        let mut counts = self.counts();
        counts.waits += 1;
        counts.bytes_down += from.len as u64;
        drop(counts);
        from.get()
    }

    fn sync(&self) {
        self.counts().waits += 1;
    }

    fn address(&self, of: &SimulatedBuffer) -> Address {
        let pointer = lock(&of.memory.bytes)[of.start..].as_mut_ptr().expose_provenance() as u64;
        Address::new(pointer, Arc::clone(&of.memory))
    }

    fn launch(&self, kernel: &'static Kernel, blocks: u32, arguments: &[Argument<'_, SimulatedBuffer>]) {
        self.counts().launches += 1;
        assert!(blocks > 0, "{}: a grid has blocks", kernel.name);
        for argument in arguments {
            // Parts of a flat buffer are at multiples of 256 bytes, other memory as well.
            assert_eq!(argument.buffer().start % 256, 0, "{}: a buffer that is not aligned", kernel.name);
            if let Argument::Write(to) = argument {
                to.set(&vec![0xff; to.len]);
            }
        }
        let buffers: Vec<&SimulatedBuffer> = arguments.iter().map(Argument::buffer).collect();
        compute(&kernel.name, blocks, &buffers);
    }

    fn tensor<const D: usize>(&self, of: &SimulatedBuffer, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(of.f32s(), shape), &crate::cpu_device())
    }

    fn buffer_of<const D: usize>(&self, tensor: Tensor<D>) -> (SimulatedBuffer, ElementKind) {
        let data = tensor.into_data();
        match data.dtype() {
            DType::F32 => {
                let values = data.as_slice::<f32>().expect("f32 values");
                (self.holding(values.iter().flat_map(|value| value.to_le_bytes()).collect()), ElementKind::F32)
            }
            DType::BF16 => {
                let values = data.as_slice::<bf16>().expect("bf16 values");
                (self.holding(values.iter().flat_map(|value| value.to_le_bytes()).collect()), ElementKind::Bf16)
            }
            other => panic!("tensors of {other:?} are not brought to a flat buffer"),
        }
    }
}

/// The plain description of each kernel.
fn compute(name: &str, blocks: u32, buffers: &[&SimulatedBuffer]) {
    match (name, buffers) {
        ("flat_clear", [to, settings]) => to.set_f32s(&vec![0.0; elements(settings, blocks)]),
        ("flat_put_f32", [to, from, settings]) => to.set_f32s(&from.f32s()[..elements(settings, blocks)]),
        ("flat_put_bf16", [to, from, settings]) => {
            let from = from.get();
            let values = from.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32());
            to.set_f32s(&values.take(elements(settings, blocks)).collect::<Vec<_>>());
        }
        ("flat_add", [left, right, settings]) => {
            let (mut sum, right) = (left.f32s(), right.f32s());
            let count = elements(settings, blocks);
            sum[..count].iter_mut().zip(&right).for_each(|(sum, value)| *sum += value);
            left.set_f32s(&sum);
        }
        ("norm_chunks", [values, sums, count]) => {
            let values = &values.f32s()[..count.u64s()[0] as usize];
            assert!(
                blocks as usize * 256 / 8 >= values.len().div_ceil(NORM_CHUNK as usize),
                "a lane for each chunk's part"
            );
            let squares = |chunk: &[f32]| {
                let mut lanes = [0.0; 8];
                chunk.iter().enumerate().for_each(|(i, value)| lanes[i % 8] += f64::from(*value) * f64::from(*value));
                lanes.into_iter().sum()
            };
            sums.set_f64s(&values.chunks(NORM_CHUNK as usize).map(squares).collect::<Vec<f64>>());
        }
        ("norm_finish", [sums, norm, limits, count]) => {
            let chunks = (count.u64s()[0]).div_ceil(NORM_CHUNK) as usize;
            let (length, limit) = (sums.f64s()[..chunks].iter().sum::<f64>().sqrt(), limits.f64s()[0]);
            let factor = limit / (length + 1e-6);
            norm.set_f64s(&[length, if limit > 0.0 && factor < 1.0 { factor } else { 1.0 }]);
        }
        ("flat_digest", [values, digests, count]) => {
            let values = &values.u32s()[..count.u64s()[0] as usize];
            assert_eq!(blocks as usize, values.len().div_ceil(DIGEST_CHUNK as usize), "a block for each chunk");
            let found = (0..).step_by(DIGEST_CHUNK as usize).zip(values.chunks(DIGEST_CHUNK as usize));
            digests.set(&found.flat_map(|(first, chunk)| digest(first, chunk)).collect::<Vec<_>>());
        }
        ("flat_adamw", [params, exp_avg, exp_avg_sq, gradient, norm, group, grid]) => {
            assert_eq!(grid.u64s()[0], u64::from(blocks), "the kernel knows its grid");
            adamw([*params, *exp_avg, *exp_avg_sq], gradient, norm.f64s()[1], group);
        }
        _ => panic!("{name} with {} buffers is not simulated", buffers.len()),
    }
}

fn elements(settings: &SimulatedBuffer, blocks: u32) -> usize {
    let [elements, grid] = settings.u64s()[..] else { panic!("two settings") };
    assert_eq!(grid, u64::from(blocks), "the kernel knows its grid");
    elements as usize
}

/// The digest of a chunk of which the first element has this number, as a device writes it.
fn digest(first: u64, chunk: &[u32]) -> [u8; 16] {
    let (mut sum, mut products) = (0_u64, 0_u64);
    for (index, bits) in (first..).zip(chunk) {
        let mut h = index << 32 | u64::from(*bits);
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^= h >> 31;
        sum = sum.wrapping_add(h);
        products = products.wrapping_add((h >> 32) * (h & 0xffff_ffff));
    }
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sum.to_le_bytes());
    bytes[8..].copy_from_slice(&products.to_le_bytes());
    bytes
}

fn adamw(state: [&SimulatedBuffer; 3], gradient: &SimulatedBuffer, clip: f64, group: &SimulatedBuffer) {
    let [mut params, mut exp_avg, mut exp_avg_sq] = state.map(SimulatedBuffer::f32s);
    let (range, factors) = (group.u64s(), group.f32s());
    let [decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size, _] = factors[4..]
    else {
        panic!("a group has 48 bytes")
    };
    let gradient = gradient.f32s();
    for i in range[0] as usize..range[1] as usize {
        let g = if clip < 1.0 { gradient[i] * clip as f32 } else { gradient[i] };
        exp_avg[i] += (g - exp_avg[i]) * one_minus_beta1;
        exp_avg_sq[i] = exp_avg_sq[i] * beta2 + g * g * one_minus_beta2;
        let denominator = exp_avg_sq[i].sqrt() / bias_correction2_sqrt + eps;
        params[i] = params[i] * decay - step_size * (exp_avg[i] / denominator);
    }
    for (buffer, values) in state.into_iter().zip([params, exp_avg, exp_avg_sq]) {
        buffer.set_f32s(&values);
    }
}
