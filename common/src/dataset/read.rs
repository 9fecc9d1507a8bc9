//! Reads the files that belong to one image each, on several threads: its header and the texts beside it. What they mean is
//! decided elsewhere (`assemble`), so that whatever is read here may come from a cache as well.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::header::{Header, read_header};
use super::names::{is_folder_file, split_extension};
use super::text::{Text, read_text};
use super::walk::WalkedFolder;

/// Extensions of the files beside an image, weakest first.
pub(super) const SIDECARS: [&str; 4] = ["txt", "caption", "yml", "yaml"];

/// What the files of one image say.
#[derive(Debug)]
pub(super) struct ImageFiles {
    pub(super) header: Result<Header, String>,
    /// The texts beside it that are there, in the order of [`SIDECARS`].
    pub(super) sidecars: Vec<Sidecar>,
}

/// A text beside an image.
#[derive(Debug)]
pub(super) struct Sidecar {
    /// Its extension, one of [`SIDECARS`].
    pub(super) extension: &'static str,
    pub(super) text: Result<Text, String>,
}

/// Reads all images, folder by folder in order. Threads take the next image that nobody has; which one took it does not show
/// in the result.
pub(super) fn read_images(folders: &[WalkedFolder], threads: usize) -> Vec<ImageFiles> {
    let jobs: Vec<(&WalkedFolder, &str)> =
        folders.iter().flat_map(|folder| folder.images.iter().map(move |name| (folder, name.as_str()))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some((index, (folder, name))) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            jobs.get(index).map(|job| (index, job))
        } {
            done.push((index, read_image(folder, name)));
        }
        done
    };
    let mut all: Vec<(usize, ImageFiles)> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("reading an image does not panic")).collect()
    });
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, image)| image).collect()
}

fn read_image(folder: &WalkedFolder, name: &str) -> ImageFiles {
    let header = read_header(&folder.directory.join(name));
    let stem = split_extension(name).0;
    let read = |extension: &'static str| {
        let name = sidecar_name(stem, extension).filter(|name| folder.has(name))?;
        let text = read_text(&folder.directory.join(name)).map_err(|error| error.to_string());
        Some(Sidecar { extension, text })
    };
    ImageFiles { header, sidecars: SIDECARS.into_iter().filter_map(read).collect() }
}

/// Returns the name of a text beside an image; a folder's file is never one.
pub(super) fn sidecar_name(stem: &str, extension: &str) -> Option<String> {
    let name = format!("{stem}.{extension}");
    (!is_folder_file(&name)).then_some(name)
}
