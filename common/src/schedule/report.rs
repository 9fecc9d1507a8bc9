//! The balance report: what each folder and bucket gets, before anything is trained. As numbers for programs; `text` is for
//! people, `advice` says what of it is worth a thought, `changes` compares two of them.

mod advice;
mod changes;
mod changes_text;
mod epoch;
mod table;
mod text;

use std::collections::BTreeMap;

use serde::Serialize;

pub use advice::{Advice, AdviceKind};
pub use changes::{Changes, Planned};
pub use epoch::{BucketReport, EpochReport, FolderReport};
pub(super) use table::{Short, Table, grouped, percent, plural, repeats};
pub use text::TextOptions;

use super::{EpochSchedule, Roster, RunSchedule, ScheduleOptions};
use crate::config::DataConfig;
use crate::dataset::{Dataset, Decimal, Sample, SkippedImage};

/// What `ballast plan` says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanReport {
    /// What lies in the data root.
    pub dataset: DatasetSummary,
    /// The run as a whole.
    pub run: RunReport,
    /// What each of the epochs that were asked for uses of the data.
    pub epochs: Vec<EpochReport>,
    /// What of all this is worth a thought.
    pub advice: Vec<Advice>,
    /// Every sample, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Vec<SampleReport>>,
}

/// What lies in the data root.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetSummary {
    /// Hash of all that was found.
    pub fingerprint: String,
    /// How many usable images.
    pub images: u64,
    /// Everything that was ignored, skipped or looks like a mistake.
    pub warnings: Vec<String>,
    /// Images that cannot be used.
    pub skipped: Vec<SkippedImage>,
    /// Images that are enlarged to fill their bucket.
    pub upscaled: Vec<String>,
    /// Pictures that are there under several names. None when nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<Vec<DuplicateReport>>,
    /// Every file beside the images that was applied, with its value.
    #[serde(skip)]
    pub applied_files: Vec<String>,
}

/// A picture that is there under several names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DuplicateReport {
    /// Images whose files are the same, relative to the data root.
    pub paths: Vec<String>,
    /// Whether they lie in more than one folder, so that the picture weighs in each.
    pub folders_differ: bool,
    /// Whether they are trained under more than one caption.
    pub captions_differ: bool,
}

/// The run as a whole.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// How many epochs it has.
    pub epochs: u64,
    /// Optimizer steps of all of them.
    pub steps: u64,
    /// Occurrences of all of them.
    pub occurrences: u64,
    /// Entries of a micro-batch.
    pub micro_batch_size: u32,
    /// Micro-batches of a step.
    pub slots: u32,
}

/// A sample and its settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
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

/// Which epochs a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epochs {
    /// How many are counted out, from the first.
    pub shown: u64,
    /// How many the run has.
    pub run: u64,
}

impl PlanReport {
    /// Plans a run. `visit` sees each of the schedules that are shown before it is dropped.
    ///
    /// # Errors
    /// The first one that `visit` returns.
    pub fn compute<E>(
        dataset: &Dataset,
        options: &ScheduleOptions,
        epochs: Epochs,
        mut visit: impl FnMut(&EpochSchedule) -> Result<(), E>,
    ) -> Result<Self, E> {
        let roster = Roster::of(dataset);
        let run = RunSchedule::of(&roster, options, epochs.run);
        let groups = groups(dataset);
        let mut shown = Vec::new();
        for epoch in 0..epochs.shown {
            let schedule = EpochSchedule::of(&roster, options, epoch);
            visit(&schedule)?;
            shown.push(EpochReport::new(dataset, &schedule).with_repeats(dataset, &groups, epochs.run));
        }
        let report = RunReport {
            epochs: epochs.run,
            steps: run.steps(),
            occurrences: groups.iter().map(|group| group.uses(epochs.run)).sum(),
            micro_batch_size: options.micro_batch_size,
            slots: options.slots,
        };
        let advice = advice::advice(dataset, &groups, options, &run, &shown);
        Ok(Self { dataset: DatasetSummary::new(dataset), run: report, epochs: shown, advice, samples: None })
    }

    /// Adds every sample, with the run's chances where it has none of its own.
    pub fn with_samples(mut self, dataset: &Dataset, config: &DataConfig) -> Self {
        self.samples = Some(dataset.samples.iter().map(|sample| SampleReport::new(dataset, sample, config)).collect());
        self
    }
}

impl PlanReport {
    /// Adds the pictures that are there under several names: each a list of samples whose files are the same.
    pub fn with_duplicates(mut self, dataset: &Dataset, found: impl IntoIterator<Item = Vec<usize>>) -> Self {
        let duplicates: Vec<DuplicateReport> =
            found.into_iter().map(|samples| DuplicateReport::new(dataset, &samples)).collect();
        self.advice.extend(advice::of_duplicates(&duplicates));
        self.dataset.duplicates = Some(duplicates);
        self
    }
}

impl DuplicateReport {
    fn new(dataset: &Dataset, samples: &[usize]) -> Self {
        let samples: Vec<&Sample> = samples.iter().map(|&sample| &dataset.samples[sample]).collect();
        Self {
            paths: samples.iter().map(|sample| sample.path.clone()).collect(),
            folders_differ: samples.iter().any(|sample| sample.folder != samples[0].folder),
            captions_differ: samples.iter().any(|sample| sample.caption != samples[0].caption),
        }
    }
}

impl DatasetSummary {
    fn new(dataset: &Dataset) -> Self {
        Self {
            fingerprint: dataset.fingerprint.clone(),
            images: dataset.samples.len() as u64,
            warnings: dataset.warnings.clone(),
            skipped: dataset.skipped.clone(),
            upscaled: dataset.upscaled().map(|sample| sample.path.clone()).collect(),
            duplicates: None,
            applied_files: dataset.applied_files.iter().map(|file| format!("{}: {}", file.path, file.value)).collect(),
        }
    }
}

impl SampleReport {
    fn new(dataset: &Dataset, sample: &Sample, config: &DataConfig) -> Self {
        let bucket = dataset.bucket_of(sample);
        Self {
            path: sample.path.clone(),
            caption: caption_text(sample),
            multiply: sample.multiply,
            loss_scale: sample.loss_scale,
            cond_dropout: sample.cond_dropout.unwrap_or(config.cond_dropout),
            flip_p: sample.flip_p.unwrap_or(config.flip_p),
            bucket: [bucket.width, bucket.height],
        }
    }
}

/// Returns the caption as a person reads it.
fn caption_text(sample: &Sample) -> String {
    sample.caption.text()
}

/// The images of one folder that have one multiplier: what counts are made for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: u32,
    multiply: Decimal,
    images: u64,
}

impl Group {
    /// Returns how often its images are used in the first `epochs` epochs, all together.
    fn uses(&self, epochs: u64) -> u64 {
        let all = u128::from(self.images) * u128::from(epochs);
        let uses = all * u128::from(self.multiply.whole()) + self.multiply.fraction_of(all);
        u64::try_from(uses).unwrap_or(u64::MAX)
    }
}

fn groups(dataset: &Dataset) -> Vec<Group> {
    let mut images: BTreeMap<(u32, Decimal), u64> = BTreeMap::new();
    for sample in &dataset.samples {
        *images.entry((sample.folder, sample.multiply)).or_default() += 1;
    }
    let group = |((folder, multiply), images)| Group { folder, multiply, images };
    images.into_iter().map(group).collect()
}

#[cfg(test)]
mod tests;
