//! Reads a data root into a [`Dataset`]: walk, folder files, then every image's header and caption on several threads.

use std::collections::BTreeMap;
use std::thread;

use super::assemble::assemble;
use super::bucket::buckets;
use super::ignored::Ignored;
use super::read::read_images;
use super::roots::NamedRoot;
use super::sidecar::{Findings, log_applied, read_settings};
use super::walk::{WalkedFolder, walk};
use super::{DataRoots, Dataset, DatasetError, Decimal, Sample};
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
        let roots = DataRoots::new(config.root.as_ref().ok_or(DatasetError::NoRoot)?)?;
        let mut findings = Findings::default();
        let mut walked = Vec::new();
        for root in roots.iter() {
            walked.extend(walk_root(root, &mut findings.warnings)?);
        }
        roots.check_apart()?;
        walked.sort_by(|a: &WalkedFolder, b| a.path.cmp(&b.path));
        let settings = read_settings(&walked, &mut findings);
        let buckets = buckets(config.resolution, config.max_aspect);
        let read = read_images(&walked, threads);
        let (samples, folders) = assemble(&walked, &settings, read, &buckets, &mut findings);
        if !findings.problems.is_empty() {
            return Err(DatasetError::BadFiles { problems: findings.problems });
        }
        if samples.is_empty() {
            return Err(DatasetError::NoImages { roots, skipped: findings.warnings });
        }
        check_occurrences(&samples)?;
        let fingerprint = Self::compute_fingerprint(&samples);
        let (warnings, applied_files) = (findings.warnings, findings.applied);
        let mut dataset = Self { roots, samples, folders, buckets, warnings, applied_files, fingerprint };
        let upscaled: Ignored = dataset.upscaled().map(|sample| sample.path.as_str()).collect();
        dataset.warnings.extend(upscaled.summary("smaller than their bucket: they are enlarged"));
        Ok(dataset)
    }
}

fn walk_root(root: &NamedRoot, warnings: &mut Vec<String>) -> Result<Vec<WalkedFolder>, DatasetError> {
    let cannot_read = |source| DatasetError::Root { path: root.path.clone(), source };
    if !std::fs::metadata(&root.path).map_err(cannot_read)?.is_dir() {
        return Err(DatasetError::NotAFolder { path: root.path.clone() });
    }
    walk(root, warnings).map_err(cannot_read)
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
