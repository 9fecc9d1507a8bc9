//! Files in the data root that are not used. Silence is a defect: each kind is counted and named once.

use std::collections::BTreeSet;

use super::names::{FileKind, is_folder_file, kind, split_extension};
use super::read::SIDECARS;
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
    let mut misspelt = Ignored::default();
    let mut lonely_sidecars = Ignored::default();
    let mut other_images = Ignored::default();
    let mut others = Ignored::default();
    for folder in folders {
        let stems: BTreeSet<&str> = folder.images.iter().map(|name| split_extension(name).0).collect();
        for name in folder.others.iter().filter(|name| !is_sidecar(name, &stems)) {
            let path = folder.file(name);
            match kind(name) {
                FileKind::FolderFile | FileKind::Image => {}
                FileKind::Misnamed(meant) => {
                    warnings.push(format!("{path} is ignored: if it is meant to be {meant}, rename it to {meant}"));
                }
                FileKind::Caption | FileKind::Yaml => match meant_sidecar(name, folder, &stems) {
                    Some(meant) => misspelt.add(&format!("{path} (rename it to {meant})")),
                    None => lonely_sidecars.add(&path),
                },
                FileKind::OtherImage => other_images.add(&path),
                FileKind::Other => others.add(&path),
            }
        }
    }
    warnings.extend(misspelt.summary("ignored, because it is not named exactly as its image"));
    warnings.extend(lonely_sidecars.summary("ignored: no image has that name"));
    warnings.extend(other_images.summary("ignored: not one of the image formats jpg, png, bmp, webp"));
    warnings.extend(others.summary("ignored: neither an image nor a file that ballast knows"));
    warnings
}

fn is_sidecar(name: &str, stems: &BTreeSet<&str>) -> bool {
    let (stem, extension) = split_extension(name);
    SIDECARS.contains(&extension) && stems.contains(stem) && !is_folder_file(name)
}

/// Finds the name with which a lonely text would belong to an image: of `a.jpg.txt`, `a.txt.txt` and `a.TXT` it is `a.txt`.
fn meant_sidecar(name: &str, folder: &WalkedFolder, stems: &BTreeSet<&str>) -> Option<String> {
    let with = |stem: &str, extension: &str| {
        let extension = extension.to_ascii_lowercase();
        (SIDECARS.contains(&&*extension) && stems.contains(stem)).then(|| format!("{stem}.{extension}"))
    };
    let (stem, extension) = split_extension(name);
    let (inner, hidden) = split_extension(stem);
    if folder.images.iter().any(|image| image == stem) {
        return with(inner, extension);
    }
    with(stem, extension).or_else(|| with(inner, hidden))
}
