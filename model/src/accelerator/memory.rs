//! What is needed of a device.

use std::any::Any;

use ballast_kernels::Kernel;
use burn::tensor::{Device, Tensor};

/// What the elements of a tensor are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementKind {
    /// Four bytes.
    F32,
    /// Two bytes.
    Bf16,
}

/// A buffer that is given to a kernel.
#[derive(Debug)]
pub enum Argument<'a, B> {
    /// It is only read.
    Read(&'a B),
    /// All of it is written, and it is not read before.
    Write(&'a B),
    /// It is read, written, or left, in part.
    Change(&'a B),
}

impl<B> Clone for Argument<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Argument<'_, B> {}

impl<B> Argument<'_, B> {
    /// The buffer.
    pub fn buffer(&self) -> &B {
        match self {
            Self::Read(buffer) | Self::Write(buffer) | Self::Change(buffer) => buffer,
        }
    }
}

/// Where memory is, for a library that works on addresses. As long as this lives it stays there.
pub struct Address {
    pointer: u64,
    _held: Box<dyn Any>,
}

impl Address {
    /// Names a place that `held` keeps.
    pub(crate) fn new(pointer: u64, held: impl Any) -> Self {
        Self { pointer, _held: Box::new(held) }
    }

    /// The address.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }
}

/// A device: its memory, and launches of kernels on it, in the order of the calls.
///
/// One thread uses it. What fails on a device makes everything there worthless, so it is a panic, whose text says what was
/// attempted; the thread that owns the device ends with it.
pub trait Accelerator: Clone + Send + 'static {
    /// Memory of the device, or a part of it. Freed when the last clone is gone, though not before launches that use it.
    type Buffer: Clone + Send + 'static;

    /// Whether a tensor that [`tensor`](Self::tensor) makes shows later changes of the buffer. Otherwise it is a copy.
    const SHARES_TENSORS: bool;

    /// Takes a device that burn has, which is there.
    fn open(device: &Device) -> Self;

    /// Memory with anything in it, at a multiple of 256 bytes.
    fn alloc(&self, bytes: u64) -> Self::Buffer;

    /// [`alloc`](Self::alloc) for what lives as long as the model.
    fn alloc_lasting(&self, bytes: u64) -> Self::Buffer;

    /// A part of the same memory.
    ///
    /// # Panics
    ///
    /// When it does not lie within the buffer.
    fn part(&self, of: &Self::Buffer, start: u64, bytes: u64) -> Self::Buffer;

    /// The size in bytes.
    fn bytes(&self, of: &Self::Buffer) -> u64;

    /// New memory with these bytes, which may be few and the same in every step: then they are brought there once.
    fn constant(&self, bytes: &[u8]) -> Self::Buffer;

    /// New memory with these bytes.
    fn upload(&self, bytes: &[u8]) -> Self::Buffer;

    /// Writes to the start of a buffer, after what was launched before.
    ///
    /// # Panics
    ///
    /// When there are more bytes than the buffer holds.
    fn write(&self, to: &Self::Buffer, bytes: Vec<u8>);

    /// Waits for what was launched, and brings a buffer's bytes to the host.
    fn download(&self, from: &Self::Buffer) -> Vec<u8>;

    /// Waits for all that was launched.
    fn sync(&self);

    /// Where a buffer is. Whoever uses it orders itself after what was launched ([`sync`](Self::sync)).
    fn address(&self, of: &Self::Buffer) -> Address;

    /// Launches a kernel on so many blocks, and returns before it runs.
    fn launch(&self, kernel: &'static Kernel, blocks: u32, arguments: &[Argument<'_, Self::Buffer>]);

    /// A tensor of the `f32` values of a buffer, without autodiff. See [`SHARES_TENSORS`](Self::SHARES_TENSORS).
    fn tensor<const D: usize>(&self, of: &Self::Buffer, shape: [usize; D]) -> Tensor<D>;

    /// The memory of a tensor, row by row: shared, or copied where it lies otherwise.
    ///
    /// # Panics
    ///
    /// When it is a tensor of another device, or of other elements than [`ElementKind`] names.
    fn buffer_of<const D: usize>(&self, tensor: Tensor<D>) -> (Self::Buffer, ElementKind);
}
