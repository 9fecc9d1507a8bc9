//! `[data]`: the images and how they are prepared.

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::data_root::DataRoot;

/// The images and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// The folder with the images, or a `.json` manifest, or a list of such. Training needs it.
    pub root: Option<DataRoot>,
    /// The side in pixels of a square of the area that images are brought to.
    pub resolution: u32,
    /// The longest side of a bucket over its shortest, at most.
    pub max_aspect: f64,
    /// The chance that a caption is replaced by the empty one.
    pub cond_dropout: f64,
    /// Whether the tags of every caption come in another order each time an image is used.
    pub shuffle_tags: bool,
    /// How many tags behind the main prompt keep their place when tags are shuffled.
    pub keep_tags: u32,
    /// The chance that an image is mirrored left to right.
    pub flip_p: f64,
    /// How much may be cropped off each side at random, as a fraction of the shorter one.
    pub crop_jitter: f64,
    /// Whether each epoch's schedule is written to `logs/ep{N}_batch_schedule.txt`.
    pub write_schedule: bool,
    /// How the images are chosen that the fraction of a multiplier asks for.
    pub remainder: Remainder,
    /// Whether folders named `3_a subject` say how often and under which caption their images are used.
    pub repeats_from_names: bool,
    /// Whether what was read of the images is remembered in the user's cache folder, so that the next start is faster.
    pub scan_cache: bool,
}

/// How the images are chosen that the fraction of a multiplier asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remainder {
    /// Dealt from a shuffled deck, so that all come up equally often.
    Deck,
    /// Drawn afresh each epoch.
    Independent,
}

impl DataConfig {
    pub(super) fn check(&self, check: &mut Check) {
        if let Some(root) = &self.root {
            let is_good = !root.paths().is_empty() && root.paths().iter().all(|path| !path.as_os_str().is_empty());
            check.that(
                "root",
                "empty",
                is_good,
                "the path of a folder or of a .json manifest, or a list of such paths",
            );
        }
        check.within("resolution", self.resolution, 64..=8192, "a whole number of pixels from 64 to 8192");
        check.within("max_aspect", self.max_aspect, 1.0..=64.0, "a number from 1 to 64");
        check.chance("cond_dropout", self.cond_dropout);
        check.chance("flip_p", self.flip_p);
        check.within("crop_jitter", self.crop_jitter, 0.0..=0.25, "a number from 0 to 0.25");
    }
}
