//! What `torch.save` writes (`.ckpt`, `.bin`, `.pt`): a zip file with a pickle that describes the tensors, and an entry
//! of plain numbers for each storage.
//!
//! The pickle is read as data ([`pickle`]); nothing in it is executed. The result is the place in the file of every
//! tensor, checked against the file's length, so that reading one later takes what it needs and no more.

mod cursor;
mod machine;
mod names;
mod pickle;
mod zip;

use super::stored::{NumberType, StoredTensor};
use names::StorageType;
pub use pickle::PickleError;
use pickle::{Pickle, PickledTensor, Value};
use std::collections::{BTreeMap, HashMap};
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
    /// Written before PyTorch 1.6.
    #[error("it has the format from before PyTorch 1.6, which is not a zip file; load it with torch and save it again")]
    Legacy,
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

/// The start of files in the format from before PyTorch 1.6: a pickled magic number.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The start of a zip file.
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Pickles of models have some hundred kilobytes.
const MAX_PICKLE_BYTES: u64 = 32 << 20;

/// Whether a file that begins so was written by `torch.save`.
pub(crate) fn is_torch(start: &[u8]) -> bool {
    start.starts_with(ZIP_MAGIC) || start.starts_with(LEGACY_MAGIC)
}

/// Finds the tensors of a file: those of `state_dict` where there is one, else those at the top.
pub(crate) fn open(file: &mut File, length: u64) -> Result<BTreeMap<String, StoredTensor>, TorchError> {
    if zip::read_at(file, 0, length.min(LEGACY_MAGIC.len() as u64))?.starts_with(LEGACY_MAGIC) {
        return Err(TorchError::Legacy);
    }
    let entries = zip::entries(file, length)?;
    let folder = archive_folder(&entries)?;
    let mut content = |name: &str, limit: u64| -> Result<Option<Vec<u8>>, TorchError> {
        let Some(entry) = entries.get(&format!("{folder}{name}")) else { return Ok(None) };
        if entry.length > limit {
            return Err(TorchError::Zip { problem: format!("`{name}` has {} bytes", entry.length) });
        }
        let start = zip::content_start(file, *entry, length)?;
        zip::read_at(file, start, entry.length).map(Some)
    };
    if content("byteorder", 100)?.is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(TorchError::BigEndian);
    }
    let bytes = content("data.pkl", MAX_PICKLE_BYTES)?.expect("the folder is where it lies");
    let pickle = Pickle::parse(&bytes).map_err(TorchError::Pickle)?;
    let root = pickle.root();
    let state = pickle.entries(root).find(|(key, value)| *key == "state_dict" && matches!(value, Value::Dict(_)));
    let mut storages = Storages { entries: &entries, folder: &folder, file_length: length, starts: HashMap::new() };
    let mut tensors = BTreeMap::new();
    for (key, value) in pickle.entries(state.map_or(root, |(_, state)| state)) {
        if let Value::Tensor(tensor) = value {
            tensors.insert(key.to_owned(), storages.locate(file, key, tensor)?);
        }
    }
    if tensors.is_empty() { Err(TorchError::Empty) } else { Ok(tensors) }
}

/// The folder of the archive that `data.pkl` lies in, with its `/`.
fn archive_folder(entries: &HashMap<String, zip::Entry>) -> Result<String, TorchError> {
    let mut folders = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).filter(|f| f.ends_with('/'));
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder.to_owned()),
        (Some(_), Some(_)) => Err(TorchError::Zip { problem: "it has several data.pkl".to_owned() }),
        (None, _) => Err(TorchError::Zip { problem: "it has no data.pkl: torch.save did not write it".to_owned() }),
    }
}

/// Finds the numbers of tensors in the file.
struct Storages<'a> {
    entries: &'a HashMap<String, zip::Entry>,
    folder: &'a str,
    file_length: u64,
    /// Where a storage's numbers begin, for those that were looked up.
    starts: HashMap<Box<str>, u64>,
}

impl Storages<'_> {
    fn locate(&mut self, file: &mut File, key: &str, tensor: &PickledTensor) -> Result<StoredTensor, TorchError> {
        let failed = |problem: String| TorchError::Tensor { key: key.to_owned(), problem };
        let name = format!("{}data/{}", self.folder, tensor.storage.key);
        let entry = self.entries.get(&name);
        let entry = *entry.ok_or_else(|| failed(format!("its numbers, `{name}`, are not in the file")))?;
        let start = match self.starts.get(&tensor.storage.key) {
            Some(start) => *start,
            None => {
                let start = zip::content_start(file, entry, self.file_length)?;
                self.starts.insert(tensor.storage.key.clone(), start);
                start
            }
        };
        let width = tensor.storage.kind.bytes();
        let available = entry.length / width;
        let view = View::new(tensor, available).map_err(failed)?;
        Ok(StoredTensor {
            number_type: number_type(tensor.storage.kind),
            shape: view.shape,
            start: start + view.offset * width,
            strides: view.strides,
        })
    }
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
