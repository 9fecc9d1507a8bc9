//! The dataset: the images under the data root, and what the small text files beside them say.
//!
//! [`Dataset::scan`] reads it once, before anything starts, and finds everything that is wrong in one go. What it returns
//! depends on the files' names and contents only: not on times, the root's own path, or the order in which the disk lists them.

mod assemble;
mod bucket;
mod cache;
mod caption;
mod decimal;
mod duplicates;
mod error;
mod fingerprint;
mod header;
mod ignored;
mod json;
mod manifest;
mod names;
mod node;
mod read;
mod repeats;
mod roots;
mod scan;
mod settings;
mod sidecar;
mod stamp;
mod text;
mod threads;
mod values;
mod walk;
mod yaml;

use serde::Serialize;

pub use bucket::{Bucket, SIDE_STEP, buckets, nearest_bucket};
pub use cache::ScanCache;
pub use caption::{Caption, Tag};
pub use decimal::{Decimal, DecimalError};
pub use duplicates::Duplicates;
pub use error::DatasetError;
pub use header::{MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, image_limits};
pub use roots::{DataRoots, PathError};
pub use scan::{ScanOptions, ScanProgress};
pub use text::read_small_text;

/// The images under a data root, with all that is known of them before training.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The data roots. Paths of samples and folders are relative to them.
    pub roots: DataRoots,
    /// All usable images, sorted by the bytes of their relative path.
    pub samples: Vec<Sample>,
    /// All folders that hold a usable image, sorted by path, the root first.
    pub folders: Vec<Folder>,
    /// All buckets of the run's resolution, used or not.
    pub buckets: Vec<Bucket>,
    /// Everything that was ignored, skipped or looks like a mistake; each named once.
    pub warnings: Vec<String>,
    /// Images that cannot be used. [`Dataset::warnings`] names them too.
    pub skipped: Vec<SkippedImage>,
    /// Every file beside the images that was found and applied.
    pub applied_files: Vec<AppliedFile>,
    /// Hash of all that was found: relative paths, sizes, captions and settings, as hexadecimal digits.
    pub fingerprint: String,
}

/// An image with its caption and its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Relative to the data root, with `/`.
    pub path: String,
    /// What the image shows, in words.
    pub caption: Caption,
    /// How good somebody finds the image. Has no effect yet.
    pub rating: Option<f64>,
    /// Width in pixels, once the orientation is applied.
    pub width: u32,
    /// Height in pixels, once the orientation is applied.
    pub height: u32,
    /// Size of the file.
    pub bytes: u64,
    /// Index in [`Dataset::buckets`].
    pub bucket: u16,
    /// Index in [`Dataset::folders`].
    pub folder: u32,
    /// How often the image is used per epoch.
    pub multiply: Decimal,
    /// Weight of the image's loss.
    pub loss_scale: f64,
    /// Chance of an empty caption. None: the run's.
    pub cond_dropout: Option<f64>,
    /// Chance of a horizontal flip. None: the run's.
    pub flip_p: Option<f64>,
    /// Images of one id are batched together where possible.
    pub batch_id: Option<String>,
}

/// A folder that holds images.
#[derive(Debug, Clone, PartialEq)]
pub struct Folder {
    /// Relative to the data root, with `/`; `.` for the root itself.
    pub path: String,
    /// How many usable images lie directly in it.
    pub images: u64,
    /// The folder's multiplier; files beside an image may set another for theirs.
    pub multiply: Decimal,
    /// The folder's loss scale; files beside an image may set another for theirs.
    pub loss_scale: f64,
}

/// An image that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SkippedImage {
    /// Relative to the data root, with `/`.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// A file beside the images that was found and applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedFile {
    /// Relative to the data root, with `/`.
    pub path: String,
    /// What it says.
    pub value: String,
}

impl SkippedImage {
    /// Returns the line of [`Dataset::warnings`] about it.
    pub fn warning(&self) -> String {
        format!("{} was skipped: {}", self.path, self.reason)
    }
}

impl Dataset {
    /// Returns the bucket of a sample.
    pub fn bucket_of(&self, sample: &Sample) -> Bucket {
        self.buckets[usize::from(sample.bucket)]
    }

    /// Returns the samples that have to be enlarged to fill their bucket.
    pub fn upscaled(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| self.bucket_of(sample).upscales(sample.width, sample.height))
    }
}

#[cfg(test)]
mod tests;
