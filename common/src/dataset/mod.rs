//! The dataset: the images under the data root, and what the small text files beside them say.
//!
//! [`Dataset::scan`] reads it once, before anything starts, and finds everything that is wrong in one go. What it returns
//! depends on the files' names and contents only: not on times, the root's own path, or the order in which the disk lists them.

mod assemble;
mod bucket;
mod caption;
mod decimal;
mod error;
mod header;
mod ignored;
mod names;
mod read;
mod roots;
mod scan;
mod sidecar;
mod text;
mod walk;

use serde::Serialize;

pub use bucket::{Bucket, SIDE_STEP, buckets, nearest_bucket};
pub use decimal::{Decimal, DecimalError};
pub use error::DatasetError;
pub use header::{MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE, image_limits};
pub use roots::{DataRoots, PathError};

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
    pub caption: String,
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
    /// The folder's multiplier.
    pub multiply: Decimal,
    /// The folder's loss scale.
    pub loss_scale: f64,
}

/// A file beside the images that was found and applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AppliedFile {
    /// Relative to the data root, with `/`.
    pub path: String,
    /// What it says.
    pub value: String,
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

    /// Hashes what makes two datasets the same: relative paths, sizes, captions and settings. Neither times nor the root's
    /// place on the disk enter, so a copy of the data has the same fingerprint.
    pub fn compute_fingerprint(samples: &[Sample]) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("ballast dataset fingerprint v1");
        for sample in samples {
            update_text(&mut hasher, &sample.path);
            hasher.update(&sample.bytes.to_le_bytes());
            hasher.update(&sample.width.to_le_bytes()).update(&sample.height.to_le_bytes());
            update_text(&mut hasher, &sample.caption);
            update_text(&mut hasher, &sample.multiply.to_string());
            hasher.update(&sample.loss_scale.to_bits().to_le_bytes());
            for chance in [sample.cond_dropout, sample.flip_p] {
                hasher.update(&[u8::from(chance.is_some())]).update(&chance.unwrap_or(0.0).to_bits().to_le_bytes());
            }
            hasher.update(&[u8::from(sample.batch_id.is_some())]);
            update_text(&mut hasher, sample.batch_id.as_deref().unwrap_or(""));
        }
        hasher.finalize().to_hex().to_string()
    }
}

fn update_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

#[cfg(test)]
mod tests;
