//! What makes a data root unusable.

use std::io;
use std::path::{Path, PathBuf};

use super::DataRoots;

/// More files than this are counted, not named: one mistake of a script may be in every file that it wrote.
const MAX_SHOWN: usize = 100;

/// A data root that cannot be trained on as it is.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// Nobody said where the images are.
    #[error("data.root is not set")]
    NoRoot,
    /// The root is not there, or may not be read.
    #[error("cannot read the data root {path}")]
    Root {
        /// The root as given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The root is a file.
    #[error("the data root {path} is no folder")]
    NotAFolder {
        /// The root as given.
        path: PathBuf,
    },
    /// Two roots that share images.
    #[error("{}", overlap_text(.outer, .inner))]
    Overlap {
        /// The root that holds the other.
        outer: PathBuf,
        /// The root inside it, or the same again.
        inner: PathBuf,
    },
    /// Files that balance the data and cannot be understood.
    #[error("{}", lines(.problems))]
    BadFiles {
        /// One per file: its name, what stands there, and what is allowed, in a line for each thing that is wrong.
        problems: Vec<String>,
    },
    /// Nothing to train on.
    #[error("no usable image under {roots}{}", skipped_text(.skipped))]
    NoImages {
        /// The roots as given.
        roots: DataRoots,
        /// Why images that were there are not usable.
        skipped: Vec<String>,
    },
    /// The multipliers ask for more than a schedule can hold.
    #[error("the multipliers make {occurrences} occurrences per epoch; at most {limit} are possible")]
    TooManyOccurrences {
        /// In the fullest epoch.
        occurrences: u128,
        /// The most that is possible.
        limit: u128,
    },
}

impl DatasetError {
    /// Returns what would mend it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            DatasetError::NoRoot | DatasetError::Root { .. } => "data.root, or --data, is the folder with the images",
            DatasetError::NotAFolder { .. } => {
                "give the folder with the images, or a manifest whose name ends in .json"
            }
            DatasetError::Overlap { .. } => {
                "give each folder once; a multiply.txt in it makes its images count more often"
            }
            DatasetError::BadFiles { .. } => "mend these files, or delete them: without a file the default holds",
            DatasetError::NoImages { .. } => "images end in .jpg, .jpeg, .png, .bmp, .webp or .jfif",
            DatasetError::TooManyOccurrences { .. } => "make the multipliers smaller and the number of epochs larger",
        };
        Some(hint.to_owned())
    }
}

fn overlap_text(outer: &Path, inner: &Path) -> String {
    match outer == inner {
        true => format!("the data root {} is given twice", outer.display()),
        false => format!("the data root {} shares images with the data root {}", inner.display(), outer.display()),
    }
}

fn lines(problems: &[String]) -> String {
    let head = match problems.len() {
        1 => "1 file in the data root cannot be understood".to_owned(),
        count => format!("{count} files in the data root cannot be understood"),
    };
    let text = problems.iter().take(MAX_SHOWN).fold(head, |text, problem| format!("{text}\n  {problem}"));
    match problems.len().saturating_sub(MAX_SHOWN) {
        0 => text,
        more => format!("{text}\n  … and {more} more"),
    }
}

fn skipped_text(skipped: &[String]) -> String {
    skipped.iter().take(5).fold(String::new(), |text, reason| format!("{text}\n  {reason}"))
}
