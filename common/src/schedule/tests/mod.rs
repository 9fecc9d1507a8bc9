//! The laws of the schedule, on datasets made up in memory.

mod counts;
mod golden;
mod mixed;
mod scale;
mod steps;
mod trees;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::dataset::{Dataset, Decimal, Folder, Sample, buckets, nearest_bucket};

/// A folder of a made-up dataset.
#[derive(Debug, Clone)]
pub(super) struct MadeUp {
    pub(super) images: u64,
    pub(super) multiply: String,
    /// Sizes of the images, in turn.
    pub(super) sizes: Vec<(u32, u32)>,
}

/// Makes a dataset of square images: (path, images, multiplier) per folder.
pub(super) fn squares(folders: &[(&str, u64, &str)]) -> Dataset {
    let folders = folders.iter().map(|(path, images, multiply)| {
        let folder = MadeUp { images: *images, multiply: (*multiply).to_owned(), sizes: vec![(512, 512)] };
        ((*path).to_owned(), folder)
    });
    dataset(folders.collect())
}

pub(super) fn dataset(made_up: BTreeMap<String, MadeUp>) -> Dataset {
    let buckets = buckets(512, 4.0);
    let (mut samples, mut folders) = (Vec::new(), Vec::new());
    for (path, folder) in made_up {
        let multiply = Decimal::parse(&folder.multiply).unwrap();
        for (index, &(width, height)) in (0..folder.images).zip(folder.sizes.iter().cycle()) {
            samples.push(Sample {
                path: format!("{path}/{index:05}.png"),
                caption: Default::default(),
                rating: None,
                width,
                height,
                bytes: 1,
                bucket: nearest_bucket(&buckets, width, height) as u16,
                folder: folders.len() as u32,
                multiply,
                loss_scale: 1.0,
                cond_dropout: None,
                flip_p: None,
                batch_id: None,
            });
        }
        folders.push(Folder { path, images: folder.images, multiply, loss_scale: 1.0 });
    }
    samples.sort_by(|a: &Sample, b| a.path.cmp(&b.path));
    let fingerprint = Dataset::compute_fingerprint(&samples);
    let (roots, warnings, applied_files) = (Default::default(), Vec::new(), Vec::new());
    Dataset { roots, samples, folders, buckets, warnings, skipped: Vec::new(), applied_files, fingerprint }
}

pub(super) fn small() -> Dataset {
    let sizes = vec![(512, 512), (450, 570), (900, 400)];
    let folder = |images, multiply: &str| MadeUp { images, multiply: multiply.to_owned(), sizes: sizes.clone() };
    dataset(BTreeMap::from([("cats".to_owned(), folder(5, "1.5")), ("dogs".to_owned(), folder(3, "0.4"))]))
}

pub(super) fn options(micro_batch_size: u32, slots: u32) -> ScheduleOptions {
    ScheduleOptions { seed: 555, micro_batch_size, slots, remainder: Remainder::Deck }
}

/// Returns how often each sample is used in an epoch.
fn uses(dataset: &Dataset, schedule: &EpochSchedule) -> Vec<u64> {
    let mut uses = vec![0; dataset.samples.len()];
    let occurrences = schedule.iter().flat_map(|step| step.slots).flat_map(|slot| slot.occurrences);
    occurrences.for_each(|occurrence| uses[occurrence.sample as usize] += 1);
    uses
}

/// Counts images that are in a step more than once.
fn doubles(schedule: &EpochSchedule) -> usize {
    let in_step = |step: StepPlan| {
        let slots = step.slots.iter().flat_map(|slot| &slot.occurrences);
        let mut samples: Vec<u32> = slots.map(|occurrence| occurrence.sample).collect();
        samples.sort_unstable();
        samples.windows(2).filter(|pair| pair[0] == pair[1]).count()
    };
    schedule.iter().map(in_step).sum()
}

/// Any multiplier from 1e-6 to 10 000, with up to 12 decimals.
fn any_multiply() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0u64..4, "[0-9]{1,12}").prop_map(|(whole, fraction)| format!("{whole}.{fraction}1")),
        2 => (1u64..4).prop_map(|whole| whole.to_string()),
        1 => Just("0.5".to_owned()),
        1 => Just("0.000001".to_owned()),
        1 => (100u64..200).prop_map(|whole| format!("{whole}.25")),
    ]
}

fn any_folder() -> impl Strategy<Value = MadeUp> {
    let sizes = prop::sample::subsequence(vec![(512, 512), (640, 384), (300, 500), (2000, 500)], 1..=4);
    (1u64..30, any_multiply(), sizes).prop_map(|(images, multiply, sizes)| MadeUp { images, multiply, sizes })
}

pub(super) fn any_dataset() -> impl Strategy<Value = Dataset> {
    prop::collection::btree_map("[a-d](/[a-d])?", any_folder(), 1..5).prop_map(dataset)
}

fn any_options() -> impl Strategy<Value = ScheduleOptions> {
    let remainder = prop_oneof![3 => Just(Remainder::Deck), 1 => Just(Remainder::Independent)];
    (any::<u64>(), 1u32..7, 1u32..6, remainder).prop_map(|(seed, micro_batch_size, slots, remainder)| ScheduleOptions {
        seed,
        micro_batch_size,
        slots,
        remainder,
    })
}
