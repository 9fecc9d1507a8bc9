//! An occurrence as one number of 32 bits.
//!
//! Every image reserves as many numbers as it has uses in an epoch at most, in the order of the paths. So a number says which
//! image is meant and which use of it. To read it, the segment is looked up that it lies in: images that follow each other
//! and are used equally often.

use super::threads;
use crate::dataset::Decimal;

/// Images that follow each other in the order of their paths and belong to one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first_sample: u32,
    /// The first number that is reserved for the segment.
    pub(super) first_id: u32,
    /// How often each image is used at least.
    pub(super) whole: u32,
    /// How often each image is used at most: that many numbers it has.
    pub(super) most: u32,
    /// Where the segment begins among the bits that say which images are used once more. Only where `most` is above `whole`.
    pub(super) first_bit: u32,
}

impl Segment {
    /// Returns the first number that an image of the segment has.
    pub(super) fn id_of(&self, sample: u32) -> u32 {
        self.first_id + (sample - self.first_sample) * self.most
    }
}

/// What the numbers of occurrences mean. The same for all epochs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ids {
    /// In order. The last one is empty and stands for the end.
    segments: Vec<Segment>,
    /// For the numbers `n << shift` the segment that each lies in, so that a search begins close to its end.
    near: Vec<u32>,
    shift: u32,
}

impl Ids {
    /// Takes the segments, the empty one at the end included.
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        let end = segments.last().expect("the end has a segment").first_id;
        let wanted_cells = segments.len().next_power_of_two().ilog2();
        let shift = (u32::BITS - end.leading_zeros()).saturating_sub(wanted_cells);
        let mut at = 0;
        let near = (0..=(end >> shift)).map(|cell| {
            while at + 1 < segments.len() && segments[at + 1].first_id <= cell << shift {
                at += 1;
            }
            at as u32
        });
        Self { near: near.collect(), shift, segments }
    }

    /// Returns the segments, without the empty one at the end.
    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments[..self.segments.len() - 1]
    }

    /// Returns the sample that the segment ends before.
    pub(super) fn end_of(&self, segment: usize) -> u32 {
        self.segments[segment + 1].first_sample
    }

    /// Returns the number of the segment that a sample is in.
    pub(super) fn segment_of_sample(&self, sample: u32) -> usize {
        self.segments.partition_point(|segment| segment.first_sample <= sample) - 1
    }

    /// Cuts the images into as many parts, of about as many numbers each.
    pub(super) fn parts(&self, parts: usize) -> Vec<std::ops::Range<u32>> {
        let end = self.segments.last().expect("the end has a segment");
        let start = |number: usize| {
            let id = threads::part(end.first_id as usize, number, parts).start as u32;
            if id == end.first_id { end.first_sample } else { self.sample(id) }
        };
        let starts = (0..parts).map(start);
        starts.zip((1..parts).map(start).chain([end.first_sample])).map(|(start, end)| start..end).collect()
    }

    /// Returns the numbers of all uses of an image.
    pub(super) fn of_sample(&self, sample: u32) -> std::ops::Range<u32> {
        let segment = &self.segments[self.segment_of_sample(sample)];
        segment.id_of(sample)..segment.id_of(sample) + segment.most
    }

    /// Returns the segment that an occurrence's number lies in.
    pub(super) fn segment_of(&self, id: u32) -> &Segment {
        let cell = (id >> self.shift) as usize;
        let low = self.near[cell] as usize;
        let high = self.near.get(cell + 1).map_or(self.segments.len() - 1, |high| *high as usize);
        let behind = self.segments[low + 1..=high].partition_point(|segment| segment.first_id <= id);
        &self.segments[low + behind]
    }

    /// Returns the image that an occurrence's number stands for.
    pub(super) fn sample(&self, id: u32) -> u32 {
        let segment = self.segment_of(id);
        segment.first_sample + (id - segment.first_id) / segment.most
    }

    /// Returns the image that an occurrence's number stands for, and which use of it.
    pub(super) fn sample_and_copy(&self, id: u32) -> (u32, u32) {
        let segment = self.segment_of(id);
        let (offset, copy) = ((id - segment.first_id) / segment.most, (id - segment.first_id) % segment.most);
        (segment.first_sample + offset, copy)
    }
}

/// Returns how often an image of this multiplier is used in an epoch at most.
pub(super) fn most_uses(multiply: Decimal) -> u64 {
    multiply.whole() + u64::from(!multiply.is_whole())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_is_read_back(parts in prop::collection::vec((1u32..200, 1u32..50), 0..40)) {
            let (mut segments, mut expected) = (Vec::new(), Vec::new());
            let (mut first_sample, mut first_id) = (0, 0);
            for (images, most) in parts {
                segments.push(Segment { first_sample, first_id, whole: most, most, first_bit: 0 });
                for sample in first_sample..first_sample + images {
                    prop_assert_eq!(segments.last().unwrap().id_of(sample), expected.len() as u32);
                    expected.extend((0..most).map(|copy| (sample, copy)));
                }
                first_sample += images;
                first_id += images * most;
            }
            segments.push(Segment { first_sample, first_id, whole: 0, most: 0, first_bit: 0 });
            let ids = Ids::new(segments);
            for (id, &(sample, copy)) in (0..).zip(&expected) {
                prop_assert_eq!((ids.sample_and_copy(id), ids.sample(id)), ((sample, copy), sample));
            }
        }
    }
}
