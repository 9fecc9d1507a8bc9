//! The safetensors format: eight bytes of length, a JSON header, the tensors.
//!
//! Reading checks every length against the file before it allocates. Writing streams in order of the names, so that
//! the same tensors always give the same bytes.

use super::SavePrecision;
use super::stored::{NumberType, StoredTensor};
use super::torch::TorchError;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

/// Headers of models have some hundred kilobytes, with a long account of their training some megabytes.
const MAX_HEADER_BYTES: u64 = 32 << 20;

/// A file of weights that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// The file system says no.
    #[error("cannot read it")]
    Io(#[source] io::Error),
    /// Shorter than its first eight bytes say, or an absurd length.
    #[error("not a safetensors file, nor one of torch.save: a header of {claimed} bytes in a file of {file}")]
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
    #[error("truncated or damaged: the header describes {described} bytes, the file has {file}{hint}")]
    Truncated {
        /// Bytes according to the header.
        described: u64,
        /// Bytes of the file.
        file: u64,
        /// The first tensor that lies beyond the end.
        hint: String,
    },
    /// A file of `torch.save`.
    #[error("cannot use it as a file of torch.save")]
    Torch(#[source] TorchError),
    /// A number format that is not read.
    #[error("`{key}` is stored as {dtype}; only F32, F16, BF16 and F64 are read")]
    Dtype {
        /// The tensor.
        key: String,
        /// Its format.
        dtype: String,
    },
    /// A weight that no computation survives.
    #[error("`{key}` has a value that is NaN or infinite (as f32): the model is broken")]
    NotFinite {
        /// The tensor.
        key: String,
    },
}

type Opened = (BTreeMap<String, StoredTensor>, BTreeMap<String, String>);

/// Reads the header: tensors and metadata.
pub(crate) fn open(file: &mut File, length: u64) -> Result<Opened, TensorsError> {
    if length < 8 {
        return Err(TensorsError::Length { claimed: 0, file: length });
    }
    let mut prefix = [0; 8];
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
    let infos: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    let described = data_start.saturating_add(metadata.data_len() as u64);
    if described != length {
        let beyond = infos.iter().find(|(_, info)| data_start + info.data_offsets.1 as u64 > length);
        let hint = beyond.map_or(String::new(), |(key, _)| format!("; `{key}` lies beyond its end"));
        return Err(TensorsError::Truncated { described, file: length, hint });
    }
    let tensors = infos.into_iter().map(|(key, info)| {
        let stored = StoredTensor {
            number_type: number_type(info.dtype),
            shape: info.shape.clone(),
            start: data_start + info.data_offsets.0 as u64,
            strides: None,
        };
        (key, stored)
    });
    let words = metadata.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
    Ok((tensors.collect(), words.collect()))
}

fn number_type(dtype: Dtype) -> NumberType {
    match dtype {
        Dtype::F64 => NumberType::F64,
        Dtype::F32 => NumberType::F32,
        Dtype::F16 => NumberType::F16,
        Dtype::BF16 => NumberType::Bf16,
        other => NumberType::Other(format!("{other:?}")),
    }
}

/// A tensor to be written.
pub(crate) struct Outgoing {
    pub(crate) key: String,
    pub(crate) shape: Vec<usize>,
}

/// Writes the header for `tensors`, which are sorted by key; their bytes must follow in the same order.
pub(crate) fn write_header(
    out: &mut impl Write,
    tensors: &[Outgoing],
    precision: SavePrecision,
    metadata: &BTreeMap<String, String>,
) -> io::Result<()> {
    debug_assert!(tensors.is_sorted_by(|a, b| a.key < b.key), "sorted by key, no key twice");
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!(metadata));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.shape.iter().product::<usize>() * precision.bytes();
        let info = json!({"dtype": precision.safetensors(), "shape": tensor.shape, "data_offsets": [offset, end]});
        header.insert(tensor.key.clone(), info);
        offset = end;
    }
    let mut text = serde_json::to_vec(&Value::Object(header))?;
    text.resize(text.len().next_multiple_of(8), b' '); // the format wants aligned data
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)
}
