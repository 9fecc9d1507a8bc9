//! The order of an epoch's occurrences before they become steps: shuffled within ranges, cut into micro-batches.
//!
//! A range is all occurrences of one bucket and batch id. Occurrences are counted into their range first and shuffled there,
//! which gives the same distribution as to shuffle everything and sort it stably by range, in one array and at half the memory.

use std::collections::BTreeMap;

use super::ScheduleOptions;
use crate::dataset::Dataset;
use crate::rng::{KeyedRng, Streams};

/// Occurrences in a bin, on average: 256 kB, which a processor keeps close.
const BIN_LENGTH: usize = 32_768;

/// An occurrence in 8 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) sample: u32,
    pub(super) copy: u16,
}

/// Occurrences that may share a micro-batch: a stretch of the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) bucket: u16,
    pub(super) start: usize,
    pub(super) length: usize,
    /// Number of the stretch's first micro-batch; the others follow.
    pub(super) first_micro_batch: u32,
}

/// Which samples may share a micro-batch. The same for all epochs.
pub(super) struct Ranges<'a> {
    /// For each range its bucket and batch id: by bucket, named ids first, so that their tails move one way.
    keys: Vec<(u16, Option<&'a str>)>,
    /// For each sample its range.
    of_sample: Vec<u32>,
    micro_batch_size: usize,
}

impl<'a> Ranges<'a> {
    pub(super) fn new(dataset: &'a Dataset, options: &ScheduleOptions) -> Self {
        // `None` sorts before `Some`, so the flag in front puts it behind.
        let key = |sample: &'a crate::dataset::Sample| {
            let batch_id = sample.batch_id.as_deref();
            (sample.bucket, batch_id.is_none(), batch_id)
        };
        let mut numbers: BTreeMap<_, u32> = dataset.samples.iter().map(|sample| (key(sample), 0)).collect();
        // Every bucket gets a default range, because named ones hand their tails to it.
        let buckets: Vec<u16> = numbers.keys().map(|(bucket, ..)| *bucket).collect();
        numbers.extend(buckets.into_iter().map(|bucket| ((bucket, true, None), 0)));
        numbers.values_mut().zip(0..).for_each(|(number, index)| *number = index);
        Self {
            keys: numbers.keys().map(|&(bucket, _, batch_id)| (bucket, batch_id)).collect(),
            of_sample: dataset.samples.iter().map(|sample| numbers[&key(sample)]).collect(),
            micro_batch_size: options.micro_batch_size as usize,
        }
    }

    /// Returns where each range lies once named ids have handed over their tails, given how often each sample is used.
    pub(super) fn layout(&self, copies: &[u16]) -> Vec<Stretch> {
        let mut lengths = self.lengths(copies);
        let mut handed_over = 0;
        for (length, (_, batch_id)) in lengths.iter_mut().zip(&self.keys) {
            if batch_id.is_some() {
                let tail = *length % self.micro_batch_size;
                *length -= tail;
                handed_over += tail;
            } else {
                *length += std::mem::take(&mut handed_over);
            }
        }
        let (mut start, mut first_micro_batch) = (0, 0u32);
        let stretch = |(length, (bucket, _)): (usize, &(u16, Option<&str>))| {
            let stretch = Stretch { bucket: *bucket, start, length, first_micro_batch };
            start += length;
            first_micro_batch +=
                u32::try_from(length.div_ceil(self.micro_batch_size)).expect("micro-batches fit 32 bits");
            stretch
        };
        lengths.into_iter().zip(&self.keys).map(stretch).collect()
    }

    /// Returns all occurrences, each in its stretch of the layout, in the random order of this epoch.
    pub(super) fn occurrences(&self, copies: &[u16], streams: &Streams, epoch: u64) -> Vec<Packed> {
        let lengths = self.lengths(copies);
        let mut occurrences = self.shuffled(copies, &lengths, streams, epoch);
        let mut tails = Vec::new();
        let (mut read, mut write) = (0, 0);
        for (range, length) in lengths.into_iter().enumerate() {
            if self.keys[range].1.is_some() {
                let full = length / self.micro_batch_size * self.micro_batch_size;
                tails.extend_from_slice(&occurrences[read + full..read + length]);
                occurrences.copy_within(read..read + full, write);
                write += full;
            } else {
                // What the named ranges gave up is free again, right in front of this one.
                occurrences[write..read].copy_from_slice(&tails);
                let stretch = &mut occurrences[write..read + length];
                mix_in(stretch, tails.len(), &mut self.rng(streams, "schedule.tails", range, epoch));
                tails.clear();
                write = read + length;
            }
            read += length;
        }
        occurrences
    }

    /// Returns all occurrences by range, shuffled within it.
    ///
    /// Each occurrence goes into a random bin of its range, and bins that fit the processor's cache are then shuffled: every
    /// order is equally likely, as with one large shuffle, which would wait for memory at every step. The draws of bins are
    /// made twice, to count first and to write then.
    fn shuffled(&self, copies: &[u16], lengths: &[usize], streams: &Streams, epoch: u64) -> Vec<Packed> {
        let bins: Vec<u64> = lengths.iter().map(|length| length.div_ceil(BIN_LENGTH).max(1) as u64).collect();
        let first_bin: Vec<usize> =
            bins.iter().scan(0, |next, &bins| Some(std::mem::replace(next, *next + bins as usize))).collect();
        let mut ends = vec![0usize; bins.iter().sum::<u64>() as usize];
        self.draw_bins(copies, &bins, streams, epoch, |range, bin, _| ends[first_bin[range] + bin] += 1);
        let mut total = 0;
        let mut next: Vec<usize> = Vec::with_capacity(ends.len());
        for end in &mut ends {
            next.push(total);
            total += *end;
            *end = total;
        }
        let mut occurrences = vec![Packed { sample: 0, copy: 0 }; total];
        self.draw_bins(copies, &bins, streams, epoch, |range, bin, packed| {
            let next = &mut next[first_bin[range] + bin];
            occurrences[*next] = packed;
            *next += 1;
        });
        let mut rest = occurrences.as_mut_slice();
        let mut start = 0;
        for (range, &bins) in bins.iter().enumerate() {
            let mut rng = self.rng(streams, "schedule.order", range, epoch);
            for end in &ends[first_bin[range]..first_bin[range] + bins as usize] {
                let (bin, behind) = rest.split_at_mut(end - start);
                rng.shuffle(bin);
                (rest, start) = (behind, *end);
            }
        }
        occurrences
    }

    /// Visits every occurrence with its range and the bin drawn for it: the same draws each time.
    fn draw_bins(
        &self,
        copies: &[u16],
        bins: &[u64],
        streams: &Streams,
        epoch: u64,
        mut visit: impl FnMut(usize, usize, Packed),
    ) {
        let mut rngs: Vec<KeyedRng> =
            (0..bins.len()).map(|range| self.rng(streams, "schedule.bins", range, epoch)).collect();
        for ((sample, &range), &copies) in (0u32..).zip(&self.of_sample).zip(copies) {
            let range = range as usize;
            let (rng, bins) = (&mut rngs[range], bins[range]);
            for copy in 0..copies {
                let bin = if bins == 1 { 0 } else { rng.below(bins) as usize };
                visit(range, bin, Packed { sample, copy });
            }
        }
    }

    fn rng(&self, streams: &Streams, domain: &str, range: usize, epoch: u64) -> KeyedRng {
        let (bucket, batch_id) = self.keys[range];
        let is_named = u64::from(batch_id.is_some());
        streams.keyed(domain, &[epoch.into(), u64::from(bucket).into(), is_named.into(), batch_id.unwrap_or("").into()])
    }

    /// Returns how many different images each range has.
    pub(super) fn images(&self, copies: &[u16]) -> Vec<usize> {
        let used: Vec<u16> = copies.iter().map(|&copies| copies.min(1)).collect();
        self.lengths(&used)
    }

    fn lengths(&self, copies: &[u16]) -> Vec<usize> {
        let mut lengths = vec![0; self.keys.len()];
        for (&range, &copies) in self.of_sample.iter().zip(copies) {
            lengths[range as usize] += usize::from(copies);
        }
        lengths
    }
}

/// Mixes the first `count` items into the rest, which is in random order: the steps of Fisher-Yates that are left.
fn mix_in<T>(items: &mut [T], count: usize, rng: &mut KeyedRng) {
    for first in (0..count).rev() {
        items.swap(first, first + rng.below((items.len() - first) as u64) as usize);
    }
}
