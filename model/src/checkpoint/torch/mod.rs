//! What `torch.save` writes (`.ckpt`, `.bin`, `.pt`): a pickle that describes the tensors, and plain numbers for each
//! storage; in a zip file today ([`archive`]), one behind the other of old ([`legacy`]).
//!
//! The pickle is read as data ([`pickle`]); nothing in it is executed. The result is the place in the file of every
//! tensor, checked against the file's length, so that reading one later takes what it needs and no more.

mod archive;
mod cursor;
mod legacy;
mod machine;
mod names;
mod pickle;
mod zip;

use super::checksum::Checksums;
use super::stored::{NumberType, StoredTensor};
use names::StorageType;
pub use pickle::PickleError;
use pickle::{Pickle, PickledTensor, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;

/// A file of `torch.save` that is not read.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// The file system says no.
    #[error("cannot read it")]
    Io(#[source] io::Error),
    /// Damaged, or no zip file at all.
    #[error("the zip file is damaged: {problem}")]
    Zip {
        /// What is wrong.
        problem: String,
    },
    /// PyTorch stores entries as they are.
    #[error("its entry `{entry}` is {how}: PyTorch writes it plain; load the file with torch and save it again")]
    Packed {
        /// Name of the entry.
        entry: String,
        /// `compressed` or `encrypted`.
        how: &'static str,
    },
    /// An entry whose bytes have changed.
    #[error("its entry `{entry}` is damaged: the checksum of its bytes is {found:08x} instead of {stated:08x}")]
    Checksum {
        /// Name of the entry.
        entry: String,
        /// CRC-32 as the zip file has it.
        stated: u32,
        /// CRC-32 of what is there.
        found: u32,
    },
    /// The format from before PyTorch 1.6, damaged.
    #[error("the file, which has the format from before PyTorch 1.6, is damaged: {problem}")]
    Legacy {
        /// What is wrong.
        problem: String,
    },
    /// The pickle.
    #[error("cannot take its pickle for a model")]
    Pickle(#[source] PickleError),
    /// Numbers of another machine.
    #[error("its numbers are in big-endian order, which is not read")]
    BigEndian,
    /// A tensor that does not fit its storage, or has none.
    #[error("`{key}`: {problem}")]
    Tensor {
        /// The tensor.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Sound, but there is nothing in it.
    #[error("there are no tensors in it")]
    Empty,
}

impl TorchError {
    pub(crate) fn checksum(entry: &str, stated: u32, found: u32) -> Self {
        Self::Checksum { entry: entry.to_owned(), stated, found }
    }
}

/// The start of files in the format from before PyTorch 1.6: a pickled magic number.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The start of a zip file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Whether a file that begins so was written by `torch.save`.
pub(crate) fn is_torch(start: &[u8]) -> bool {
    start.starts_with(ZIP_MAGIC) || start.starts_with(LEGACY_MAGIC)
}

/// Where a storage's numbers lie in the file, in bytes.
#[derive(Clone, Copy, Debug)]
struct Extent {
    start: u64,
    length: u64,
}

/// Finds the tensors of a file, and the checksums of their numbers: those of `state_dict` where there is one, else those
/// at the top.
pub(crate) fn open(file: &mut File, length: u64) -> Result<(BTreeMap<String, StoredTensor>, Checksums), TorchError> {
    if zip::read_at(file, 0, length.min(LEGACY_MAGIC.len() as u64))?.starts_with(LEGACY_MAGIC) {
        let (pickle, storages) = legacy::open(file, length)?;
        let find = |key: &str| {
            let storage = storages.get(key).copied();
            Ok(storage.ok_or_else(|| format!("its numbers, the storage `{key}`, are not in the file")))
        };
        return Ok((tensors(&pickle, find)?, Checksums::default()));
    }
    let (pickle, mut archive) = archive::open(file, length)?;
    let tensors = tensors(&pickle, |key| archive.find(file, key))?;
    Ok((tensors, Checksums::new(archive.into_checksums())))
}

/// `find` gives the place of a storage, or says that it is not there.
fn tensors(
    pickle: &Pickle,
    mut find: impl FnMut(&str) -> Result<Result<Extent, String>, TorchError>,
) -> Result<BTreeMap<String, StoredTensor>, TorchError> {
    let root = pickle.root();
    let state = pickle.entries(root).find(|(key, value)| *key == "state_dict" && matches!(value, Value::Dict(_)));
    let mut tensors = BTreeMap::new();
    for (key, value) in pickle.entries(state.map_or(root, |(_, state)| state)) {
        if let Value::Tensor(tensor) = value {
            let located = find(&tensor.storage.key)?.and_then(|extent| locate(tensor, extent));
            let located = located.map_err(|problem| TorchError::Tensor { key: key.to_owned(), problem })?;
            tensors.insert(key.to_owned(), located);
        }
    }
    if tensors.is_empty() { Err(TorchError::Empty) } else { Ok(tensors) }
}

fn locate(tensor: &PickledTensor, storage: Extent) -> Result<StoredTensor, String> {
    let width = tensor.storage.kind.bytes();
    let view = View::new(tensor, storage.length / width)?;
    Ok(StoredTensor {
        number_type: number_type(tensor.storage.kind),
        shape: view.shape,
        start: storage.start + view.offset * width,
        strides: view.strides,
    })
}

/// A tensor's place in its storage, checked; in numbers.
struct View {
    offset: u64,
    shape: Vec<usize>,
    /// `None` where the numbers follow each other.
    strides: Option<Vec<usize>>,
}

impl View {
    fn new(tensor: &PickledTensor, available: u64) -> Result<Self, String> {
        let shown = || format!("shape {:?}, strides {:?}, offset {}", tensor.shape, tensor.strides, tensor.offset);
        let outside = || format!("{} do not fit a storage of {available} numbers", shown());
        let unsigned =
            |numbers: &[i64]| -> Option<Vec<u64>> { numbers.iter().map(|n| u64::try_from(*n).ok()).collect() };
        let (Some(shape), Some(strides), Ok(offset)) =
            (unsigned(&tensor.shape), unsigned(&tensor.strides), u64::try_from(tensor.offset))
        else {
            return Err(format!("a negative number in {}", shown()));
        };
        if shape.len() != strides.len() {
            return Err(format!("not one stride per dimension: {}", shown()));
        }
        let count = shape.iter().try_fold(1u64, |count, n| count.checked_mul(*n)).ok_or_else(outside)?;
        // The last number's distance from the first; no more numbers than the storage has, so that a stride of 0
        // cannot make a giant out of one number.
        let reach = |(n, stride): (&u64, &u64)| n.saturating_sub(1).checked_mul(*stride);
        let span = shape.iter().zip(&strides).try_fold(0u64, |sum, axis| sum.checked_add(reach(axis)?));
        let end = span.and_then(|span| offset.checked_add(span)?.checked_add(u64::from(count > 0)));
        if count > available || end.is_none_or(|end| end > available) {
            return Err(outside());
        }
        let to_usize = |numbers: Vec<u64>| numbers.into_iter().map(|n| n as usize).collect::<Vec<_>>();
        let strides = if is_contiguous(&shape, &strides) { None } else { Some(to_usize(strides)) };
        Ok(Self { offset, shape: to_usize(shape), strides })
    }
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    for (n, stride) in shape.iter().zip(strides).rev() {
        if *n != 1 && *stride != expected {
            return false;
        }
        expected *= n.max(&1);
    }
    true
}

fn number_type(kind: StorageType) -> NumberType {
    match kind {
        StorageType::F64 => NumberType::F64,
        StorageType::F32 => NumberType::F32,
        StorageType::F16 => NumberType::F16,
        StorageType::Bf16 => NumberType::Bf16,
        StorageType::Other(name, _) => NumberType::Other(name.to_owned()),
    }
}
