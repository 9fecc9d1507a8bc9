//! Where everything is: occurrences in stretches, cut into micro-batches, and the micro-batches at their places.

use std::ops::Range;
use std::sync::Arc;

use super::ids::Ids;
use super::order::Stretch;
use super::places::Places;

/// Occurrences in stretches, cut into micro-batches, and the micro-batches in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arrangement {
    pub(super) micro_batch_size: usize,
    pub(super) slots: usize,
    /// The numbers of the occurrences.
    pub(super) occurrences: Vec<u32>,
    pub(super) ids: Arc<Ids>,
    pub(super) stretches: Vec<Stretch>,
    /// `slots` places make a step.
    pub(super) places: Places,
}

impl Arrangement {
    /// Returns the numbers of the stretch and the micro-batch at a place.
    pub(super) fn at(&self, place: usize) -> (usize, u32) {
        self.places.at(place, &self.stretches)
    }

    /// Returns the indices of the occurrences at a place.
    pub(super) fn indices(&self, place: usize) -> Range<usize> {
        let (stretch, micro_batch) = self.at(place);
        self.indices_of(stretch, micro_batch)
    }

    /// Visits places in order, with the number of the stretch of each and the indices of its occurrences.
    pub(super) fn visit(&self, places: Range<usize>, mut visit: impl FnMut(usize, usize, Range<usize>)) {
        self.places.visit(places, &self.stretches, |place, stretch, micro_batch| {
            visit(place, stretch, self.indices_of(stretch, micro_batch));
        });
    }

    fn indices_of(&self, stretch: usize, micro_batch: u32) -> Range<usize> {
        let stretch = &self.stretches[stretch];
        let start = (micro_batch - stretch.first_micro_batch) as usize * self.micro_batch_size;
        let end = (start + self.micro_batch_size).min(stretch.length);
        stretch.start + start..stretch.start + end
    }

    /// Returns the places of a step.
    pub(super) fn places_of(&self, step: usize) -> Range<usize> {
        step * self.slots..((step + 1) * self.slots).min(self.places.len())
    }

    /// Returns the places of some steps that follow each other.
    pub(super) fn places_of_steps(&self, steps: Range<usize>) -> Range<usize> {
        let end = |steps: usize| (steps * self.slots).min(self.places.len());
        end(steps.start)..end(steps.end)
    }

    /// Returns how many steps there are.
    pub(super) fn steps(&self) -> usize {
        self.places.len().div_ceil(self.slots)
    }

    /// Returns the places of micro-batches that are not full, each with what it and those before it lack together.
    pub(super) fn short_places(&self) -> Vec<(u64, u64)> {
        let short =
            (0..).zip(&self.stretches).filter(|(_, stretch)| !stretch.length.is_multiple_of(self.micro_batch_size));
        let place_and_lack = |(number, stretch): (usize, &Stretch)| {
            let last = stretch.first_micro_batch + stretch.micro_batches(self.micro_batch_size) - 1;
            let lacking = self.micro_batch_size - stretch.length % self.micro_batch_size;
            (self.places.place_of(last, number) as u64, lacking as u64)
        };
        let mut short: Vec<(u64, u64)> = short.map(place_and_lack).collect();
        short.sort_unstable();
        let mut total = 0;
        for (_, lacking) in &mut short {
            total += *lacking;
            *lacking = total;
        }
        short
    }
}
