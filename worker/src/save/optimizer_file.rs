//! The optimizer's state as a safetensors file, keyed by parameter path so that it fits wherever the paths are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use ballast_model::adamw::AdamW;
use ballast_model::{FlatEntry, FlatLayout};
use safetensors::tensor::{Dtype, Metadata, SafeTensorError, View, serialize_to_file};

use super::SaveError;
use crate::error::WorkerError;

/// Name of the file within a checkpoint.
pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Suffixes of a parameter's two tensors, in the order of the optimizer's buffers.
const SUFFIXES: [&str; 2] = ["exp_avg", "exp_avg_sq"];

/// Names and shapes of two tensors per parameter take some hundred kilobytes.
const HEADER_BYTES_MAX: u64 = 32 << 20;

/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

struct Values<'a> {
    shape: &'a [usize],
    values: &'a [f32],
}

impl View for Values<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Writes the state; the folder around it is what makes it appear at once.
pub(super) fn write_optimizer(path: &Path, layout: &FlatLayout, optimizer: &AdamW) -> Result<(), SaveError> {
    let mut tensors = BTreeMap::new();
    for FlatEntry { path, shape, offset, len, .. } in &layout.entries {
        for (suffix, buffer) in SUFFIXES.iter().zip([&optimizer.exp_avg, &optimizer.exp_avg_sq]) {
            tensors.insert(format!("{path}.{suffix}"), Values { shape, values: &buffer[*offset..offset + len] });
        }
    }
    serialize_to_file(tensors, None, path)
        .map_err(|error| SaveError::Write { path: path.to_owned(), source: io_error(error) })
}

fn io_error(error: SafeTensorError) -> io::Error {
    match error {
        SafeTensorError::IoError(source) => source,
        other => io::Error::other(other),
    }
}

/// Reads the state into an optimizer of the same layout, a piece at a time: it has twice the size of the model.
pub(crate) fn read_optimizer(path: &Path, layout: &FlatLayout, optimizer: &mut AdamW) -> Result<(), WorkerError> {
    let unfit = |problem: String| WorkerError::CheckpointContent { path: path.to_owned(), problem };
    let broken = |error: io::Error| unfit(error.to_string());
    let mut file = File::open(path).map_err(broken)?;
    let length = file.metadata().map_err(broken)?.len();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(broken)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > HEADER_BYTES_MAX.min(length - 8) {
        return Err(unfit(format!("a header of {header_bytes} bytes in a file of {length}")));
    }
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header).map_err(broken)?;
    // Parsing checks that the tensors follow each other without gaps and that shapes fit their lengths.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| unfit(error.to_string()))?;
    let described = 8 + header_bytes + metadata.data_len() as u64;
    if described != length {
        return Err(unfit(format!("its header describes {described} bytes, it has {length}")));
    }
    let tensors = metadata.tensors();
    let expected = layout.entries.len() * SUFFIXES.len();
    if tensors.len() != expected {
        return Err(unfit(format!("it has {} tensors, this model's optimizer has {expected}", tensors.len())));
    }
    let mut bytes = vec![0; PIECE_BYTES];
    for FlatEntry { path, shape, offset, len, .. } in &layout.entries {
        for (suffix, buffer) in SUFFIXES.iter().zip([&mut optimizer.exp_avg, &mut optimizer.exp_avg_sq]) {
            let key = format!("{path}.{suffix}");
            let tensor = tensors.get(&key).ok_or_else(|| unfit(format!("`{key}` is missing")))?;
            if tensor.dtype != Dtype::F32 || tensor.shape != *shape {
                return Err(unfit(format!("`{key}` is {:?} {:?}, not F32 {shape:?}", tensor.dtype, tensor.shape)));
            }
            let start = 8 + header_bytes + tensor.data_offsets.0 as u64;
            file.seek(SeekFrom::Start(start)).map_err(broken)?;
            for to in buffer[*offset..offset + len].chunks_mut(PIECE_BYTES / 4) {
                let bytes = &mut bytes[..to.len() * 4];
                file.read_exact(bytes).map_err(broken)?;
                for (to, from) in to.iter_mut().zip(bytes.as_chunks().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
        }
    }
    Ok(())
}
