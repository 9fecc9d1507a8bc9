//! Reads a data root into a [`Dataset`]: walk, folder files, then every image's header and caption on several threads.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::bucket::{buckets, nearest_bucket};
use super::header::{Header, read_header};
use super::ignored::Ignored;
use super::names::{FileKind, kind, split_extension};
use super::sidecar::{Findings, Settings, log_applied, read_settings};
use super::text::read_text;
use super::walk::{WalkedFolder, walk};
use super::{Dataset, DatasetError, Folder, Sample, caption};
use crate::config::DataConfig;

/// More threads than this wait for each other at the disk.
const MAX_THREADS: usize = 16;

/// More occurrences than this would take 8 GB and have no use.
const MAX_OCCURRENCES: u128 = 1_000_000_000;

impl Dataset {
    /// Reads all that lies under the config's data root; the buckets follow from its resolution and largest aspect ratio.
    ///
    /// Logs one line per file that was applied and one per warning.
    ///
    /// # Errors
    /// When the root cannot be read or holds no usable image, and when files in it cannot be understood: all of them at once.
    pub fn scan(config: &DataConfig) -> Result<Self, DatasetError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let dataset = Self::scan_with_threads(config, threads)?;
        log_applied(&dataset);
        for warning in &dataset.warnings {
            tracing::warn!("{warning}");
        }
        Ok(dataset)
    }

    pub(super) fn scan_with_threads(config: &DataConfig, threads: usize) -> Result<Self, DatasetError> {
        let root = config.root.as_deref().ok_or(DatasetError::NoRoot)?;
        let mut findings = Findings::default();
        let walked = walk_root(root, &mut findings.warnings)?;
        let settings: Vec<Settings> = walked.iter().map(|folder| read_settings(folder, &mut findings)).collect();
        if !findings.problems.is_empty() {
            return Err(DatasetError::BadFiles { problems: findings.problems });
        }
        let buckets = buckets(config.resolution, config.max_aspect);
        let read = read_images(&walked, threads);
        let (samples, folders) = assemble(&walked, &settings, read, &buckets, &mut findings.warnings);
        if samples.is_empty() {
            return Err(DatasetError::NoImages { path: root.to_owned(), skipped: findings.warnings });
        }
        check_occurrences(&folders)?;
        let fingerprint = Self::compute_fingerprint(&samples);
        let (root, warnings, applied_files) = (root.to_owned(), findings.warnings, findings.applied);
        let mut dataset = Self { root, samples, folders, buckets, warnings, applied_files, fingerprint };
        let upscaled: Ignored = dataset.upscaled().map(|sample| sample.path.as_str()).collect();
        dataset.warnings.extend(upscaled.summary("smaller than their bucket: they are enlarged"));
        Ok(dataset)
    }
}

fn walk_root(root: &Path, warnings: &mut Vec<String>) -> Result<Vec<WalkedFolder>, DatasetError> {
    let cannot_read = |source| DatasetError::Root { path: root.to_owned(), source };
    if !std::fs::metadata(root).map_err(cannot_read)?.is_dir() {
        return Err(DatasetError::NotAFolder { path: root.to_owned() });
    }
    walk(root, warnings).map_err(cannot_read)
}

/// What one image file gave.
struct ReadImage {
    header: Result<Header, String>,
    caption: String,
    warning: Option<String>,
}

/// Reads all images, folder by folder in order. Threads take the next image that nobody has; which one took it does not show
/// in the result.
fn read_images(folders: &[WalkedFolder], threads: usize) -> Vec<ReadImage> {
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
    let mut all: Vec<(usize, ReadImage)> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().expect("reading an image does not panic")).collect()
    });
    all.sort_unstable_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, image)| image).collect()
}

fn read_image(folder: &WalkedFolder, name: &str) -> ReadImage {
    let header = read_header(&folder.directory.join(name));
    let (caption, warning) = read_caption(folder, split_extension(name).0);
    ReadImage { header, caption, warning }
}

/// Returns the caption of an image: from `NAME.txt`, else from `NAME.caption`, else from its name.
fn read_caption(folder: &WalkedFolder, stem: &str) -> (String, Option<String>) {
    let mut warning = None;
    for name in caption_files(stem).into_iter().filter(|name| folder.has(name)) {
        match read_text(&folder.directory.join(&name)) {
            Ok(text) => {
                if !text.is_clean {
                    warning = Some(format!("{} is neither UTF-8 nor UTF-16: read as Latin-1", folder.file(&name)));
                }
                if let Some(caption) = caption::from_text(&text.text) {
                    return (caption, warning);
                }
            }
            Err(error) => warning = Some(format!("{} cannot be read: {error}", folder.file(&name))),
        }
    }
    (caption::from_name(stem), warning)
}

/// Names that an image's caption may have; a folder's file is never one.
pub(super) fn caption_files(stem: &str) -> Vec<String> {
    let names = [format!("{stem}.txt"), format!("{stem}.caption")];
    names.into_iter().filter(|name| kind(name) != FileKind::FolderFile).collect()
}

/// Puts samples and folders together, and names everything that was left out.
fn assemble(
    walked: &[WalkedFolder],
    settings: &[Settings],
    read: Vec<ReadImage>,
    buckets: &[super::Bucket],
    warnings: &mut Vec<String>,
) -> (Vec<Sample>, Vec<Folder>) {
    let (mut samples, mut folders) = (Vec::with_capacity(read.len()), Vec::new());
    let mut without_caption = Ignored::default();
    let mut read = read.into_iter();
    for (folder, settings) in walked.iter().zip(settings) {
        let first = samples.len();
        for (name, image) in folder.images.iter().zip(read.by_ref()) {
            let path = folder.file(name);
            warnings.extend(image.warning);
            let header = match image.header {
                Ok(header) => header,
                Err(error) => {
                    warnings.push(format!("{path} was skipped: {error}"));
                    continue;
                }
            };
            if image.caption.is_empty() {
                without_caption.add(&path);
            }
            samples.push(Sample {
                path,
                caption: image.caption,
                width: header.width,
                height: header.height,
                bytes: header.bytes,
                bucket: nearest_bucket(buckets, header.width, header.height) as u16,
                folder: folders.len() as u32,
                multiply: settings.multiply,
                loss_scale: settings.loss_scale,
                cond_dropout: None,
                flip_p: None,
                batch_id: None,
            });
        }
        if samples.len() > first {
            let path = if folder.path.is_empty() { ".".to_owned() } else { folder.path.clone() };
            let images = (samples.len() - first) as u64;
            folders.push(Folder { path, images, multiply: settings.multiply, loss_scale: settings.loss_scale });
        }
    }
    samples.sort_by(|a, b| a.path.cmp(&b.path));
    warnings.extend(super::ignored::warnings(walked));
    warnings.extend(without_caption.summary("without a caption: trained on the empty one"));
    (samples, folders)
}

pub(super) fn check_occurrences(folders: &[Folder]) -> Result<(), DatasetError> {
    let most = |folder: &Folder| {
        let (images, multiply) = (u128::from(folder.images), folder.multiply);
        images * u128::from(multiply.whole()) + multiply.fraction_of(images) + u128::from(!multiply.is_whole())
    };
    let occurrences = folders.iter().map(most).sum();
    if occurrences > MAX_OCCURRENCES {
        return Err(DatasetError::TooManyOccurrences { occurrences, limit: MAX_OCCURRENCES });
    }
    Ok(())
}
