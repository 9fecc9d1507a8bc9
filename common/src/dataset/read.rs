//! Reads the files that belong to one image each, on several threads: its header and the texts beside it. What they mean is
//! decided elsewhere (`assemble`), so that whatever is read here may come from the cache as well.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::DataRoots;
use super::cache::{Content, Known, KnownContent, KnownFiles, ScanCache};
use super::header::{Header, read_header};
use super::names::{is_folder_file, split_extension};
use super::stamp::Stamp;
use super::text::{Text, read_text_into};
use super::threads::work_pieces;
use super::walk::WalkedFolder;

/// Extensions of the files beside an image, weakest first.
pub(super) const SIDECARS: [&str; 4] = ["txt", "caption", "yml", "yaml"];

/// How many images a thread takes at once: few enough to share evenly, many enough not to wait for each other.
const IMAGES_PER_PIECE: usize = 128;

/// What the files of one image say.
#[derive(Debug)]
pub(super) struct ImageFiles {
    pub(super) header: Result<Header, String>,
    /// The texts beside it that are there, in the order of [`SIDECARS`].
    pub(super) sidecars: Vec<Sidecar>,
    /// The image's, when it may be remembered.
    stamp: Option<Stamp>,
}

/// A text beside an image.
#[derive(Debug)]
pub(super) struct Sidecar {
    /// Its extension, one of [`SIDECARS`].
    pub(super) extension: &'static str,
    pub(super) text: Result<Text, String>,
    stamp: Option<Stamp>,
}

/// How to read.
pub(super) struct ReadOptions<'a> {
    pub(super) roots: &'a DataRoots,
    pub(super) cache: Option<&'a ScanCache>,
    pub(super) threads: usize,
    /// When the scan began.
    pub(super) start: SystemTime,
    /// Is told how many images are done, of how many.
    pub(super) progress: &'a (dyn Fn(u64, u64) + Sync),
}

/// Reads all images, folder by folder in order, and says how many of them needed no opening of a file. Threads take the next
/// images that nobody has; which one took them does not show in the result.
pub(super) fn read_images(folders: &[WalkedFolder], options: &ReadOptions<'_>) -> (Vec<ImageFiles>, u64) {
    let total: usize = folders.iter().map(|folder| folder.images.len()).sum();
    let cache = options.cache.filter(|cache| cache.is_worth(total));
    let known = |root| cache.map_or_else(KnownFiles::default, |cache: &ScanCache| cache.load(root, "scan"));
    let known: Vec<KnownFiles> = options.roots.iter().map(|root| known(&root.path)).collect();
    let fresh: Vec<AtomicBool> = known.iter().map(|_| AtomicBool::new(false)).collect();
    let (done, from_cache) = (AtomicU64::new(0), AtomicU64::new(0));
    let pieces: Vec<(&WalkedFolder, Range<usize>)> = folders.iter().flat_map(pieces).collect();
    let read_piece = |piece: usize| {
        let (folder, range) = &pieces[piece];
        let root = options.roots.get(folder.root);
        let (known, start, below) = (&known[folder.root], options.start, root.below(&folder.path));
        let mut reader = ImageReader { folder, known, start, below, buffer: Vec::new(), opened: 0, fresh: false };
        let mut untouched = 0;
        let read = |name: &String| {
            let opened = reader.opened;
            let image = reader.read(name);
            untouched += u64::from(reader.opened == opened);
            image
        };
        let images: Vec<ImageFiles> = folder.images[range.clone()].iter().map(read).collect();
        if reader.fresh {
            fresh[folder.root].store(true, Ordering::Relaxed);
        }
        from_cache.fetch_add(untouched, Ordering::Relaxed);
        let count = images.len() as u64;
        (options.progress)(done.fetch_add(count, Ordering::Relaxed) + count, total as u64);
        images
    };
    let mut images = Vec::with_capacity(total);
    work_pieces(pieces.len(), options.threads, read_piece).into_iter().for_each(|piece| images.extend(piece));
    for (root, (known, fresh)) in known.into_iter().zip(fresh).enumerate() {
        if fresh.into_inner() || known.has_lost_some() {
            remember(known, folders, &images, root, options.roots);
        }
    }
    (images, from_cache.into_inner())
}

fn pieces(folder: &WalkedFolder) -> impl Iterator<Item = (&WalkedFolder, Range<usize>)> {
    let count = folder.images.len();
    (0..count).step_by(IMAGES_PER_PIECE).map(move |from| (folder, from..(from + IMAGES_PER_PIECE).min(count)))
}

/// Reads images of one folder.
struct ImageReader<'a> {
    folder: &'a WalkedFolder,
    known: &'a KnownFiles,
    start: SystemTime,
    /// The folder's path below its root.
    below: &'a str,
    buffer: Vec<u8>,
    /// How many files were opened.
    opened: u64,
    /// Whether any of them may be remembered.
    fresh: bool,
}

impl ImageReader<'_> {
    fn read(&mut self, name: &str) -> ImageFiles {
        let (header, stamp) = self.read_image(name);
        let stem = split_extension(name).0;
        let mut sidecars = Vec::new();
        for extension in SIDECARS {
            if let Some(name) = sidecar_name(stem, extension).filter(|name| self.folder.has(name)) {
                let (text, stamp) = self.read_text(&name);
                sidecars.push(Sidecar { extension, text, stamp });
            }
        }
        ImageFiles { header, sidecars, stamp }
    }

    fn read_image(&mut self, name: &str) -> (Result<Header, String>, Option<Stamp>) {
        let path = self.folder.directory.join(name);
        let stamp = match Stamp::of(&path) {
            Ok(stamp) => stamp,
            Err(error) => return (Err(error.to_string()), None),
        };
        if let Some(Content::Image(header)) = self.known.content(self.below, name, &stamp) {
            return (header, Some(stamp));
        }
        self.opened += 1;
        let header = read_header(&path, stamp.bytes, &mut self.buffer);
        let is_lasting = header.as_ref().err().is_none_or(|error| error.is_in_content);
        (header.map_err(|error| error.text), self.remember(stamp, is_lasting))
    }

    fn read_text(&mut self, name: &str) -> (Result<Text, String>, Option<Stamp>) {
        let path = self.folder.directory.join(name);
        let stamp = match Stamp::of(&path) {
            Ok(stamp) => stamp,
            Err(error) => return (Err(error.to_string()), None),
        };
        if let Some(Content::Text(text)) = self.known.content(self.below, name, &stamp) {
            return (Ok(text), Some(stamp));
        }
        self.opened += 1;
        let text = read_text_into(&path, &mut self.buffer).map_err(|error| error.to_string());
        let is_lasting = text.is_ok();
        (text, self.remember(stamp, is_lasting))
    }

    fn remember(&mut self, stamp: Stamp, is_lasting: bool) -> Option<Stamp> {
        let stamp = Some(stamp).filter(|stamp| is_lasting && stamp.is_settled(self.start));
        self.fresh |= stamp.is_some();
        stamp
    }
}

/// Returns the name of a text beside an image; a folder's file is never one.
pub(super) fn sidecar_name(stem: &str, extension: &str) -> Option<String> {
    let name = format!("{stem}.{extension}");
    (!is_folder_file(&name)).then_some(name)
}

/// Writes down what was read below a root.
fn remember(known: KnownFiles, folders: &[WalkedFolder], images: &[ImageFiles], root: usize, roots: &DataRoots) {
    let Some(mut writer) = known.successor() else { return };
    let mut images = images.iter();
    for folder in folders {
        let mut files = Vec::new();
        for (name, image) in folder.images.iter().zip(images.by_ref()) {
            let content = KnownContent::Image(&image.header);
            files.extend(image.stamp.map(|stamp| Known { name: name.clone(), stamp, content }));
            for sidecar in &image.sidecars {
                let (Some(stamp), Ok(text)) = (sidecar.stamp, &sidecar.text) else { continue };
                let name = format!("{}.{}", split_extension(name).0, sidecar.extension);
                files.push(Known { name, stamp, content: KnownContent::Text(text) });
            }
        }
        if folder.root == root {
            writer.add(roots.get(root).below(&folder.path), files);
        }
    }
    writer.write();
}
