//! An epoch's schedule: every occurrence at its place, readable step by step in any order.

use super::ScheduleOptions;
use super::apart::keep_apart;
use super::counts::Counts;
use super::order::{Packed, Ranges, Stretch};
use crate::dataset::{Bucket, Dataset};
use crate::rng::Streams;

/// The schedule of one epoch. Takes 8 bytes per occurrence and 4 per micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochSchedule {
    epoch: u64,
    micro_batch_size: usize,
    slots: usize,
    /// Sizes by the number that stretches have for them.
    buckets: Vec<Bucket>,
    /// Names the samples that the occurrences' numbers stand for.
    pub(super) paths_hash: [u8; 32],
    pub(super) arrangement: Arrangement,
    /// Micro-batches that are not full, by their place, each with what it and those before it lack.
    short: Vec<(u64, u64)>,
}

/// Occurrences in stretches, cut into micro-batches, and the micro-batches in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arrangement {
    pub(super) micro_batch_size: usize,
    pub(super) slots: usize,
    pub(super) occurrences: Vec<Packed>,
    pub(super) stretches: Vec<Stretch>,
    /// Number of the micro-batch at each place; `slots` places make a step.
    pub(super) places: Vec<u32>,
}

/// What is trained in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// Number of the step within the epoch, from 0.
    pub step: u64,
    /// Position of the step's first occurrence within the epoch.
    pub first_position: u64,
    /// The step's micro-batches. Empty slots of the last step are absent.
    pub slots: Vec<SlotPlan>,
}

/// What is trained in one slot: a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlan {
    /// Number of the slot within the step, from 0.
    pub slot: u32,
    /// The size all images of the micro-batch are brought to.
    pub bucket: Bucket,
    /// The micro-batch: at most `micro_batch_size`, at least one.
    pub occurrences: Vec<Occurrence>,
}

/// One scheduled use of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occurrence {
    /// Index in [`Dataset::samples`].
    pub sample: u32,
    /// Number of this use among the sample's uses in the epoch, from 0.
    pub copy: u32,
    /// Place in the epoch's schedule, from 0, without gaps in training order.
    pub position: u64,
}

impl EpochSchedule {
    /// Computes the schedule of an epoch, counted from 0.
    pub fn compute(dataset: &Dataset, options: &ScheduleOptions, epoch: u64) -> Self {
        let copies = Counts::new(dataset, options).copies(epoch);
        let ranges = Ranges::new(dataset, options);
        let streams = Streams::new(options.seed);
        let stretches = ranges.layout(&copies);
        let occurrences = ranges.occurrences(&copies, &streams, epoch);
        let (micro_batch_size, slots) = (options.micro_batch_size as usize, options.slots as usize);
        let count = micro_batch_count(&stretches, micro_batch_size);
        let mut places: Vec<u32> = (0..count).collect();
        streams.keyed("schedule.places", &[epoch.into()]).shuffle(&mut places);
        let mut arrangement = Arrangement { micro_batch_size, slots, occurrences, stretches, places };
        keep_apart(&mut arrangement, &copies, &ranges.images(&copies));
        let short = arrangement.short_places();
        let (buckets, paths_hash) = (dataset.buckets.clone(), hash_paths(dataset));
        Self { epoch, micro_batch_size, slots, buckets, paths_hash, arrangement, short }
    }

    /// Returns the number of the epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns how many occurrences the epoch has.
    pub fn occurrences(&self) -> u64 {
        self.arrangement.occurrences.len() as u64
    }

    /// Returns how many steps the epoch has. 0 when no image is due in it.
    pub fn steps(&self) -> u64 {
        self.micro_batches().div_ceil(self.slots as u64)
    }

    /// Returns how many micro-batches the epoch has.
    pub fn micro_batches(&self) -> u64 {
        self.arrangement.places.len() as u64
    }

    /// Returns how many entries of weight 0 fill up the micro-batches that are not full.
    pub fn padded(&self) -> u64 {
        self.micro_batches() * self.micro_batch_size as u64 - self.occurrences()
    }

    /// Returns what is trained in a step.
    ///
    /// # Panics
    /// When the epoch has no such step.
    pub fn step(&self, step: u64) -> StepPlan {
        assert!(step < self.steps(), "step {step} of an epoch of {} steps", self.steps());
        let first_place = step * self.slots as u64;
        let first_position = self.position_of_place(first_place);
        let mut position = first_position;
        let places = first_place..(first_place + self.slots as u64).min(self.micro_batches());
        let slot_plan = |(slot, place): (u32, u64)| {
            let (bucket, micro_batch) = self.arrangement.micro_batch(place as usize);
            let occurrences = micro_batch.iter().zip(position..).map(|(packed, position)| Occurrence {
                sample: packed.sample,
                copy: u32::from(packed.copy),
                position,
            });
            let plan = SlotPlan { slot, bucket: self.buckets[usize::from(bucket)], occurrences: occurrences.collect() };
            position += plan.occurrences.len() as u64;
            plan
        };
        StepPlan { step, first_position, slots: (0..).zip(places).map(slot_plan).collect() }
    }

    /// Returns all steps in training order.
    pub fn iter(&self) -> impl Iterator<Item = StepPlan> + '_ {
        (0..self.steps()).map(|step| self.step(step))
    }

    /// Returns how many entries a micro-batch has once it is filled up.
    pub fn micro_batch_size(&self) -> u32 {
        self.micro_batch_size as u32
    }

    /// Returns the position of the first occurrence at a place: all before it are full, but for the short ones.
    fn position_of_place(&self, place: u64) -> u64 {
        let short_before = self.short.partition_point(|(short, _)| *short < place);
        let lacking = short_before.checked_sub(1).map_or(0, |last| self.short[last].1);
        place * self.micro_batch_size as u64 - lacking
    }
}

impl Arrangement {
    /// Returns the number of the stretch that a place's micro-batch is cut from.
    pub(super) fn stretch_at(&self, place: usize) -> usize {
        self.stretch_of(self.places[place])
    }

    /// Returns the number of the stretch that a micro-batch is cut from.
    pub(super) fn stretch_of(&self, micro_batch: u32) -> usize {
        // Empty stretches share their number with the next one; the last is the one that is not empty.
        self.stretches.partition_point(|stretch| stretch.first_micro_batch <= micro_batch) - 1
    }

    /// Returns the indices of the occurrences at a place.
    pub(super) fn indices(&self, place: usize) -> std::ops::Range<usize> {
        let micro_batch = self.places[place];
        let stretch = &self.stretches[self.stretch_of(micro_batch)];
        let start = (micro_batch - stretch.first_micro_batch) as usize * self.micro_batch_size;
        let end = (start + self.micro_batch_size).min(stretch.length);
        stretch.start + start..stretch.start + end
    }

    /// Returns the bucket and the occurrences at a place.
    pub(super) fn micro_batch(&self, place: usize) -> (u16, &[Packed]) {
        (self.stretches[self.stretch_at(place)].bucket, &self.occurrences[self.indices(place)])
    }

    /// Returns the places of a step.
    pub(super) fn places_of(&self, step: usize) -> std::ops::Range<usize> {
        step * self.slots..((step + 1) * self.slots).min(self.places.len())
    }

    /// Returns how many steps there are.
    pub(super) fn steps(&self) -> usize {
        self.places.len().div_ceil(self.slots)
    }

    /// Numbers each stretch's micro-batches anew in the order of their places. Their contents are random already, so the order
    /// is as random as before, and whoever reads the epoch step by step goes through memory straight.
    pub(super) fn number_by_place(&mut self) {
        let mut next: Vec<u32> = self.stretches.iter().map(|stretch| stretch.first_micro_batch).collect();
        for place in 0..self.places.len() {
            let stretch = self.stretch_at(place);
            self.places[place] = next[stretch];
            next[stretch] += 1;
        }
    }

    fn short_places(&self) -> Vec<(u64, u64)> {
        let is_last = |micro_batch: u32| {
            let stretch = &self.stretches[self.stretch_of(micro_batch)];
            let last = stretch.first_micro_batch as usize + stretch.length.div_ceil(self.micro_batch_size) - 1;
            last == micro_batch as usize && !stretch.length.is_multiple_of(self.micro_batch_size)
        };
        let short = self.places.iter().enumerate().filter(|(_, micro_batch)| is_last(**micro_batch));
        let lacking = short.scan(0, |total, (place, _)| {
            *total += (self.micro_batch_size - self.indices(place).len()) as u64;
            Some((place as u64, *total))
        });
        lacking.collect()
    }
}

/// Counts the micro-batches that stretches are cut into.
pub(super) fn micro_batch_count(stretches: &[Stretch], micro_batch_size: usize) -> u32 {
    stretches.last().map_or(0, |last| last.first_micro_batch + last.length.div_ceil(micro_batch_size) as u32)
}

fn hash_paths(dataset: &Dataset) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("ballast sample paths v1");
    for sample in &dataset.samples {
        hasher.update(&(sample.path.len() as u64).to_le_bytes()).update(sample.path.as_bytes());
    }
    *hasher.finalize().as_bytes()
}
