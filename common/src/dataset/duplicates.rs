//! Pictures that are there twice: files of the same bytes under several names.
//!
//! Only files that agree in size, width and height are read whole; their hashes are remembered as a scan's findings are.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use super::cache::{Content, Known, KnownContent, KnownFiles, ScanCache};
use super::stamp::Stamp;
use super::threads::work_pieces;
use super::{Dataset, Sample, ScanOptions, ScanProgress};

type Hash = [u8; blake3::OUT_LEN];

/// Samples whose files hold the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicates {
    /// Indices in [`Dataset::samples`], ascending; two at least.
    pub samples: Vec<usize>,
    /// Whether they are trained under different captions.
    pub captions_differ: bool,
}

impl Dataset {
    /// Finds the images whose files are the same, byte by byte, in the order of their first sample. A file that cannot be
    /// read is equal to none.
    pub fn exact_duplicates(&self, options: &ScanOptions<'_>) -> Vec<Duplicates> {
        let start = ScanCache::start(options.cache.as_ref());
        let candidates = self.candidates();
        let cache = options.cache.as_ref().filter(|cache| cache.is_worth(self.samples.len()));
        let known =
            |root: &Path| cache.map_or_else(KnownFiles::default, |cache: &ScanCache| cache.load(root, "hashes"));
        let known: Vec<KnownFiles> = self.roots.iter().map(|root| known(&root.path)).collect();
        let fresh: Vec<AtomicBool> = known.iter().map(|_| AtomicBool::new(false)).collect();
        let done = AtomicU64::new(0);
        let hash = |piece: usize| {
            let file = self.hash_file(candidates[piece], &known, start);
            if let Some(file) = file.as_ref().filter(|file| file.is_fresh && file.stamp.is_some()) {
                fresh[file.root].store(true, Ordering::Relaxed);
            }
            let (done, total) = (done.fetch_add(1, Ordering::Relaxed) + 1, candidates.len() as u64);
            (options.progress)(ScanProgress::Comparing { done, total });
            file
        };
        let mut files: Vec<HashedFile> =
            work_pieces(candidates.len(), options.threads, hash).into_iter().flatten().collect();
        for (root, (known, fresh)) in known.into_iter().zip(fresh).enumerate() {
            if fresh.into_inner() || known.has_lost_some() {
                self.remember(known, &files, root);
            }
        }
        files.sort_by_key(|file| (file.hash, file.sample));
        let groups = files.chunk_by(|a, b| a.hash == b.hash).filter(|group| group.len() > 1);
        let mut duplicates: Vec<Duplicates> = groups.map(|group| self.duplicates(group)).collect();
        duplicates.sort_by_key(|duplicates| duplicates.samples[0]);
        duplicates
    }

    /// Returns the samples that some other one is like as far as the scan knows, ascending.
    fn candidates(&self) -> Vec<usize> {
        let looks = |sample: &Sample| (sample.bytes, sample.width, sample.height);
        let mut order: Vec<usize> = (0..self.samples.len()).collect();
        order.sort_unstable_by_key(|&index| (looks(&self.samples[index]), index));
        let alike = order.chunk_by(|&a, &b| looks(&self.samples[a]) == looks(&self.samples[b]));
        let mut candidates: Vec<usize> = alike.filter(|group| group.len() > 1).flatten().copied().collect();
        candidates.sort_unstable();
        candidates
    }

    fn hash_file(&self, sample: usize, known: &[KnownFiles], start: SystemTime) -> Option<HashedFile> {
        let path = &self.samples[sample].path;
        let (root, below) = self.roots.root_of(path)?;
        let location = self.roots.locate(path).ok()?;
        let name = path.len() - below.len()..path.len();
        let (folder, file) = below.rsplit_once('/').unwrap_or(("", below));
        let read = || -> io::Result<HashedFile> {
            let stamp = Stamp::of(&location)?;
            if let Some(Content::Hash(hash)) = known[root].content(folder, file, &stamp) {
                return Ok(HashedFile { sample, root, below: name, hash, stamp: Some(stamp), is_fresh: false });
            }
            let hash: Hash = *blake3::Hasher::new().update_reader(File::open(&location)?)?.finalize().as_bytes();
            let stamp = Some(stamp).filter(|stamp| stamp.is_settled(start));
            Ok(HashedFile { sample, root, below: name, hash, stamp, is_fresh: true })
        };
        read().inspect_err(|error| tracing::debug!(path, %error, "not compared with other pictures")).ok()
    }

    fn remember(&self, known: KnownFiles, files: &[HashedFile], root: usize) {
        let Some(mut writer) = known.successor() else { return };
        let place = |file: &HashedFile| {
            let below = &self.samples[file.sample].path[file.below.clone()];
            let (folder, name) = below.rsplit_once('/').unwrap_or(("", below));
            (folder.to_owned(), name.to_owned())
        };
        let mut entries: Vec<(String, Known<'_>)> = Vec::new();
        for file in files.iter().filter(|file| file.root == root) {
            let Some(stamp) = file.stamp else { continue };
            let (folder, name) = place(file);
            entries.push((folder, Known { name, stamp, content: KnownContent::Hash(&file.hash) }));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let mut entries = entries.into_iter().peekable();
        while let Some((folder, first)) = entries.next() {
            let mut files = vec![first];
            while let Some((_, file)) = entries.next_if(|(other, _)| *other == folder) {
                files.push(file);
            }
            writer.add(&folder, files);
        }
        writer.write();
    }

    fn duplicates(&self, group: &[HashedFile]) -> Duplicates {
        let samples: Vec<usize> = group.iter().map(|file| file.sample).collect();
        let caption = |index: &usize| &self.samples[*index].caption;
        let captions_differ = samples.iter().any(|index| caption(index) != caption(&samples[0]));
        Duplicates { samples, captions_differ }
    }
}

struct HashedFile {
    sample: usize,
    root: usize,
    /// Which part of the sample's path lies below the root.
    below: Range<usize>,
    hash: Hash,
    /// When it may be remembered.
    stamp: Option<Stamp>,
    is_fresh: bool,
}
