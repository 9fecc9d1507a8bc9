//! The safetensors format: eight bytes of length, a JSON header, the tensors.
//!
//! Reading takes one tensor at a time and checks every length against the file before it allocates. Writing
//! streams in order of the names, so that the same tensors always give the same bytes.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// No header of any model is near this size; the reference implementation has the same limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A safetensors file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// The file system says no.
    #[error("cannot read it")]
    Io(#[source] io::Error),
    /// Shorter than its first eight bytes say, or an absurd length.
    #[error("not a safetensors file: a header of {claimed} bytes in a file of {file}")]
    Length {
        /// Bytes of header according to the file.
        claimed: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The header is no sound list of tensors.
    #[error("not a sound safetensors header")]
    Header(#[source] serde_json::Error),
    /// The tensors do not fill the file.
    #[error("truncated or damaged: the header describes {described} bytes, the file has {file}")]
    Truncated {
        /// Bytes according to the header.
        described: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// A number format that is not read.
    #[error("`{key}` is stored as {dtype:?}; only F32, F16, BF16 and F64 are read")]
    Dtype {
        /// The tensor.
        key: String,
        /// Its format.
        dtype: Dtype,
    },
}

/// An open safetensors file.
pub(crate) struct TensorFile {
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TensorsError> {
        let mut file = File::open(path).map_err(TensorsError::Io)?;
        let length = file.metadata().map_err(TensorsError::Io)?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(TensorsError::Length { claimed: 0, file: length });
        }
        file.read_exact(&mut prefix).map_err(TensorsError::Io)?;
        let claimed = u64::from_le_bytes(prefix);
        if claimed > (length - 8).min(MAX_HEADER_BYTES) {
            return Err(TensorsError::Length { claimed, file: length });
        }
        let mut header = vec![0; claimed as usize];
        file.read_exact(&mut header).map_err(TensorsError::Io)?;
        // `Metadata` checks that the tensors follow each other without gaps and that shapes fit their lengths.
        let metadata: Metadata = serde_json::from_slice(&header).map_err(TensorsError::Header)?;
        let data_start = 8 + claimed;
        let described = data_start + metadata.data_len() as u64;
        if described != length {
            return Err(TensorsError::Truncated { described, file: length });
        }
        let tensors = metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { file, data_start, tensors })
    }

    /// Names and what is known about each.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Reads one tensor, converted to f32.
    pub(crate) fn read(&mut self, key: &str) -> Result<Vec<f32>, TensorsError> {
        let info = &self.tensors[key];
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(TensorsError::Io)?;
        self.file.read_exact(&mut bytes).map_err(TensorsError::Io)?;
        match info.dtype {
            Dtype::F32 => Ok(numbers(&bytes, f32::from_le_bytes)),
            Dtype::F16 => Ok(numbers(&bytes, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Ok(numbers(&bytes, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F64 => Ok(numbers(&bytes, |b| f64::from_le_bytes(b) as f32)),
            dtype => Err(TensorsError::Dtype { key: key.to_owned(), dtype }),
        }
    }
}

fn numbers<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|b| convert(*b)).collect()
}

/// A tensor to be written.
pub(crate) struct Outgoing {
    pub(crate) key: String,
    pub(crate) shape: Vec<usize>,
    /// Bytes per number: 4 (F32) or 2 (F16).
    pub(crate) width: usize,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.width
    }
}

/// Writes the header for `tensors`, which are sorted by key; their bytes must follow in the same order.
pub(crate) fn write_header(
    out: &mut impl Write,
    tensors: &[Outgoing],
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    debug_assert!(tensors.is_sorted_by(|a, b| a.key < b.key), "sorted by key, no key twice");
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let dtype = if tensor.width == 2 { "F16" } else { "F32" };
        let info = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.key.clone(), info);
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    text.resize(text.len().next_multiple_of(8), b' '); // the format wants aligned data
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}
