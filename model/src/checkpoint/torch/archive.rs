//! What `torch.save` writes since PyTorch 1.6: a zip file with the pickle in `data.pkl`, and an entry below `data/` for each
//! storage. Every entry has a checksum, unless the writer was told not to compute any.

use super::pickle::Pickle;
use super::{Extent, TorchError, zip};
use crate::checkpoint::checksum::Checksum;
use std::collections::HashMap;
use std::fs::File;

/// Pickles of models have some hundred kilobytes.
pub(super) const MAX_PICKLE_BYTES: u64 = 32 << 20;

/// The entries of an open archive.
pub(super) struct Archive {
    entries: HashMap<String, zip::Entry>,
    /// The folder of the archive that `data.pkl` lies in, with its `/`.
    folder: String,
    file_length: u64,
    /// Entries that were looked up, with their checksums.
    found: HashMap<String, Checksum>,
}

/// Reads the directory and the pickle.
pub(super) fn open(file: &mut File, length: u64) -> Result<(Pickle, Archive), TorchError> {
    let entries = zip::entries(file, length)?;
    let folder = folder(&entries)?;
    let archive = Archive { entries, folder, file_length: length, found: HashMap::new() };
    if archive.content(file, "byteorder", 100)?.is_some_and(|order| order.trim_ascii() != b"little") {
        return Err(TorchError::BigEndian);
    }
    let bytes = archive.content(file, "data.pkl", MAX_PICKLE_BYTES)?.expect("the folder is where it lies");
    Ok((Pickle::parse(&bytes).map_err(TorchError::Pickle)?, archive))
}

impl Archive {
    /// Finds a storage's numbers.
    pub(super) fn find(&mut self, file: &mut File, key: &str) -> Result<Result<Extent, String>, TorchError> {
        let name = format!("{}data/{key}", self.folder);
        if let Some(found) = self.found.get(&name) {
            return Ok(Ok(Extent { start: found.start, length: found.length }));
        }
        let Some(entry) = self.entries.get(&name) else {
            return Ok(Err(format!("its numbers, `{name}`, are not in the file")));
        };
        let start = zip::content_start(file, *entry, self.file_length)?;
        let extent = Extent { start, length: entry.length };
        let checksum = Checksum { entry: name.clone(), start, length: entry.length, crc: entry.crc };
        self.found.insert(name, checksum);
        Ok(Ok(extent))
    }

    /// Checksums of the storages that were found.
    pub(super) fn into_checksums(self) -> Vec<Checksum> {
        self.found.into_values().filter(|checksum| checksum.crc != 0).collect()
    }

    /// Reads a small entry whole.
    fn content(&self, file: &mut File, name: &str, limit: u64) -> Result<Option<Vec<u8>>, TorchError> {
        let name = format!("{}{name}", self.folder);
        let Some(entry) = self.entries.get(&name) else { return Ok(None) };
        if entry.length > limit {
            return Err(TorchError::Zip { problem: format!("`{name}` has {} bytes", entry.length) });
        }
        let start = zip::content_start(file, *entry, self.file_length)?;
        let bytes = zip::read_at(file, start, entry.length)?;
        let found = crc32fast::hash(&bytes);
        if entry.crc != 0 && entry.crc != found {
            return Err(TorchError::checksum(&name, entry.crc, found));
        }
        Ok(Some(bytes))
    }
}

fn folder(entries: &HashMap<String, zip::Entry>) -> Result<String, TorchError> {
    let mut folders = entries.keys().filter_map(|name| name.strip_suffix("data.pkl")).filter(|f| f.ends_with('/'));
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder.to_owned()),
        (Some(_), Some(_)) => Err(TorchError::Zip { problem: "it has several data.pkl".to_owned() }),
        (None, _) => Err(TorchError::Zip { problem: "it has no data.pkl: torch.save did not write it".to_owned() }),
    }
}
