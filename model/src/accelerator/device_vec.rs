//! A flat buffer on a device.

use std::ops::Range;

use super::launches;
use super::memory::{Accelerator, Argument, ElementKind};

/// `f32` values on a device, in one piece of memory.
pub struct DeviceVec<A: Accelerator> {
    device: A,
    buffer: A::Buffer,
    len: usize,
}

const F32: u64 = size_of::<f32>() as u64;

impl<A: Accelerator> DeviceVec<A> {
    /// Makes a buffer of zeros.
    pub fn zeros(device: &A, len: usize) -> Self {
        Self::cleared(device, device.alloc(len as u64 * F32), len)
    }

    /// Makes a buffer of zeros that lives as long as the model.
    pub fn lasting_zeros(device: &A, len: usize) -> Self {
        Self::cleared(device, device.alloc_lasting(len as u64 * F32), len)
    }

    /// Brings values from the host.
    pub fn from_host(device: &A, values: &[f32]) -> Self {
        Self { device: device.clone(), buffer: device.upload(&to_bytes(values)), len: values.len() }
    }

    fn cleared(device: &A, buffer: A::Buffer, len: usize) -> Self {
        let cleared = Self { device: device.clone(), buffer, len };
        launches::clear(device, &cleared.buffer, len);
        cleared
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory.
    pub fn buffer(&self) -> &A::Buffer {
        &self.buffer
    }

    /// The memory of some of the values.
    pub fn part(&self, range: Range<usize>) -> A::Buffer {
        self.device.part(&self.buffer, range.start as u64 * F32, range.len() as u64 * F32)
    }

    /// Waits, and brings values to the host.
    pub fn read(&self, range: Range<usize>) -> Vec<f32> {
        if range.is_empty() {
            return Vec::new();
        }
        to_values(&self.device.download(&self.part(range)))
    }

    /// Overwrites values from `first` on.
    pub fn write(&self, first: usize, values: &[f32]) {
        if !values.is_empty() {
            self.device.write(&self.part(first..first + values.len()), to_bytes(values));
        }
    }

    /// Overwrites values from `first` on by those of a device's memory, which are as many as `len`.
    pub fn put(&self, first: usize, len: usize, (from, kind): (&A::Buffer, ElementKind)) {
        launches::put(&self.device, &self.part(first..first + len), Argument::Read(from), kind, len);
    }

    /// Sets values to zero.
    pub fn clear(&self, range: Range<usize>) {
        if !range.is_empty() {
            launches::clear(&self.device, &self.part(range.clone()), range.len());
        }
    }

    /// Adds another's values to these, where these lie.
    ///
    /// # Panics
    ///
    /// When the lengths differ.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        assert_eq!(self.len, other.len, "gradients of one model have one length");
        launches::add(&self.device, &self.buffer, &other.buffer, self.len);
        self
    }
}

/// Values as a device holds them: little-endian.
pub(super) fn to_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; size_of_val(values)];
    bytes.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, from)| *to = from.to_le_bytes());
    bytes
}

/// Values from a device's bytes.
pub(super) fn to_values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
