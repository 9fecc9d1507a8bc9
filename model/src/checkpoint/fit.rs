//! Whether files hold what a model needs, and where in them each parameter lies.

use super::single_file::SingleFileTensor;
use super::stored::WeightsFile;
use super::{CheckpointError, TensorsError};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file of weights and its path, for messages.
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    pub(crate) weights: WeightsFile,
}

impl OpenFile {
    pub(crate) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |source: TensorsError| CheckpointError::Tensors { path: path.to_owned(), source };
        Ok(Self { path: path.to_owned(), weights: WeightsFile::open(path).map_err(failed)? })
    }
}

/// Where a parameter's numbers lie: some, or all, of a tensor of a file.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) key: String,
    pub(crate) range: Range<usize>,
}

/// Places by the parameters' full names.
pub(crate) type Places = HashMap<String, Place>;

/// What files offer: today's name → (number of the file, its own name for it).
pub(crate) type Offered = BTreeMap<String, (usize, String)>;

/// What does not fit.
#[derive(Debug, Default)]
pub(crate) struct Misfits {
    pub(crate) missing: Vec<String>,
    pub(crate) unexpected: Vec<String>,
    pub(crate) ill_shaped: Vec<String>,
}

/// Finds every expected tensor among the offered ones.
pub(crate) fn fit(
    expected: &[SingleFileTensor],
    offered: &Offered,
    files: &[OpenFile],
    places: &mut Places,
) -> Misfits {
    let mut misfits = Misfits::default();
    let mut unused: BTreeMap<&str, &str> =
        offered.iter().map(|(name, (_, key))| (name.as_str(), key.as_str())).collect();
    for tensor in expected {
        unused.remove(tensor.key.as_str());
        let Some((file, key)) = offered.get(&tensor.key) else {
            misfits.missing.push(tensor.key.clone());
            continue;
        };
        let stored = &files[*file].weights.tensors()[key];
        if !same_shape(&stored.shape, &tensor.shape) {
            misfits.ill_shaped.push(format!("{key}: {:?} instead of {:?}", stored.shape, tensor.shape));
            continue;
        }
        let length = stored.count() / tensor.parts.len();
        for (index, part) in tensor.parts.iter().enumerate() {
            let range = index * length..(index + 1) * length;
            places.insert(part.clone(), Place { file: *file, key: key.clone(), range });
        }
    }
    misfits.unexpected = unused.into_values().map(str::to_owned).collect();
    misfits
}

impl Misfits {
    /// The error that sums up everything, if there is anything.
    pub(crate) fn check(&self, path: &Path) -> Result<(), CheckpointError> {
        let lists =
            [("missing", &self.missing), ("not expected", &self.unexpected), ("of another shape", &self.ill_shaped)];
        let problems: Vec<String> =
            lists.iter().filter(|(_, keys)| !keys.is_empty()).map(|(what, keys)| summary(what, keys)).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: path.to_owned(), problems: problems.join("; ") })
    }
}

/// The first few keys and how many there are more.
pub(crate) fn summary(what: &str, keys: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = keys.iter().take(SHOWN).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    let more = keys.len().saturating_sub(SHOWN);
    if more > 0 { format!("{what}: {shown} and {more} more") } else { format!("{what}: {shown}") }
}

/// Equal up to trailing ones: old autoencoders store linear layers as 1x1 convolutions.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let trim = |shape: &[usize]| shape.iter().rposition(|n| *n != 1).map_or(0, |last| last + 1);
    a[..trim(a)] == b[..trim(b)]
}
