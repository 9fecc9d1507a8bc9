//! The order of an epoch's occurrences before they become steps: shuffled within ranges, cut into micro-batches.
//!
//! A range is all occurrences of one bucket and batch id. Occurrences are counted into their range first and shuffled there,
//! which gives the same distribution as to shuffle everything and sort it stably by range, in one array and at half the memory.

use super::bins::{self, Part};
use super::counts::Uses;
use super::roster::{Range, Roster};
use super::threads;
use crate::rng::{KeyedRng, Streams};

/// Occurrences that may share a micro-batch: a stretch of the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) bucket: u16,
    pub(super) start: usize,
    pub(super) length: usize,
    /// Number of the stretch's first micro-batch; the others follow.
    pub(super) first_micro_batch: u32,
}

impl Stretch {
    /// Returns how many micro-batches the stretch is cut into.
    pub(super) fn micro_batches(&self, micro_batch_size: usize) -> u32 {
        self.length.div_ceil(micro_batch_size) as u32
    }
}

/// How much each range has in an epoch.
pub(super) struct Ranges<'a> {
    pub(super) roster: &'a Roster,
    /// For each range how many occurrences.
    pub(super) lengths: Vec<usize>,
    /// What each thread has of it.
    parts: Vec<Part>,
    /// For each range how many different images.
    pub(super) images: Vec<usize>,
}

impl<'a> Ranges<'a> {
    /// Counts the uses of each range's images, on so many threads.
    pub(super) fn count(uses: &Uses<'a>, threads: usize) -> Self {
        let roster = uses.roster;
        let none = || vec![0; roster.ranges.len()];
        let counted = threads::each(roster.ids.parts(threads), |samples| {
            let (mut lengths, mut images) = (none(), none());
            uses.visit(samples.clone(), |run| {
                for (&range, &copies) in run.ranges.iter().zip(run.copies) {
                    lengths[range as usize] += copies as usize;
                    images[range as usize] += copies.min(1) as usize;
                }
            });
            (Part { samples, lengths }, images)
        });
        let (mut lengths, mut images) = (none(), none());
        for (part, part_images) in &counted {
            lengths.iter_mut().zip(&part.lengths).for_each(|(length, more)| *length += more);
            images.iter_mut().zip(part_images).for_each(|(images, more)| *images += more);
        }
        Self { roster, lengths, images, parts: counted.into_iter().map(|(part, _)| part).collect() }
    }

    /// Returns all occurrences, each in its stretch of the layout, in the random order of this epoch.
    pub(super) fn occurrences(
        &self,
        uses: &Uses<'_>,
        streams: &Streams,
        epoch: u64,
        micro_batch_size: usize,
    ) -> Vec<u32> {
        let rng = |domain: &str, range: usize| keyed(streams, domain, &self.roster.ranges[range], epoch);
        let mut occurrences = bins::shuffled(uses, &self.parts, &rng);
        let mut tails = Vec::new();
        let (mut read, mut write) = (0, 0);
        for (range, &length) in self.lengths.iter().enumerate() {
            if self.roster.ranges[range].batch_id.is_some() {
                let full = length / micro_batch_size * micro_batch_size;
                tails.extend_from_slice(&occurrences[read + full..read + length]);
                occurrences.copy_within(read..read + full, write);
                write += full;
            } else {
                // What the named ranges gave up is free again, right in front of this one.
                occurrences[write..read].copy_from_slice(&tails);
                let stretch = &mut occurrences[write..read + length];
                mix_in(stretch, tails.len(), &mut rng("schedule.tails", range));
                tails.clear();
                write = read + length;
            }
            read += length;
        }
        occurrences
    }
}

/// Returns where each range lies once named ids have handed over their tails, given how many occurrences each has.
pub(super) fn layout(ranges: &[Range], lengths: &[usize], micro_batch_size: usize) -> Vec<Stretch> {
    let (mut start, mut first_micro_batch, mut handed_over) = (0, 0, 0);
    let stretch = |(range, &length): (&Range, &usize)| {
        let length = if range.batch_id.is_some() {
            handed_over += length % micro_batch_size;
            length - length % micro_batch_size
        } else {
            length + std::mem::take(&mut handed_over)
        };
        let stretch = Stretch { bucket: range.bucket, start, length, first_micro_batch };
        start += length;
        first_micro_batch += stretch.micro_batches(micro_batch_size);
        stretch
    };
    ranges.iter().zip(lengths).map(stretch).collect()
}

/// Counts the micro-batches that stretches are cut into.
pub(super) fn micro_batch_count(stretches: &[Stretch], micro_batch_size: usize) -> u32 {
    stretches.last().map_or(0, |last| last.first_micro_batch + last.micro_batches(micro_batch_size))
}

fn keyed(streams: &Streams, domain: &str, range: &Range, epoch: u64) -> KeyedRng {
    let is_named = u64::from(range.batch_id.is_some());
    let batch_id = range.batch_id.as_deref().unwrap_or("");
    streams.keyed(domain, &[epoch.into(), u64::from(range.bucket).into(), is_named.into(), batch_id.into()])
}

/// Mixes the first `count` items into the rest, which is in random order: the steps of Fisher-Yates that are left.
fn mix_in<T>(items: &mut [T], count: usize, rng: &mut KeyedRng) {
    for first in (0..count).rev() {
        items.swap(first, first + rng.below((items.len() - first) as u64) as usize);
    }
}
