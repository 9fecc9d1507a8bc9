//! Where parameters lie in a flat buffer of a device: in the order of their layout, each at a multiple of 256 bytes.

use std::ops::Range;

use crate::FlatLayout;

/// Elements that every place is a multiple of: 256 bytes, as CubeCL's own allocations. Vector loads need 16 of them.
const ALIGNMENT: usize = 64;

/// The places of a [`FlatLayout`]'s parameters, with gaps between them. What lies in the gaps is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedLayout {
    /// In order: first element in the row without gaps, first element here, number of elements.
    places: Vec<Place>,
    /// Elements of the row without gaps.
    total: usize,
    /// Elements here.
    padded: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    row: usize,
    here: usize,
    len: usize,
}

impl PaddedLayout {
    /// Makes room between the parameters of a layout.
    pub fn of(layout: &FlatLayout) -> Self {
        let mut padded = 0;
        let places = layout.entries.iter().map(|entry| {
            let here = padded;
            padded += entry.len.next_multiple_of(ALIGNMENT);
            Place { row: entry.offset, here, len: entry.len }
        });
        let places = places.collect();
        Self { places, total: layout.total, padded }
    }

    /// Elements of a buffer.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Elements of the row without gaps.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Where a parameter begins that begins at `row` in the row without gaps.
    ///
    /// # Panics
    ///
    /// When none does.
    pub fn place(&self, row: usize) -> usize {
        // Of several that begin at one place all but the last are empty.
        let last = self.places.partition_point(|place| place.row <= row);
        let place = last.checked_sub(1).map(|index| self.places[index]).filter(|place| place.row == row);
        place.expect("a parameter begins there").here
    }

    /// The elements here that whole parameters take, the gaps between them and behind the last included.
    ///
    /// # Panics
    ///
    /// When a parameter lies in the range in part.
    pub fn whole(&self, row: Range<usize>) -> Range<usize> {
        let at = |row: usize| {
            let index = self.places.partition_point(|place| place.row < row);
            match self.places.get(index) {
                Some(place) => {
                    assert_eq!(place.row, row, "the range has whole parameters");
                    place.here
                }
                None => {
                    assert_eq!(row, self.total, "the range has whole parameters");
                    self.padded
                }
            }
        };
        let (start, end) = (at(row.start), at(row.end));
        start..end.max(start)
    }

    /// The parts here of a range of the row, in order, none longer than `most`.
    pub fn pieces(&self, row: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
        let Range { start, end } = row;
        let first = self.places.partition_point(|place| place.row + place.len <= start);
        let overlapping = self.places[first..].iter().take_while(move |place| place.row < end);
        overlapping.flat_map(move |place| {
            let from = start.max(place.row) - place.row;
            let to = end.min(place.row + place.len) - place.row;
            (from..to).step_by(most).map(move |start| place.here + start..place.here + to.min(start + most))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FlatEntry, ParamGroup};
    use proptest::prelude::*;

    fn layout(lens: &[usize]) -> FlatLayout {
        let mut total = 0;
        let entries = lens.iter().enumerate().map(|(i, len)| {
            let offset = total;
            total += len;
            FlatEntry { path: format!("unet.{i}"), shape: vec![*len], offset, len: *len, group: ParamGroup::Unet }
        });
        FlatLayout { entries: entries.collect(), total }
    }

    proptest! {
        #[test]
        fn every_element_has_one_place(lens in proptest::collection::vec(1_usize..300, 1..20), most in 1_usize..200) {
            let layout = layout(&lens);
            let padded = PaddedLayout::of(&layout);
            // The row's element numbers, written where they belong.
            let mut here = vec![None; padded.padded()];
            for entry in &layout.entries {
                prop_assert_eq!(padded.place(entry.offset) % ALIGNMENT, 0);
                for i in 0..entry.len {
                    prop_assert!(here[padded.place(entry.offset) + i].replace(entry.offset + i).is_none());
                }
            }
            for (start, end) in [(0, layout.total), (layout.total / 3, layout.total / 2), (1, 1)] {
                let pieces: Vec<_> = padded.pieces(start..end, most).collect();
                prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= most));
                let found: Vec<_> = pieces.into_iter().flatten().map(|i| here[i].unwrap()).collect();
                prop_assert_eq!(found, (start..end).collect::<Vec<_>>());
            }
            for (i, entry) in layout.entries.iter().enumerate() {
                let rest = padded.whole(entry.offset..layout.total);
                prop_assert_eq!((rest.start, rest.end), (padded.place(entry.offset), padded.padded()));
                let before = padded.whole(0..entry.offset);
                prop_assert_eq!(before, 0..if i == 0 { 0 } else { padded.place(entry.offset) });
            }
        }
    }

    #[test]
    #[should_panic(expected = "whole parameters")]
    fn a_part_of_a_parameter_is_no_range_of_whole_ones() {
        PaddedLayout::of(&layout(&[10, 20])).whole(0..11);
    }
}
