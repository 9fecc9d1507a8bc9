//! A file of weights, whichever format it has: what is in it, and one tensor's numbers at a time.

use super::checksum::Checksums;
use super::tensors::{self, TensorsError};
use super::torch;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

/// How numbers are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NumberType {
    F64,
    F32,
    F16,
    Bf16,
    /// Anything else, by name: not read as weights.
    Other(String),
}

impl NumberType {
    /// Bytes per number, of those that are read.
    fn bytes(&self) -> Option<usize> {
        match self {
            Self::F64 => Some(8),
            Self::F32 => Some(4),
            Self::F16 | Self::Bf16 => Some(2),
            Self::Other(_) => None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Other(name) => name,
        }
    }
}

/// A tensor's place in a file. Whoever makes one has checked that it lies within the file.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) number_type: NumberType,
    pub(crate) shape: Vec<usize>,
    /// Of the first number, in bytes.
    pub(crate) start: u64,
    /// Distances in numbers along each dimension; `None` where the numbers simply follow each other.
    pub(crate) strides: Option<Vec<usize>>,
}

impl StoredTensor {
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// An open file of weights.
pub(crate) struct WeightsFile {
    file: File,
    tensors: BTreeMap<String, StoredTensor>,
    metadata: BTreeMap<String, String>,
    checksums: Checksums,
}

/// Numbers that are read at once.
const CHUNK: usize = 1 << 16;

impl WeightsFile {
    /// Opens a safetensors file, or one of `torch.save`; which of them is told by its first bytes, not by its name.
    pub(crate) fn open(path: &Path) -> Result<Self, TensorsError> {
        let mut file = File::open(path).map_err(TensorsError::Io)?;
        let length = file.metadata().map_err(TensorsError::Io)?.len();
        let mut start = [0; 16];
        let known = length.min(16) as usize;
        file.read_exact(&mut start[..known]).map_err(TensorsError::Io)?;
        file.seek(SeekFrom::Start(0)).map_err(TensorsError::Io)?;
        if torch::is_torch(&start[..known]) {
            let (tensors, checksums) = torch::open(&mut file, length).map_err(TensorsError::Torch)?;
            return Ok(Self { file, tensors, metadata: BTreeMap::new(), checksums });
        }
        let (tensors, metadata) = tensors::open(&mut file, length)?;
        Ok(Self { file, tensors, metadata, checksums: Checksums::default() })
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, StoredTensor> {
        &self.tensors
    }

    /// What a safetensors file says about itself.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Gives the numbers `range` of a tensor to `sink` as f32, some at a time. Refuses what is not finite.
    pub(crate) fn read<E: From<TensorsError>>(
        &self,
        key: &str,
        range: Range<usize>,
        sink: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = &self.tensors[key];
        let Some(width) = tensor.number_type.bytes() else {
            return Err(TensorsError::Dtype { key: key.to_owned(), dtype: tensor.number_type.name().to_owned() }.into());
        };
        self.checksums.check_at(&self.file, tensor.start)?;
        let gathered = tensor.strides.as_ref().map(|strides| self.gather(tensor, strides, width)).transpose()?;
        let mut bytes = Vec::new();
        let mut numbers = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let count = CHUNK.min(range.end - at);
            let chunk = match &gathered {
                Some(whole) => &whole[at * width..(at + count) * width],
                None => {
                    bytes.resize(count * width, 0);
                    self.read_at(tensor.start + (at * width) as u64, &mut bytes)?;
                    bytes.as_slice()
                }
            };
            to_f32(chunk, &tensor.number_type, &mut numbers);
            if numbers.iter().any(|n: &f32| !n.is_finite()) {
                return Err(TensorsError::NotFinite { key: key.to_owned() }.into());
            }
            sink(&numbers)?;
            at += count;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), TensorsError> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset)).map_err(TensorsError::Io)?;
        file.read_exact(bytes).map_err(TensorsError::Io)
    }

    /// The numbers of a tensor with gaps or in another order (a transposed view, `channels_last`), one after the other.
    fn gather(&self, tensor: &StoredTensor, strides: &[usize], width: usize) -> Result<Vec<u8>, TensorsError> {
        let count = tensor.count();
        if count == 0 {
            return Ok(Vec::new());
        }
        let span: usize = tensor.shape.iter().zip(strides).map(|(n, stride)| (n - 1) * stride).sum();
        let mut stored = vec![0; (span + 1) * width];
        self.read_at(tensor.start, &mut stored)?;
        let mut gathered = Vec::with_capacity(count * width);
        let mut place = vec![0; strides.len()];
        for _ in 0..count {
            let at: usize = place.iter().zip(strides).map(|(n, stride)| n * stride).sum();
            gathered.extend_from_slice(&stored[at * width..(at + 1) * width]);
            for (n, end) in place.iter_mut().zip(&tensor.shape).rev() {
                *n += 1;
                if *n < *end {
                    break;
                }
                *n = 0;
            }
        }
        Ok(gathered)
    }
}

fn to_f32(bytes: &[u8], number_type: &NumberType, numbers: &mut Vec<f32>) {
    fn convert<const N: usize>(bytes: &[u8], numbers: &mut Vec<f32>, one: impl Fn([u8; N]) -> f32) {
        numbers.extend(bytes.as_chunks::<N>().0.iter().map(|b| one(*b)));
    }
    numbers.clear();
    match number_type {
        NumberType::F64 => convert(bytes, numbers, |b| f64::from_le_bytes(b) as f32),
        NumberType::F32 => convert(bytes, numbers, f32::from_le_bytes),
        NumberType::F16 => convert(bytes, numbers, |b| f16::from_le_bytes(b).to_f32()),
        NumberType::Bf16 => convert(bytes, numbers, |b| bf16::from_le_bytes(b).to_f32()),
        NumberType::Other(_) => unreachable!("refused before"),
    }
}
