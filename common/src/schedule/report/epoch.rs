//! What one epoch gives to each folder and bucket, counted from its schedule.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Group;
use crate::dataset::{Bucket, Dataset, Decimal};
use crate::schedule::EpochSchedule;

/// What an epoch uses.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    pub buckets: Vec<BucketReport>,
}

/// A folder's part of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// How often each of its images is used over the whole run, on average. Of no run none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats_per_image: Option<f64>,
    /// Images whose multiplier or loss scale is their own and not the folder's.
    pub own_values: u64,
    /// Those with a multiplier of their own.
    pub own_multiply: u64,
    /// Those with a loss scale of their own.
    pub own_loss_scale: u64,
}

/// A bucket's part of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BucketReport {
    /// The size.
    #[serde(serialize_with = "as_pair")]
    pub bucket: Bucket,
    /// Images that are brought to it, used in this epoch or not.
    pub images: u64,
    /// Uses of images.
    pub occurrences: u64,
    /// Micro-batches.
    pub micro_batches: u64,
    /// Entries of weight 0.
    pub padded: u64,
    /// Which part of its micro-batches' entries are images. None without any.
    pub fill: Option<f64>,
}

impl EpochReport {
    /// Counts what an epoch's schedule gives to each folder and bucket.
    pub fn new(dataset: &Dataset, schedule: &EpochSchedule) -> Self {
        let mut scheduled = vec![0u64; dataset.folders.len()];
        let mut weights = vec![0f64; dataset.folders.len()];
        let mut buckets = empty_buckets(dataset);
        schedule.for_each_slot(|slot| {
            let report = buckets.get_mut(&slot.bucket).expect("a slot's bucket is that of an image");
            report.occurrences += slot.occurrences.len() as u64;
            report.micro_batches += 1;
            report.padded += u64::from(schedule.micro_batch_size()) - slot.occurrences.len() as u64;
            for occurrence in slot.occurrences {
                let sample = &dataset.samples[occurrence.sample as usize];
                scheduled[sample.folder as usize] += 1;
                weights[sample.folder as usize] += sample.loss_scale;
            }
        });
        buckets.values_mut().for_each(BucketReport::compute_fill);
        Self {
            epoch: schedule.epoch(),
            occurrences: schedule.occurrences(),
            steps: schedule.steps(),
            micro_batches: schedule.micro_batches(),
            padded: schedule.padded(),
            schedule_hash: schedule.hash(),
            folders: folder_reports(dataset, &scheduled, &weights),
            buckets: buckets.into_values().collect(),
        }
    }

    /// Adds how often the images of each folder are used in a run of so many epochs.
    pub(super) fn with_repeats(mut self, dataset: &Dataset, groups: &[Group], epochs: u64) -> Self {
        let mut uses = vec![0u64; dataset.folders.len()];
        groups.iter().for_each(|group| uses[group.folder as usize] += group.uses(epochs));
        for (folder, uses) in self.folders.iter_mut().zip(uses) {
            folder.repeats_per_image = Some(uses as f64 / folder.images as f64);
        }
        self
    }
}

impl BucketReport {
    fn compute_fill(&mut self) {
        let entries = self.occurrences + self.padded;
        self.fill = (entries > 0).then(|| self.occurrences as f64 / entries as f64);
    }
}

fn empty_buckets(dataset: &Dataset) -> BTreeMap<Bucket, BucketReport> {
    let mut buckets = BTreeMap::new();
    for sample in &dataset.samples {
        let bucket = dataset.bucket_of(sample);
        let empty = BucketReport { bucket, images: 0, occurrences: 0, micro_batches: 0, padded: 0, fill: None };
        buckets.entry(bucket).or_insert(empty).images += 1;
    }
    buckets
}

fn folder_reports(dataset: &Dataset, scheduled: &[u64], weights: &[f64]) -> Vec<FolderReport> {
    let occurrences: u64 = scheduled.iter().sum();
    let weight: f64 = weights.iter().map(|weight| weight.abs()).sum();
    let part = |of: f64, total: f64| if total == 0.0 { 0.0 } else { of / total };
    let report = |index: usize| {
        let folder = &dataset.folders[index];
        FolderReport {
            path: folder.path.clone(),
            images: folder.images,
            multiply: folder.multiply,
            loss_scale: folder.loss_scale,
            scheduled: scheduled[index],
            share: part(scheduled[index] as f64, occurrences as f64),
            effective_share: part(weights[index], weight),
            repeats_per_image: None,
            own_values: 0,
            own_multiply: 0,
            own_loss_scale: 0,
        }
    };
    let mut reports: Vec<FolderReport> = (0..dataset.folders.len()).map(report).collect();
    for sample in &dataset.samples {
        let report = &mut reports[sample.folder as usize];
        let (multiply, loss_scale) = (sample.multiply != report.multiply, sample.loss_scale != report.loss_scale);
        report.own_values += u64::from(multiply || loss_scale);
        report.own_multiply += u64::from(multiply);
        report.own_loss_scale += u64::from(loss_scale);
    }
    reports
}

fn as_pair<S: serde::Serializer>(bucket: &Bucket, serializer: S) -> Result<S::Ok, S::Error> {
    [bucket.width, bucket.height].serialize(serializer)
}
