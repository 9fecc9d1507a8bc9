//! The small files of a model: configurations, indices, vocabularies.

use serde_json::Value;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A small file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system says no.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No file of its kind is near this size.
    #[error("cannot read {path}: {bytes} bytes are too many for such a file, {limit} at most")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it has.
        bytes: u64,
        /// What would be read.
        limit: u64,
    },
    /// It is no JSON.
    #[error("cannot parse {path}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a file of `limit` bytes at most. None: there is none.
pub(crate) fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FileError::Read { path: path.to_owned(), source }),
    };
    if bytes > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes, limit });
    }
    std::fs::read(path).map(Some).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// Parses a file's content; `path` is for the message.
pub(crate) fn parse_json(path: &Path, bytes: &[u8]) -> Result<Value, FileError> {
    serde_json::from_slice(bytes).map_err(|source| FileError::Json { path: path.to_owned(), source })
}
