//! Reads a data root into a [`Dataset`]: walk, folder files, then every image's header and caption on several threads.

use std::collections::BTreeMap;
use std::thread;
use std::time::Instant;

use super::assemble::assemble;
use super::bucket::buckets;
use super::cache::ScanCache;
use super::ignored::Ignored;
use super::manifest::{Listed, read_manifest};
use super::read::{ReadOptions, read_images};
use super::repeats::repeats_from_names;
use super::roots::NamedRoot;
use super::sidecar::{Findings, log_applied, read_settings};
use super::walk::{WalkedFolder, walk};
use super::{DataRoots, Dataset, DatasetError, Decimal, Sample};
use crate::config::DataConfig;

/// More threads than this wait for each other at the disk.
const MAX_THREADS: usize = 16;

/// More occurrences than this would take 8 GB and have no use.
const MAX_OCCURRENCES: u128 = 1_000_000_000;

/// How a data root is read. None of it shows in the result.
#[derive(Clone)]
pub struct ScanOptions<'a> {
    /// How many threads read.
    pub threads: usize,
    /// Where to remember what was read.
    pub cache: Option<ScanCache>,
    /// Is told how far it is, from any thread, many times a second.
    pub progress: &'a (dyn Fn(ScanProgress) + Sync),
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanProgress {
    /// Folders are being listed.
    Listing {
        /// So far.
        folders: u64,
        /// So far.
        images: u64,
    },
    /// Images are being read.
    Reading {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
    /// All images are read.
    Done {
        /// In all.
        images: u64,
        /// Of how many no file had to be opened.
        from_cache: u64,
    },
    /// Images that look alike are being compared, see [`Dataset::exact_duplicates`].
    Comparing {
        /// So far.
        done: u64,
        /// In all.
        total: u64,
    },
}

impl ScanOptions<'_> {
    /// Returns what a config asks for, on all cores of this machine.
    pub fn new(config: &DataConfig) -> Self {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self { threads, cache: ScanCache::of_user().filter(|_| config.scan_cache), progress: &|_| {} }
    }
}

impl Dataset {
    /// Reads all that lies under the config's data roots; the buckets follow from its resolution and largest aspect ratio.
    ///
    /// Logs one line per file that was applied and one per warning.
    ///
    /// # Errors
    /// When a root cannot be read or none holds a usable image, and when files in it cannot be understood: all of them at once.
    pub fn scan(config: &DataConfig) -> Result<Self, DatasetError> {
        Self::scan_with(config, &ScanOptions::new(config))
    }

    /// As [`Dataset::scan`], with a say in how.
    ///
    /// # Errors
    /// As [`Dataset::scan`].
    pub fn scan_with(config: &DataConfig, options: &ScanOptions<'_>) -> Result<Self, DatasetError> {
        let clock = Instant::now();
        let (dataset, from_cache) = Self::read(config, options)?;
        log_applied(&dataset);
        for warning in &dataset.warnings {
            tracing::warn!("{warning}");
        }
        let (images, seconds) = (dataset.samples.len(), clock.elapsed().as_secs_f64());
        tracing::info!(images, from_cache, seconds = (seconds * 100.0).round() / 100.0, "data root read");
        Ok(dataset)
    }

    /// Returns the dataset, and of how many images no file had to be opened.
    fn read(config: &DataConfig, options: &ScanOptions<'_>) -> Result<(Self, u64), DatasetError> {
        let start = ScanCache::start(options.cache.as_ref());
        let roots = DataRoots::new(config.root.as_ref().ok_or(DatasetError::NoRoot)?)?;
        let mut findings = Findings::default();
        let walked = find_images(&roots, options, &mut findings)?;
        let mut settings = read_settings(&walked, &mut findings);
        repeats_from_names(&walked, &roots, config.repeats_from_names, &mut settings, &mut findings);
        let buckets = buckets(config.resolution, config.max_aspect);
        let (cache, threads) = (options.cache.as_ref(), options.threads);
        let progress = |done, total| (options.progress)(ScanProgress::Reading { done, total });
        let read_options = ReadOptions { roots: &roots, cache, threads, start, progress: &progress };
        let (read, from_cache) = read_images(&walked, &read_options);
        (options.progress)(ScanProgress::Done { images: read.len() as u64, from_cache });
        let (samples, folders) = assemble(&walked, &settings, read, &buckets, &mut findings);
        if !findings.problems.is_empty() {
            return Err(DatasetError::BadFiles { problems: findings.problems });
        }
        if samples.is_empty() {
            return Err(DatasetError::NoImages { roots, skipped: findings.warnings });
        }
        check_occurrences(&samples)?;
        let fingerprint = Self::compute_fingerprint(&samples);
        let Findings { warnings, skipped, applied: applied_files, .. } = findings;
        let mut dataset = Self { roots, samples, folders, buckets, warnings, skipped, applied_files, fingerprint };
        let upscaled: Ignored = dataset.upscaled().map(|sample| sample.path.as_str()).collect();
        dataset.warnings.extend(upscaled.summary("smaller than their bucket: they are enlarged"));
        Ok((dataset, from_cache))
    }
}

/// Walks through the roots that are folders and reads those that are manifests. Folders come back sorted by path.
fn find_images(
    roots: &DataRoots,
    options: &ScanOptions<'_>,
    findings: &mut Findings,
) -> Result<Vec<WalkedFolder>, DatasetError> {
    let cannot_read = |root: &NamedRoot, source| DatasetError::Root { path: root.path.clone(), source };
    for root in roots.iter().filter(|root| !root.is_manifest()) {
        if !std::fs::metadata(&root.path).map_err(|source| cannot_read(root, source))?.is_dir() {
            return Err(DatasetError::NotAFolder { path: root.path.clone() });
        }
    }
    roots.check_apart()?;
    let (manifests, trees): (Vec<_>, Vec<_>) = roots.iter().enumerate().partition(|(_, root)| root.is_manifest());
    let listed = |folders, images| (options.progress)(ScanProgress::Listing { folders, images });
    let walked =
        walk(&trees, options.threads, &listed).map_err(|(root, source)| cannot_read(roots.get(root), source))?;
    findings.warnings.extend(walked.warnings);
    let (mut folders, mut listed) = (walked.folders, Listed::default());
    for (index, _) in manifests {
        folders.extend(read_manifest(index, roots, &mut listed, &mut findings.problems)?);
    }
    folders.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(folders)
}

pub(super) fn check_occurrences(samples: &[Sample]) -> Result<(), DatasetError> {
    let mut groups: BTreeMap<(u32, Decimal), u128> = BTreeMap::new();
    samples.iter().for_each(|sample| *groups.entry((sample.folder, sample.multiply)).or_default() += 1);
    let most = |((_, multiply), images): (&(u32, Decimal), &u128)| {
        images * u128::from(multiply.whole()) + multiply.fraction_of(*images) + u128::from(!multiply.is_whole())
    };
    let occurrences = groups.iter().map(most).sum();
    if occurrences > MAX_OCCURRENCES {
        return Err(DatasetError::TooManyOccurrences { occurrences, limit: MAX_OCCURRENCES });
    }
    Ok(())
}
