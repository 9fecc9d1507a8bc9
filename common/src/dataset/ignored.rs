//! Files in the data root that are not used. Silence is a defect: each kind is counted and named once.

use std::collections::BTreeSet;

use super::names::{FileKind, kind, split_extension};
use super::read::{SIDECARS, sidecar_name};
use super::walk::WalkedFolder;

/// A count of files, with the names of the first few.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    count: u64,
    first: Vec<String>,
}

impl Ignored {
    pub(super) fn add(&mut self, path: &str) {
        self.count += 1;
        if self.first.len() < 3 {
            self.first.push(path.to_owned());
        }
    }

    /// Returns the line for the report: `2 images or files <what>: a, b`. None when there is nothing to say.
    pub(super) fn summary(&self, what: &str) -> Option<String> {
        let files = if self.count == 1 { "file is" } else { "files are" };
        let rest = if self.count > self.first.len() as u64 { ", …" } else { "" };
        (self.count > 0).then(|| format!("{} {files} {what}: {}{rest}", self.count, self.first.join(", ")))
    }
}

impl<'a> FromIterator<&'a str> for Ignored {
    fn from_iter<I: IntoIterator<Item = &'a str>>(paths: I) -> Self {
        let mut ignored = Self::default();
        paths.into_iter().for_each(|path| ignored.add(path));
        ignored
    }
}

/// Returns a warning for each misnamed file, and one for each other kind of file that is not used.
pub(super) fn warnings(folders: &[WalkedFolder]) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut yaml = Ignored::default();
    let mut second_captions = Ignored::default();
    let mut lonely_captions = Ignored::default();
    let mut other_images = Ignored::default();
    let mut others = Ignored::default();
    for folder in folders {
        let stems: BTreeSet<&str> = folder.images.iter().map(|name| split_extension(name).0).collect();
        for name in &folder.others {
            let path = folder.file(name);
            let (stem, extension) = split_extension(name);
            let is_caption = stems.contains(stem)
                && SIDECARS.iter().any(|extension| sidecar_name(stem, extension).as_ref() == Some(name));
            match kind(name) {
                FileKind::FolderFile | FileKind::Image => {}
                _ if is_caption => {
                    if extension == "caption" && folder.has(&format!("{stem}.txt")) {
                        second_captions.add(&path);
                    }
                }
                FileKind::Misnamed(meant) => {
                    warnings.push(format!("{path} is ignored: if it is meant to be {meant}, rename it to {meant}"));
                }
                FileKind::Yaml if stems.contains(stem) => yaml.add(&path),
                FileKind::Caption => lonely_captions.add(&path),
                FileKind::OtherImage => other_images.add(&path),
                FileKind::Yaml | FileKind::Other => others.add(&path),
            }
        }
    }
    warnings.extend(yaml.summary("not applied (YAML beside an image, which this version does not read yet)"));
    warnings.extend(second_captions.summary("second to a .txt of the same name, which comes first"));
    warnings.extend(lonely_captions.summary("ignored: no image has that name"));
    warnings.extend(other_images.summary("ignored: not one of the image formats jpg, png, bmp, webp"));
    warnings.extend(others.summary("ignored: neither an image nor a file that ballast knows"));
    warnings
}
