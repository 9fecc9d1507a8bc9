//! The optimizer's state as a safetensors file, keyed by parameter path so that it fits wherever the paths are the same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use ballast_model::adamw::AdamW;
use ballast_model::{FlatEntry, FlatLayout};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, View, serialize_to_file};

use super::SaveError;
use crate::error::WorkerError;

/// Name of the file within a checkpoint.
pub(crate) const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Suffixes of a parameter's two tensors, in the order of the optimizer's buffers.
const SUFFIXES: [&str; 2] = ["exp_avg", "exp_avg_sq"];

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

/// Reads the state into an optimizer of the same layout.
pub(crate) fn read_optimizer(path: &Path, layout: &FlatLayout, optimizer: &mut AdamW) -> Result<(), WorkerError> {
    let unfit = |problem: String| WorkerError::CheckpointContent { path: path.to_owned(), problem };
    let bytes = std::fs::read(path).map_err(|error| unfit(error.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unfit(error.to_string()))?;
    let expected = layout.entries.len() * SUFFIXES.len();
    if tensors.len() != expected {
        return Err(unfit(format!("it has {} tensors, this model's optimizer has {expected}", tensors.len())));
    }
    for FlatEntry { path, shape, offset, len, .. } in &layout.entries {
        for (suffix, buffer) in SUFFIXES.iter().zip([&mut optimizer.exp_avg, &mut optimizer.exp_avg_sq]) {
            let key = format!("{path}.{suffix}");
            let tensor = tensors.tensor(&key).map_err(|_| unfit(format!("`{key}` is missing")))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                return Err(unfit(format!("`{key}` is {:?} {:?}, not F32 {shape:?}", tensor.dtype(), tensor.shape())));
            }
            for (to, from) in buffer[*offset..offset + len].iter_mut().zip(tensor.data().chunks_exact(4)) {
                *to = f32::from_le_bytes(from.try_into().expect("four bytes"));
            }
        }
    }
    Ok(())
}
