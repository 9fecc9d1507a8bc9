//! The balance table: what each folder gets, before anything is trained. As numbers for programs; `report_text` is for people.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{EpochSchedule, ScheduleOptions};
use crate::config::DataConfig;
use crate::dataset::{Bucket, Dataset, Decimal};

/// What `ballast plan` says.
#[derive(Debug, Clone, Serialize)]
pub struct PlanReport {
    /// What lies in the data root.
    pub dataset: DatasetSummary,
    /// What each epoch uses of it.
    pub epochs: Vec<EpochReport>,
    /// Every sample, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Vec<SampleReport>>,
}

/// What lies in the data root.
#[derive(Debug, Clone, Serialize)]
pub struct DatasetSummary {
    /// Hash of all that was found.
    pub fingerprint: String,
    /// How many usable images.
    pub images: u64,
    /// Everything that was ignored, skipped or looks like a mistake.
    pub warnings: Vec<String>,
    /// Every file beside the images that was applied, with its value.
    #[serde(skip)]
    pub applied_files: Vec<String>,
    /// Names of images that are enlarged.
    #[serde(skip)]
    pub upscaled: Vec<String>,
}

/// What an epoch uses.
#[derive(Debug, Clone, Serialize)]
pub struct EpochReport {
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Scheduled uses of images.
    pub occurrences: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Micro-batches, padded ones included.
    pub micro_batches: u64,
    /// Entries of weight 0 in micro-batches that are not full.
    pub padded: u64,
    /// Hash of the schedule.
    pub schedule_hash: String,
    /// The balance.
    pub folders: Vec<FolderReport>,
    /// Uses and padding per bucket.
    #[serde(skip)]
    pub buckets: Vec<BucketReport>,
}

/// A folder's part of an epoch.
#[derive(Debug, Clone, Serialize)]
pub struct FolderReport {
    /// Relative to the data root; `.` for the root itself.
    pub path: String,
    /// How many usable images it has.
    pub images: u64,
    /// Its multiplier.
    pub multiply: Decimal,
    /// The weight of its images' losses.
    pub loss_scale: f64,
    /// How often its images are used in this epoch, all together.
    pub scheduled: u64,
    /// Its part of all uses.
    pub share: f64,
    /// Its part of all uses × loss scale. Of a negative scale negative; the sizes add up to 1.
    pub effective_share: f64,
}

/// A bucket's part of an epoch.
#[derive(Debug, Clone)]
pub struct BucketReport {
    /// The size.
    pub bucket: Bucket,
    /// Uses of images.
    pub occurrences: u64,
    /// Micro-batches.
    pub micro_batches: u64,
    /// Entries of weight 0.
    pub padded: u64,
}

/// A sample and its settings.
#[derive(Debug, Clone, Serialize)]
pub struct SampleReport {
    /// Relative to the data root.
    pub path: String,
    /// The caption.
    pub caption: String,
    /// How often it is used per epoch.
    pub multiply: Decimal,
    /// The weight of its loss.
    pub loss_scale: f64,
    /// Its chance of an empty caption.
    pub cond_dropout: f64,
    /// Its chance of a flip.
    pub flip_p: f64,
    /// Width and height it is brought to.
    pub bucket: [u32; 2],
}

impl PlanReport {
    /// Plans the first `epochs` epochs. `visit` sees each schedule before it is dropped.
    ///
    /// # Errors
    /// The first one that `visit` returns.
    pub fn compute<E>(
        dataset: &Dataset,
        options: &ScheduleOptions,
        epochs: u64,
        mut visit: impl FnMut(&EpochSchedule) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut report = Self { dataset: DatasetSummary::new(dataset), epochs: Vec::new(), samples: None };
        for epoch in 0..epochs {
            let schedule = EpochSchedule::compute(dataset, options, epoch);
            visit(&schedule)?;
            report.epochs.push(EpochReport::new(dataset, &schedule));
        }
        Ok(report)
    }

    /// Adds every sample, with the run's chances where it has none of its own.
    pub fn with_samples(mut self, dataset: &Dataset, config: &DataConfig) -> Self {
        let report = |sample: &crate::dataset::Sample| {
            let bucket = dataset.bucket_of(sample);
            SampleReport {
                path: sample.path.clone(),
                caption: sample.caption.text(),
                multiply: sample.multiply,
                loss_scale: sample.loss_scale,
                cond_dropout: sample.cond_dropout.unwrap_or(config.cond_dropout),
                flip_p: sample.flip_p.unwrap_or(config.flip_p),
                bucket: [bucket.width, bucket.height],
            }
        };
        self.samples = Some(dataset.samples.iter().map(report).collect());
        self
    }
}

impl DatasetSummary {
    fn new(dataset: &Dataset) -> Self {
        Self {
            fingerprint: dataset.fingerprint.clone(),
            images: dataset.samples.len() as u64,
            warnings: dataset.warnings.clone(),
            applied_files: dataset.applied_files.iter().map(|file| format!("{}: {}", file.path, file.value)).collect(),
            upscaled: dataset.upscaled().map(|sample| sample.path.clone()).collect(),
        }
    }
}

impl EpochReport {
    /// Counts what an epoch's schedule gives to each folder and bucket.
    pub fn new(dataset: &Dataset, schedule: &EpochSchedule) -> Self {
        let mut scheduled = vec![0u64; dataset.folders.len()];
        let mut weights = vec![0f64; dataset.folders.len()];
        let mut buckets: BTreeMap<Bucket, BucketReport> = BTreeMap::new();
        schedule.for_each_slot(|slot| {
            let empty = BucketReport { bucket: slot.bucket, occurrences: 0, micro_batches: 0, padded: 0 };
            let report = buckets.entry(slot.bucket).or_insert(empty);
            report.occurrences += slot.occurrences.len() as u64;
            report.micro_batches += 1;
            report.padded += u64::from(schedule.micro_batch_size()) - slot.occurrences.len() as u64;
            for occurrence in slot.occurrences {
                let sample = &dataset.samples[occurrence.sample as usize];
                scheduled[sample.folder as usize] += 1;
                weights[sample.folder as usize] += sample.loss_scale;
            }
        });
        let total_weight: f64 = weights.iter().map(|weight| weight.abs()).sum();
        let part = |of: f64, total: f64| if total == 0.0 { 0.0 } else { of / total };
        let folders =
            dataset.folders.iter().zip(scheduled).zip(weights).map(|((folder, scheduled), weight)| FolderReport {
                path: folder.path.clone(),
                images: folder.images,
                multiply: folder.multiply,
                loss_scale: folder.loss_scale,
                scheduled,
                share: part(scheduled as f64, schedule.occurrences() as f64),
                effective_share: part(weight, total_weight),
            });
        Self {
            epoch: schedule.epoch(),
            occurrences: schedule.occurrences(),
            steps: schedule.steps(),
            micro_batches: schedule.micro_batches(),
            padded: schedule.padded(),
            schedule_hash: schedule.hash(),
            folders: folders.collect(),
            buckets: buckets.into_values().collect(),
        }
    }
}
