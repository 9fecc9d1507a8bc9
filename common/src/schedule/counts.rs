//! Counts: how often each image is used in an epoch, exactly.
//!
//! A group is the images of one folder that have one multiplier, `w + f`. Each is used `w` times, and the deck deals out which
//! ones are used once more: one bit per image is all that an epoch has to remember.

use std::ops::Range;

use super::ScheduleOptions;
use super::bits::Bits;
use super::deck::{Dealer, Deck};
use super::ids::Segment;
use super::roster::{Group, Roster};
use super::threads;
use crate::config::Remainder;
use crate::rng::Streams;

/// How often each image is used, epoch by epoch.
pub(super) struct Counts<'a> {
    roster: &'a Roster,
    remainder: Remainder,
    streams: Streams,
}

impl<'a> Counts<'a> {
    pub(super) fn new(roster: &'a Roster, options: &ScheduleOptions) -> Self {
        Self { roster, remainder: options.remainder, streams: Streams::new(options.seed) }
    }

    /// Says how often each image is used in this epoch, worked out on so many threads.
    pub(super) fn uses(&self, epoch: u64, threads: usize) -> Uses<'a> {
        let groups: Vec<&Group> = self.roster.groups.iter().filter(|group| !group.multiply.is_whole()).collect();
        let bits = self.roster.bits();
        // In parts of about as many images each.
        let end = |number: usize| {
            let bit = threads::part(bits, number, threads).end;
            groups.partition_point(|group| (group.first_bit as usize) < bit)
        };
        let parts = (0..threads).map(|number| number.checked_sub(1).map_or(0, end)..end(number)).collect();
        let dealt = threads::each(parts, |part: Range<usize>| {
            let mut once_more = Bits::new(bits);
            groups[part].iter().for_each(|group| self.deal(group, epoch, &mut once_more));
            once_more
        });
        let once_more = dealt.into_iter().reduce(Bits::or).expect("there is at least one part");
        Uses { roster: self.roster, once_more }
    }

    fn deal(&self, group: &Group, epoch: u64, once_more: &mut Bits) {
        let mut dealer = self.dealer(group);
        let first = group.first_bit as usize;
        if dealer.deals_left_out() {
            once_more.turn_on_all(first..first + group.images as usize);
        }
        dealer.deal(epoch, |card| once_more.flip(first + card as usize));
    }

    /// Returns what deals out the fraction of a group.
    pub(super) fn dealer<'b>(&'b self, group: &'b Group) -> Dealer<'b> {
        let size = u64::from(group.images);
        let deck = Deck { streams: &self.streams, folder: &group.folder, multiply: group.multiply, size };
        Dealer::new(deck, self.remainder)
    }
}

/// How often each image is used in one epoch.
pub(super) struct Uses<'a> {
    pub(super) roster: &'a Roster,
    /// For images whose multiplier has a fraction, by group.
    once_more: Bits,
}

/// A few images that follow each other in one segment.
pub(super) struct Run<'a> {
    pub(super) segment: &'a Segment,
    pub(super) first_sample: u32,
    /// For each image its range.
    pub(super) ranges: &'a [u32],
    /// For each image how often it is used.
    pub(super) copies: &'a [u32],
}

impl<'a> Uses<'a> {
    /// Images in a run at most: few enough that the processor keeps them close.
    const RUN_LENGTH: usize = 1024;

    /// Visits images, in order.
    pub(super) fn visit(&self, samples: Range<u32>, mut visit: impl FnMut(Run<'_>)) {
        let (mut ranges, mut copies) = ([0; Self::RUN_LENGTH], [0; Self::RUN_LENGTH]);
        let ids = &self.roster.ids;
        let mut number = if samples.is_empty() { 0 } else { ids.segment_of_sample(samples.start) };
        let mut at = samples.start;
        while at < samples.end {
            let end = ids.end_of(number).min(samples.end);
            let segment = &ids.segments()[number];
            while at < end {
                let length = ((end - at) as usize).min(Self::RUN_LENGTH);
                let (ranges, copies) = (&mut ranges[..length], &mut copies[..length]);
                self.roster.range_of.read(at as usize, ranges);
                self.read(segment, at, copies);
                visit(Run { segment, first_sample: at, ranges, copies });
                at += length as u32;
            }
            number += 1;
        }
    }

    /// Returns how often an image is used.
    pub(super) fn copies(&self, sample: u32) -> u32 {
        let ids = &self.roster.ids;
        let mut copies = [0];
        self.read(&ids.segments()[ids.segment_of_sample(sample)], sample, &mut copies);
        copies[0]
    }

    /// Says whether an image may be used more than once.
    pub(super) fn has_copies(&self) -> bool {
        let ids = &self.roster.ids;
        ids.segments().iter().any(|segment| segment.most > 1)
    }

    fn read(&self, segment: &Segment, first_sample: u32, copies: &mut [u32]) {
        copies.fill(segment.whole);
        if segment.most > segment.whole {
            let first_bit = (segment.first_bit + first_sample - segment.first_sample) as usize;
            (first_bit..).zip(copies).for_each(|(bit, copies)| *copies += u32::from(self.once_more.get(bit)));
        }
    }
}
