//! What of a plan is worth a thought before hours of training: each line names the place and what to do about it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::table::{Short, grouped, percent, plural, repeats};
use super::{BucketReport, DuplicateReport, EpochReport, FolderReport, Group};
use crate::config::Remainder;
use crate::dataset::{Bucket, Dataset};
use crate::schedule::{RunSchedule, ScheduleOptions};

/// Above this part of padding a bucket wastes time.
const PADDING_MAX: f64 = 0.25;

/// Above this part of the weight one folder leaves the others nothing.
const SHARE_MAX: f64 = 0.9;

/// Something worth a thought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What kind of thing.
    pub kind: AdviceKind,
    /// The folder or bucket, or `run`.
    pub place: String,
    /// What was found and what can be done about it. Names the place.
    pub message: String,
}

/// Kinds of [`Advice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdviceKind {
    /// Epochs in which nothing is due.
    EmptyEpoch,
    /// A negative loss scale.
    NegativeWeight,
    /// A folder whose images teach nothing.
    NoWeight,
    /// A folder of which no image comes up in the run.
    NeverUsed,
    /// A folder of which some images do not come up in the run.
    RarelyUsed,
    /// A folder with nearly all of the weight.
    OneFolder,
    /// A bucket whose micro-batches are mostly padding.
    StarvingBucket,
    /// A picture that is there under several names.
    Duplicates,
}

impl Advice {
    fn new(kind: AdviceKind, place: &str, message: String) -> Self {
        let place = if place.is_empty() { "." } else { place };
        Self { kind, place: place.to_owned(), message: format!("{place}: {message}") }
    }
}

/// Looks for everything that is worth a thought; of one kind in the order of the report.
pub(super) fn advice(
    dataset: &Dataset,
    groups: &[Group],
    options: &ScheduleOptions,
    run: &RunSchedule,
    epochs: &[EpochReport],
) -> Vec<Advice> {
    let mut found = empty_epochs(run);
    if let Some(first) = epochs.iter().find(|epoch| epoch.occurrences > 0) {
        found.extend(first.folders.iter().filter_map(weight));
        found.extend(first.folders.iter().filter(|_| first.folders.len() > 1).filter_map(one_folder));
    }
    found.extend(groups.iter().filter_map(|group| seldom(dataset, groups, group, options, run.epochs())));
    found.extend(starving_buckets(dataset, options.micro_batch_size, epochs));
    found.sort_by_key(|advice| advice.kind);
    found
}

/// Names the pictures that shift the balance or are taught under two names, and counts the others.
pub(super) fn of_duplicates(duplicates: &[DuplicateReport]) -> Vec<Advice> {
    let (shifting, plain): (Vec<_>, Vec<_>) =
        duplicates.iter().partition(|duplicate| duplicate.folders_differ || duplicate.captions_differ);
    let named = |duplicate: &&DuplicateReport| {
        let DuplicateReport { paths, folders_differ, captions_differ } = duplicate;
        let why = match (folders_differ, captions_differ) {
            (true, true) => "in several folders and under different captions, so that it counts in each",
            (true, false) => "in several folders, so that it counts in each",
            _ => "under different captions",
        };
        let rest: Vec<&str> = paths.iter().skip(1).take(3).map(String::as_str).collect();
        let more = if paths.len() > 4 { ", …" } else { "" };
        let message = format!("the same picture as {}{more}, {why}: keep one, unless it is meant so", rest.join(", "));
        Advice::new(AdviceKind::Duplicates, &paths[0], message)
    };
    let mut advice: Vec<Advice> = shifting.iter().map(named).collect();
    if let Some(first) = plain.first() {
        let copies = plain.iter().map(|duplicate| duplicate.paths.len() as u64 - 1).sum();
        let message = format!(
            "the same picture as {}; all in all {} within a folder, each trained as often as its original: delete them, and \
             say it by a multiplier",
            first.paths[1],
            plural(copies, "copy").replace("copys", "copies"),
        );
        advice.push(Advice::new(AdviceKind::Duplicates, &first.paths[0], message));
    }
    advice
}

fn empty_epochs(run: &RunSchedule) -> Vec<Advice> {
    let empty: Vec<u64> = (0..run.epochs()).filter(|epoch| run.steps_in(*epoch) == 0).collect();
    let Some(first) = empty.first() else { return Vec::new() };
    let which = match empty.len() {
        1 => format!("epoch {first} has"),
        count => format!("{} of its {} have", plural(count as u64, "epoch"), grouped(run.epochs())),
    };
    let them = if empty.len() == 1 { "it" } else { "them" };
    let message =
        format!("{which} 0 steps, because no image is due in {them}: make the multipliers larger and the epochs fewer");
    vec![Advice::new(AdviceKind::EmptyEpoch, "run", message)]
}

fn weight(folder: &FolderReport) -> Option<Advice> {
    if folder.scheduled == 0 || folder.effective_share > 0.0 {
        return None;
    }
    let whose = if folder.own_loss_scale > 0 { "all together" } else { "its loss scale" };
    Some(if folder.effective_share < 0.0 {
        let scale = folder.loss_scale.short();
        let message = format!(
            "the weight of its images is NEGATIVE ({whose} {scale}; effective share {}): training moves AWAY from them. \
             A scale above 0 in its loss_scale.txt teaches them",
            percent(folder.effective_share)
        );
        Advice::new(AdviceKind::NegativeWeight, &folder.path, message)
    } else {
        let uses = plural(folder.scheduled, "use");
        let message = format!(
            "its effective share is 0, so {uses} per epoch cost time and teach nothing: put a scale above 0 into its \
             loss_scale.txt, or leave the folder out by a dot in front of its name"
        );
        Advice::new(AdviceKind::NoWeight, &folder.path, message)
    })
}

fn one_folder(folder: &FolderReport) -> Option<Advice> {
    let is_most = folder.effective_share.abs() > SHARE_MAX;
    is_most.then(|| {
        let message = format!(
            "it has {} of the weight, and all other folders together have the rest: `ballast balance` proposes multipliers \
             that even them out",
            percent(folder.effective_share.abs())
        );
        Advice::new(AdviceKind::OneFolder, &folder.path, message)
    })
}

/// Says of a folder, or of its images with one multiplier, that they come up less than once in the run.
fn seldom(
    dataset: &Dataset,
    groups: &[Group],
    group: &Group,
    options: &ScheduleOptions,
    epochs: u64,
) -> Option<Advice> {
    let uses = group.uses(epochs);
    if uses >= group.images {
        return None;
    }
    let (folder, images) = (&dataset.folders[group.folder as usize], plural(group.images, "image"));
    let multiply = group.multiply.short();
    let is_whole = groups.iter().filter(|other| other.folder == group.folder).count() == 1;
    let which = if is_whole { format!("its {images}") } else { format!("its {images} with multiply {multiply}") };
    let once = repeats_once(epochs);
    let run = plural(epochs, "epoch");
    Some(if uses == 0 {
        let message = format!(
            "none of {which} comes up in {run}, because multiply {multiply} is too small: with {once} each comes up once"
        );
        Advice::new(AdviceKind::NeverUsed, &folder.path, message)
    } else {
        let average = repeats(uses as f64 / group.images as f64);
        let unseen = match options.remainder {
            Remainder::Deck => format!("{} never", grouped(group.images - uses)),
            Remainder::Independent => "many of them never".to_owned(),
        };
        let message = format!(
            "{which} come up {average} times each in {run} on average, {unseen}: fine for preservation; with multiply {once} \
             each comes up once"
        );
        Advice::new(AdviceKind::RarelyUsed, &folder.path, message)
    })
}

/// Returns the multiplier that shows each image once in a run, in a form that one would write.
fn repeats_once(epochs: u64) -> String {
    // Rounded up, so that the run has at least one of each.
    let decimals = epochs.to_string().len() + 1;
    let scale = 10f64.powi(decimals as i32);
    let text = format!("{:.decimals$}", (scale / epochs as f64).ceil() / scale);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What the shown epochs together put into a bucket.
#[derive(Default)]
struct BucketTotal {
    images: u64,
    most: u64,
    occurrences: u64,
    padded: u64,
    micro_batches: u64,
}

fn starving_buckets(dataset: &Dataset, micro_batch_size: u32, epochs: &[EpochReport]) -> Vec<Advice> {
    let mut totals: BTreeMap<Bucket, BucketTotal> = BTreeMap::new();
    for BucketReport { bucket, images, occurrences, micro_batches, padded, .. } in
        epochs.iter().flat_map(|epoch| &epoch.buckets)
    {
        let total = totals.entry(*bucket).or_default();
        total.images = *images;
        total.most = total.most.max(*occurrences);
        total.occurrences += occurrences;
        total.padded += padded;
        total.micro_batches += micro_batches;
    }
    let starving = totals.iter().filter_map(|(bucket, total)| {
        let padding = total.padded as f64 / (total.occurrences + total.padded).max(1) as f64;
        let is_short = total.most > 0 && total.most < u64::from(micro_batch_size);
        (is_short || padding > PADDING_MAX).then(|| {
            let message = starving(dataset, micro_batch_size, *bucket, total, padding, &totals);
            Advice::new(AdviceKind::StarvingBucket, &format!("bucket {}×{}", bucket.width, bucket.height), message)
        })
    });
    starving.collect()
}

fn starving(
    dataset: &Dataset,
    micro_batch_size: u32,
    bucket: Bucket,
    total: &BucketTotal,
    padding: f64,
    totals: &BTreeMap<Bucket, BucketTotal>,
) -> String {
    let size = u64::from(micro_batch_size);
    let uses = plural(total.most, "use");
    let found = match total.most < size {
        true => format!("{uses} per epoch cannot fill a micro-batch of {size}"),
        false => {
            format!("{uses} per epoch leave {:.0} % of its entries empty in micro-batches of {size}", padding * 100.0)
        }
    };
    let lacking = total.most.div_ceil(size) * size - total.most;
    // As many uses as an image of this bucket has, on average: so many images bring the lacking uses.
    let images = (lacking as f64 * total.images as f64 / total.most as f64).ceil().max(1.0) as u64;
    let more = plural(images, "more image");
    let mut message = format!("{found}: {more} of this shape would");
    let nearest = totals.keys().filter(|other| **other != bucket && totals[other].most >= size).min_by(|a, b| {
        let far = |other: &Bucket| (ratio(*other).ln() - ratio(bucket).ln()).abs();
        far(a).total_cmp(&far(b))
    });
    match nearest {
        Some(near) => {
            let which = if total.images == 1 {
                "its image".to_owned()
            } else {
                format!("its {}", plural(total.images, "image"))
            };
            let name = dataset.samples.iter().find(|sample| dataset.bucket_of(sample) == bucket);
            let example = name.map_or(String::new(), |sample| {
                format!(" ({}{})", sample.path, if total.images > 1 { ", …" } else { "" })
            });
            message += &format!(", or crop {which}{example} to the shape of {}×{}", near.width, near.height);
        }
        None => message += ", or a smaller step.micro_batch_size",
    }
    message
}

fn ratio(bucket: Bucket) -> f64 {
    f64::from(bucket.width) / f64::from(bucket.height)
}
