//! A shuffle of very many occurrences.
//!
//! Each occurrence goes into a random bin of its range, and bins that fit the processor's cache are then shuffled: every
//! order is equally likely, as with one large shuffle, which would wait for memory at every step. The draws of bins are
//! made twice, to count first and to write then.
//!
//! Several threads share the work. A thread that begins in the middle of a range skips the draws that belong to those before it:
//! one per occurrence. A draw is repeated once in 10¹⁵ times or so, and then the count is wrong: so each thread's generator must
//! end where the next thread's began, and if one does not, a single thread does it all again.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use super::counts::Uses;
use super::threads;
use crate::rng::KeyedRng;

/// Occurrences in a bin, on average: 128 kB, which a processor keeps close.
const BIN_LENGTH: usize = 32_768;

/// A thread's part of the images.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) samples: Range<u32>,
    /// For each range how many occurrences it has in the part.
    pub(super) lengths: Vec<usize>,
}

/// Returns all occurrences by range, shuffled within it. `rng` returns the generator of a domain and range.
pub(super) fn shuffled(uses: &Uses<'_>, parts: &[Part], rng: &(impl Fn(&str, usize) -> KeyedRng + Sync)) -> Vec<u32> {
    let alone = || {
        let samples = 0..parts.last().map_or(0, |part| part.samples.end);
        Shuffle::new(uses, &[Part { samples, lengths: sum(parts) }], rng).run().expect("nobody else draws")
    };
    Shuffle::new(uses, parts, rng).run().unwrap_or_else(alone)
}

struct Shuffle<'a, R> {
    uses: &'a Uses<'a>,
    parts: &'a [Part],
    rng: &'a R,
    /// For each range how many bins it has.
    bins: Vec<u64>,
    /// For each range the number of its first bin.
    first: Vec<usize>,
}

impl<'a, R: Fn(&str, usize) -> KeyedRng + Sync> Shuffle<'a, R> {
    fn new(uses: &'a Uses<'a>, parts: &'a [Part], rng: &'a R) -> Self {
        let bins: Vec<u64> = sum(parts).iter().map(|length| length.div_ceil(BIN_LENGTH).max(1) as u64).collect();
        let first = bins.iter().scan(0, |next, &bins| Some(std::mem::replace(next, *next + bins as usize))).collect();
        Self { uses, parts, rng, bins, first }
    }

    /// None when the threads' draws do not meet.
    fn run(&self) -> Option<Vec<u32>> {
        let starts = self.starts();
        let counts = self.count(&starts)?;
        let mut next = vec![Vec::with_capacity(counts[0].len()); counts.len()];
        let mut ends = Vec::with_capacity(counts[0].len());
        let mut total = 0;
        for bin in 0..counts[0].len() {
            for (next, counts) in next.iter_mut().zip(&counts) {
                next.push(total);
                total += counts[bin];
            }
            ends.push(total as usize);
        }
        let mut occurrences = self.write(starts, next, total as usize);
        self.shuffle(&mut occurrences, &ends).then_some(occurrences)
    }

    /// Returns the generators with which each part begins, by range.
    fn starts(&self) -> Vec<Vec<KeyedRng>> {
        let mut rngs: Vec<KeyedRng> = (0..self.bins.len()).map(|range| (self.rng)("schedule.bins", range)).collect();
        let start = |part: &Part| {
            let start = rngs.clone();
            for ((rng, &bins), &length) in rngs.iter_mut().zip(&self.bins).zip(&part.lengths) {
                rng.skip(if bins == 1 { 0 } else { length as u64 });
            }
            start
        };
        self.parts.iter().map(start).collect()
    }

    /// Returns for each part how many occurrences it has for each bin.
    fn count(&self, starts: &[Vec<KeyedRng>]) -> Option<Vec<Vec<u32>>> {
        let bins = self.bins.iter().sum::<u64>() as usize;
        let counted = threads::each(self.parts.iter().zip(starts.to_vec()).collect(), |(part, mut rngs)| {
            let mut counts = vec![0u32; bins];
            self.draw(part, &mut rngs, |bin, _| counts[bin] += 1);
            (counts, rngs)
        });
        let meet = counted
            .iter()
            .zip(&starts[1..])
            .all(|((_, ends), starts)| ends.iter().zip(starts).all(|(end, start)| end.is_where(start)));
        meet.then(|| counted.into_iter().map(|(counts, _)| counts).collect())
    }

    /// Writes every occurrence into its bin. `next` is where each part's first one of each bin goes.
    fn write(&self, starts: Vec<Vec<KeyedRng>>, next: Vec<Vec<u32>>, total: usize) -> Vec<u32> {
        // The threads' places are mixed, but no two write to one.
        let occurrences: Vec<AtomicU32> = (0..total).map(|_| AtomicU32::new(0)).collect();
        let work = self.parts.iter().zip(starts).zip(next).collect();
        threads::each(work, |((part, mut rngs), mut next): ((&Part, Vec<KeyedRng>), Vec<u32>)| {
            self.draw(part, &mut rngs, |bin, id| {
                occurrences[next[bin] as usize].store(id, Ordering::Relaxed);
                next[bin] += 1;
            });
        });
        occurrences.into_iter().map(AtomicU32::into_inner).collect() // in place: the size is the same
    }

    /// Visits every occurrence of a part with the bin drawn for it: the same draws each time.
    fn draw(&self, part: &Part, rngs: &mut [KeyedRng], mut visit: impl FnMut(usize, u32)) {
        self.uses.visit(part.samples.clone(), |run| {
            let mut id = run.segment.id_of(run.first_sample);
            for (&range, &copies) in run.ranges.iter().zip(run.copies) {
                let range = range as usize;
                let (rng, bins, first) = (&mut rngs[range], self.bins[range], self.first[range]);
                for copy in 0..copies {
                    let bin = if bins == 1 { 0 } else { rng.below(bins) as usize };
                    visit(first + bin, id + copy);
                }
                id = id.wrapping_add(run.segment.most); // behind the last image of all it may be 2^32
            }
        });
    }

    /// Shuffles every bin. Returns false when the threads' draws do not meet.
    fn shuffle(&self, occurrences: &mut [u32], ends: &[usize]) -> bool {
        let end = |bins: usize| bins.checked_sub(1).map_or(0, |last| ends[last]);
        let mut work = Vec::new();
        let (mut rest, mut bins) = (occurrences, 0);
        for number in 0..self.parts.len() {
            let wanted = threads::part(end(ends.len()), number, self.parts.len()).end;
            let first = std::mem::replace(&mut bins, ends.partition_point(|end| *end <= wanted));
            let (part, behind) = rest.split_at_mut(end(bins) - end(first));
            rest = behind;
            work.push((part, first..bins));
        }
        let ends = threads::each(work, |(part, bins)| self.shuffle_bins(part, bins, &end));
        // Where one ends within a range the next one that does anything begins, so these are pairs.
        let met: Vec<KeyedRng> = ends.into_iter().flat_map(|(began, ended)| [began, ended]).flatten().collect();
        met.chunks(2).all(|pair| pair[0].is_where(&pair[1]))
    }

    /// Shuffles bins that follow each other. Returns the generator with which it began, if that was within a range, and the
    /// one with which it ended, if that was within a range.
    fn shuffle_bins(
        &self,
        mut rest: &mut [u32],
        bins: Range<usize>,
        end: &impl Fn(usize) -> usize,
    ) -> (Option<KeyedRng>, Option<KeyedRng>) {
        let length = |bin: usize| end(bin + 1) - end(bin);
        let mut at = bins.start;
        let (mut began, mut ended) = (None, None);
        while at < bins.end {
            let range = self.first.partition_point(|first| *first <= at) - 1;
            let behind = self.first[range] + self.bins[range] as usize;
            let mut rng = (self.rng)("schedule.order", range);
            if at > self.first[range] {
                rng.skip((self.first[range]..at).map(|bin| length(bin).saturating_sub(1) as u64).sum());
                began = Some(rng.clone());
            }
            while at < behind.min(bins.end) {
                let (bin, others) = rest.split_at_mut(length(at));
                rng.shuffle(bin);
                (rest, at) = (others, at + 1);
            }
            ended = (at < behind).then_some(rng);
        }
        (began, ended)
    }
}

fn sum(parts: &[Part]) -> Vec<usize> {
    let mut sum = vec![0; parts.first().map_or(0, |part| part.lengths.len())];
    parts.iter().for_each(|part| sum.iter_mut().zip(&part.lengths).for_each(|(sum, length)| *sum += length));
    sum
}
