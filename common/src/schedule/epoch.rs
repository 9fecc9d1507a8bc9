//! An epoch's schedule: every occurrence at its place, readable step by step in any order.

use super::ScheduleOptions;
use super::apart::{keep_apart, spread_micro_batches};
use super::arrangement::Arrangement;
use super::counts::Counts;
use super::order::{Ranges, Stretch, layout, micro_batch_count};
use super::places::Places;
use super::roster::Roster;
use super::threads;
use crate::dataset::{Bucket, Dataset};
use crate::rng::{KeyedRng, Streams};

/// The schedule of one epoch. Takes 4 bytes per occurrence and 8 per micro-batch; from a million micro-batches on 1 to 2, unless
/// there are more than 256 pairs of bucket and batch id.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochSchedule {
    epoch: u64,
    /// Sizes by the number that stretches have for them.
    pub(super) buckets: Vec<Bucket>,
    /// Names the samples that the occurrences' numbers stand for.
    pub(super) paths_hash: [u8; 32],
    pub(super) arrangement: Arrangement,
    /// Micro-batches that are not full, by their place, each with what it and those before it lack.
    short: Vec<(u64, u64)>,
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

/// What is trained in one slot of a step, as [`EpochSchedule::for_each_slot`] shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRef<'a> {
    /// Number of the step within the epoch, from 0.
    pub step: u64,
    /// Number of the slot within the step, from 0.
    pub slot: u32,
    /// The size all images of the micro-batch are brought to.
    pub bucket: Bucket,
    /// The micro-batch: at most `micro_batch_size`, at least one.
    pub occurrences: &'a [Occurrence],
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
        Self::of(&Roster::of(dataset), options, epoch)
    }

    /// Computes the schedule of an epoch, counted from 0. Who needs several epochs makes the roster once.
    pub fn of(roster: &Roster, options: &ScheduleOptions, epoch: u64) -> Self {
        Self::on_threads(roster, options, epoch, threads::worth(roster.images()))
    }

    /// Computes the schedule on so many threads, which changes how long it takes and nothing else.
    pub(super) fn on_threads(roster: &Roster, options: &ScheduleOptions, epoch: u64, threads: usize) -> Self {
        let streams = Streams::new(options.seed);
        let (micro_batch_size, slots) = (options.micro_batch_size as usize, options.slots as usize);
        let uses = Counts::new(roster, options).uses(epoch, threads);
        let ranges = Ranges::count(&uses, threads);
        let stretches = layout(&roster.ranges, &ranges.lengths, micro_batch_size);
        let images = uses.has_copies().then_some(&ranges.images[..]);
        let (places, occurrences) = threads::both(
            threads,
            || places(&stretches, images, options, streams.keyed("schedule.places", &[epoch.into()])),
            || ranges.occurrences(&uses, &streams, epoch, micro_batch_size),
        );
        let ids = roster.ids.clone();
        let mut arrangement = Arrangement { micro_batch_size, slots, occurrences, ids, stretches, places };
        if uses.has_copies() {
            keep_apart(&mut arrangement, &uses, threads);
        }
        let short = arrangement.short_places();
        let (buckets, paths_hash) = (roster.buckets.clone(), roster.paths_hash);
        Self { epoch, buckets, paths_hash, arrangement, short }
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
        self.micro_batches().div_ceil(self.arrangement.slots as u64)
    }

    /// Returns how many micro-batches the epoch has.
    pub fn micro_batches(&self) -> u64 {
        self.arrangement.places.len() as u64
    }

    /// Returns how many entries of weight 0 fill up the micro-batches that are not full.
    pub fn padded(&self) -> u64 {
        self.micro_batches() * self.arrangement.micro_batch_size as u64 - self.occurrences()
    }

    /// Returns what is trained in a step.
    ///
    /// # Panics
    /// When the epoch has no such step.
    pub fn step(&self, step: u64) -> StepPlan {
        assert!(step < self.steps(), "step {step} of an epoch of {} steps", self.steps());
        let first_place = step * self.arrangement.slots as u64;
        let first_position = self.position_of_place(first_place);
        let mut position = first_position;
        let places = first_place..(first_place + self.arrangement.slots as u64).min(self.micro_batches());
        let mut slots = Vec::with_capacity(self.arrangement.slots);
        self.arrangement.visit(places.start as usize..places.end as usize, |_, stretch, indices| {
            let occurrences = self.arrangement.occurrences[indices].iter().zip(position..).map(|(&id, position)| {
                let (sample, copy) = self.arrangement.ids.sample_and_copy(id);
                Occurrence { sample, copy, position }
            });
            let bucket = self.buckets[usize::from(self.arrangement.stretches[stretch].bucket)];
            let plan = SlotPlan { slot: slots.len() as u32, bucket, occurrences: occurrences.collect() };
            position += plan.occurrences.len() as u64;
            slots.push(plan);
        });
        StepPlan { step, first_position, slots }
    }

    /// Returns all steps in training order.
    pub fn iter(&self) -> impl Iterator<Item = StepPlan> + '_ {
        (0..self.steps()).map(|step| self.step(step))
    }

    /// Visits every micro-batch in training order. Takes no memory for it, as [`EpochSchedule::iter`] does.
    pub fn for_each_slot(&self, mut visit: impl FnMut(SlotRef<'_>)) {
        let mut occurrences = Vec::with_capacity(self.arrangement.micro_batch_size);
        let mut position = 0;
        self.arrangement.visit(0..self.arrangement.places.len(), |place, stretch, indices| {
            occurrences.clear();
            occurrences.extend(self.arrangement.occurrences[indices].iter().zip(position..).map(|(&id, position)| {
                let (sample, copy) = self.arrangement.ids.sample_and_copy(id);
                Occurrence { sample, copy, position }
            }));
            position += occurrences.len() as u64;
            let (step, slot) = (place / self.arrangement.slots, place % self.arrangement.slots);
            let bucket = self.buckets[usize::from(self.arrangement.stretches[stretch].bucket)];
            visit(SlotRef { step: step as u64, slot: slot as u32, bucket, occurrences: &occurrences });
        });
    }

    /// Returns how many entries a micro-batch has once it is filled up.
    pub fn micro_batch_size(&self) -> u32 {
        self.arrangement.micro_batch_size as u32
    }

    /// Returns the position of the first occurrence at a place: all before it are full, but for the short ones.
    fn position_of_place(&self, place: u64) -> u64 {
        let short_before = self.short.partition_point(|(short, _)| *short < place);
        let lacking = short_before.checked_sub(1).map_or(0, |last| self.short[last].1);
        place * self.arrangement.micro_batch_size as u64 - lacking
    }
}

/// Says which micro-batch is at each place. `images` is how many different images each stretch has, where images have copies.
fn places(stretches: &[Stretch], images: Option<&[usize]>, options: &ScheduleOptions, rng: KeyedRng) -> Places {
    let count = micro_batch_count(stretches, options.micro_batch_size as usize);
    if Places::should_be_narrow(count as usize, stretches.len()) {
        Places::narrow(shuffled(stretches, images, options, rng, |number| number as u8), stretches)
    } else {
        Places::wide(shuffled(stretches, images, options, rng, |number| number as u32), stretches)
    }
}

/// Returns the number of the stretch at each place, in the random order of the epoch.
fn shuffled<T: Copy + Into<u32>>(
    stretches: &[Stretch],
    images: Option<&[usize]>,
    options: &ScheduleOptions,
    mut rng: KeyedRng,
    number: impl Fn(usize) -> T,
) -> Vec<T> {
    let micro_batch_size = options.micro_batch_size as usize;
    let mut stretch_at = Vec::with_capacity(micro_batch_count(stretches, micro_batch_size) as usize);
    for (index, stretch) in stretches.iter().enumerate() {
        stretch_at.resize(stretch_at.len() + stretch.micro_batches(micro_batch_size) as usize, number(index));
    }
    rng.shuffle(&mut stretch_at);
    if let Some(images) = images {
        spread_micro_batches(&mut stretch_at, images, options);
    }
    stretch_at
}
