//! The roster: what the schedule has to know of the images, and no more.
//!
//! Paths and captions are gone; an image takes one byte where there are at most 256 pairs of bucket and batch id. So the
//! schedule of a hundred million images fits into memory that their names alone would not fit into.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ids::{Ids, Segment, most_uses};
use super::numbers::Numbers;
use crate::dataset::{Bucket, Dataset, Decimal};

/// The images of a dataset, as far as the schedule depends on them. Serves all epochs.
#[derive(Debug, Clone)]
pub struct Roster {
    /// Names the samples that the schedule's numbers stand for.
    pub(super) paths_hash: [u8; 32],
    /// Sizes by the number that ranges have for them.
    pub(super) buckets: Vec<Bucket>,
    /// By bucket, named ids first, so that their tails move one way.
    pub(super) ranges: Vec<Range>,
    /// For each sample its range.
    pub(super) range_of: Numbers,
    pub(super) groups: Vec<Group>,
    pub(super) ids: Arc<Ids>,
}

/// Images that may share a micro-batch: those of one bucket and batch id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) bucket: u16,
    pub(super) batch_id: Option<String>,
}

/// The images of one folder that have one multiplier.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) folder: String,
    pub(super) multiply: Decimal,
    pub(super) images: u32,
    /// Numbers of the segments that the group's images are in, in their order.
    pub(super) segments: Vec<u32>,
    /// Where the group's bits begin, when it has a fraction.
    pub(super) first_bit: u32,
}

/// An image, as far as the schedule depends on it.
#[derive(Debug, Clone, Copy)]
pub struct RosterSample<'a> {
    /// Relative to the data root, with `/`.
    pub path: &'a str,
    /// Index of its folder among those that [`RosterBuilder::new`] was given.
    pub folder: u32,
    /// How often it is used per epoch.
    pub multiply: Decimal,
    /// Index of its bucket among those that [`RosterBuilder::new`] was given.
    pub bucket: u16,
    /// Images of one id are batched together where possible.
    pub batch_id: Option<&'a str>,
}

/// The images are too many for a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{images} images are used up to {uses} times per epoch together, more than {} times", RosterError::MAX_USES)]
pub struct RosterError {
    /// How many images there are.
    pub images: u64,
    /// How often they are used in an epoch, if all fractions of multipliers are rounded up.
    pub uses: u64,
}

impl RosterError {
    /// The most uses of images that an epoch may have: they are numbered in 32 bits.
    pub const MAX_USES: u64 = u32::MAX as u64;
}

impl Roster {
    /// Takes from a dataset what the schedule has to know.
    ///
    /// # Panics
    /// When the images are used more than [`RosterError::MAX_USES`] times per epoch: [`Dataset::scan`] refuses such data.
    pub fn of(dataset: &Dataset) -> Self {
        let folders = dataset.folders.iter().map(|folder| folder.path.clone()).collect();
        let mut builder = RosterBuilder::new(dataset.buckets.clone(), folders);
        for sample in &dataset.samples {
            builder.push(&RosterSample {
                path: &sample.path,
                folder: sample.folder,
                multiply: sample.multiply,
                bucket: sample.bucket,
                batch_id: sample.batch_id.as_deref(),
            });
        }
        builder.finish().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Returns how many images there are.
    pub fn images(&self) -> u64 {
        self.range_of.len() as u64
    }

    /// Visits the ranges of a group's images, in the order of the images.
    pub(super) fn visit_ranges(&self, group: &Group, mut visit: impl FnMut(u32)) {
        for &segment in &group.segments {
            let first = self.ids.segments()[segment as usize].first_sample;
            (first..self.ids.end_of(segment as usize)).for_each(|sample| visit(self.range_of.get(sample as usize)));
        }
    }

    /// Returns how many bits say which images are used once more: one for each image whose multiplier has a fraction.
    pub(super) fn bits(&self) -> usize {
        self.groups.iter().filter(|group| !group.multiply.is_whole()).map(|group| group.images as usize).sum()
    }
}

/// Takes up the images one by one, in the order of their paths.
pub struct RosterBuilder {
    buckets: Vec<Bucket>,
    folders: Vec<String>,
    paths: PathsHasher,
    /// Ranges in the order in which they were met first.
    ranges: Vec<Range>,
    default_ranges: Vec<Option<u32>>,
    named_ranges: HashMap<String, BTreeMap<u16, u32>>,
    range_of: Numbers,
    groups: Vec<Group>,
    group_numbers: HashMap<(u32, Decimal), u32>,
    /// Segments with the number of each one's group. Numbers and bits come when all groups are known.
    segments: Vec<(u32, u32)>,
    /// Folder and multiplier of the image before.
    last: Option<(u32, Decimal)>,
    images: u64,
}

impl RosterBuilder {
    /// Begins with no images. They name their buckets and folders by index.
    pub fn new(buckets: Vec<Bucket>, folders: Vec<String>) -> Self {
        Self {
            default_ranges: vec![None; buckets.len()],
            buckets,
            folders,
            paths: PathsHasher::new(),
            ranges: Vec::new(),
            named_ranges: HashMap::new(),
            range_of: Numbers::new(),
            groups: Vec::new(),
            group_numbers: HashMap::new(),
            segments: Vec::new(),
            last: None,
            images: 0,
        }
    }

    /// Takes up the next image.
    pub fn push(&mut self, sample: &RosterSample<'_>) {
        self.images += 1;
        if self.images > RosterError::MAX_USES {
            return; // `finish` says so
        }
        self.paths.update(sample.path);
        let range = self.range(sample.bucket, sample.batch_id);
        self.range_of.push(range);
        let key = (sample.folder, sample.multiply);
        if self.last != Some(key) {
            self.last = Some(key);
            self.begin_segment(key);
        }
        let (_, group) = self.segments.last().expect("the first image begins a segment");
        self.groups[*group as usize].images += 1;
    }

    /// Returns the roster of all images taken up.
    ///
    /// # Errors
    /// When they are too many.
    pub fn finish(mut self) -> Result<Roster, RosterError> {
        let uses = |group: &Group| u64::from(group.images).saturating_mul(most_uses(group.multiply));
        let uses = self.groups.iter().map(uses).fold(0, u64::saturating_add);
        if uses.max(self.images) > RosterError::MAX_USES {
            return Err(RosterError { images: self.images, uses: uses.max(self.images) });
        }
        self.sort_ranges();
        let ids = self.number();
        Ok(Roster {
            paths_hash: self.paths.finish(),
            buckets: self.buckets,
            ranges: self.ranges,
            range_of: self.range_of,
            groups: self.groups,
            ids: Arc::new(ids),
        })
    }

    fn range(&mut self, bucket: u16, batch_id: Option<&str>) -> u32 {
        let next = self.ranges.len() as u32;
        let known = match batch_id {
            None => self.default_ranges[usize::from(bucket)].get_or_insert(next),
            Some(id) if self.named_ranges.contains_key(id) => {
                self.named_ranges.get_mut(id).expect("it was there just now").entry(bucket).or_insert(next)
            }
            Some(id) => self.named_ranges.entry(id.to_owned()).or_default().entry(bucket).or_insert(next),
        };
        if *known == next {
            self.ranges.push(Range { bucket, batch_id: batch_id.map(str::to_owned) });
        }
        *known
    }

    fn begin_segment(&mut self, (folder, multiply): (u32, Decimal)) {
        let next = self.groups.len() as u32;
        let group = *self.group_numbers.entry((folder, multiply)).or_insert(next);
        if group == next {
            let folder = self.folders[folder as usize].clone();
            self.groups.push(Group { folder, multiply, images: 0, segments: Vec::new(), first_bit: 0 });
        }
        self.groups[group as usize].segments.push(self.segments.len() as u32);
        self.segments.push((self.images as u32 - 1, group));
    }

    /// Brings the ranges into their order. Every bucket gets a default one, because named ones hand their tails to it.
    fn sort_ranges(&mut self) {
        for bucket in self.ranges.iter().map(|range| range.bucket).collect::<Vec<_>>() {
            self.range(bucket, None);
        }
        let mut order: Vec<u32> = (0..self.ranges.len() as u32).collect();
        // `None` sorts before `Some`, so the flag in front puts it behind.
        order.sort_by_key(|&range| {
            let Range { bucket, batch_id } = &self.ranges[range as usize];
            (*bucket, batch_id.is_none(), batch_id.clone())
        });
        let mut numbers = vec![0; order.len()];
        order.iter().zip(0..).for_each(|(&range, number)| numbers[range as usize] = number);
        self.range_of.replace(&numbers);
        self.ranges.sort_by(|a, b| {
            (a.bucket, a.batch_id.is_none(), &a.batch_id).cmp(&(b.bucket, b.batch_id.is_none(), &b.batch_id))
        });
    }

    /// Gives each segment its numbers and bits.
    fn number(&mut self) -> Ids {
        let mut bits = 0;
        for group in self.groups.iter_mut().filter(|group| !group.multiply.is_whole()) {
            group.first_bit = bits;
            bits += group.images;
        }
        let mut next_bit: Vec<u32> = self.groups.iter().map(|group| group.first_bit).collect();
        let ends = self.segments.iter().skip(1).map(|(first, _)| *first).chain([self.images as u32]);
        let mut first_id = 0;
        let segment = |(&(first_sample, group), end): (&(u32, u32), u32)| {
            let multiply = self.groups[group as usize].multiply;
            let (whole, most) = (multiply.whole() as u32, most_uses(multiply) as u32);
            let first_bit = next_bit[group as usize];
            let segment = Segment { first_sample, first_id, whole, most, first_bit };
            next_bit[group as usize] += end - first_sample;
            first_id += (end - first_sample) * most;
            segment
        };
        let mut segments: Vec<Segment> = self.segments.iter().zip(ends).map(segment).collect();
        segments.push(Segment { first_sample: self.images as u32, first_id, whole: 0, most: 0, first_bit: bits });
        Ids::new(segments)
    }
}

/// Hashes paths, many at a time: the hash function is several times faster on long input.
struct PathsHasher {
    hasher: blake3::Hasher,
    waiting: Vec<u8>,
}

impl PathsHasher {
    const AT_ONCE: usize = 64 * 1024;

    fn new() -> Self {
        let hasher = blake3::Hasher::new_derive_key("ballast sample paths v1");
        Self { hasher, waiting: Vec::with_capacity(Self::AT_ONCE) }
    }

    fn update(&mut self, path: &str) {
        if self.waiting.len() + path.len() + 8 > Self::AT_ONCE {
            self.hasher.update(&self.waiting);
            self.waiting.clear();
        }
        self.waiting.extend_from_slice(&(path.len() as u64).to_le_bytes());
        self.waiting.extend_from_slice(path.as_bytes());
    }

    fn finish(mut self) -> [u8; 32] {
        self.hasher.update(&self.waiting);
        *self.hasher.finalize().as_bytes()
    }
}
