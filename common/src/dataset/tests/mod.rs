//! The data root's contract, on small trees written to the disk.

mod cache;
mod captions;
mod duplicates;
mod files;
mod images;
mod order;
mod precedence;
mod roots;
mod tags;
mod yaml;

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::config::DataConfig;

/// A data root in a temporary folder.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    fn image(self, path: &str, width: u32, height: u32) -> Self {
        self.file(path, bmp(width, height))
    }

    /// Writes `count` square images into a folder.
    fn images(self, folder: &str, count: u32) -> Self {
        (0..count).fold(self, |root, number| root.image(&format!("{folder}/{number:04}.bmp"), 512, 512))
    }

    fn config(&self) -> DataConfig {
        DataConfig { root: Some(self.path().into()), ..DataConfig::default() }
    }

    fn scan(&self) -> Result<Dataset, DatasetError> {
        Dataset::scan(&self.config())
    }

    fn dataset(&self) -> Dataset {
        self.scan().unwrap()
    }

    fn error(&self) -> String {
        self.scan().unwrap_err().to_string()
    }
}

/// The header of a picture, and no pixels: scanning reads no more.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = b"BM".to_vec();
    let words: [u32; 13] = [54 + width * height * 3, 0, 54, 40, width, height, 1 | 24 << 16, 0, 0, 0, 0, 0, 0];
    bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
    bytes
}

fn paths(dataset: &Dataset) -> Vec<&str> {
    dataset.samples.iter().map(|sample| sample.path.as_str()).collect()
}
