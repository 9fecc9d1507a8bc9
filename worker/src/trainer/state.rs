//! The state as one long row of `f32`, for a worker that joins later: all that a step changes, and nothing else.
//!
//! The rest of a model (the VAE, a text encoder that is not trained) comes from the model folder on each worker.

use std::ops::Range;

use super::Trainer;
use crate::engine::{Engine, Moment};
use crate::hash::FlatHasher;

impl<E: Engine> Trainer<E> {
    /// Count of elements of the state.
    pub(crate) fn state_elements(&self) -> usize {
        3 * self.elements()
    }

    /// Hash of the state and of the count of steps it has made: the hashes of the sections, hashed.
    pub(crate) fn state_hash(&self, next_step: u64) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&next_step.to_le_bytes());
        hasher.update(self.params_hash().as_bytes());
        for moment in Moment::ALL {
            let mut flat = FlatHasher::default();
            self.engine.read_moment(moment, 0..self.elements(), &mut |values| flat.update(values));
            hasher.update(flat.finish().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns `most` elements from `first` on, fewer at the end.
    pub(crate) fn read_state(&self, first: usize, most: usize) -> Vec<f32> {
        let end = self.state_elements().min(first.saturating_add(most));
        let mut values = Vec::with_capacity(end.saturating_sub(first));
        let mut sink = |piece: &[f32]| values.extend_from_slice(piece);
        let [params, moments @ ..] = self.sections(first..end.max(first));
        if !params.is_empty() {
            self.engine.read_params(params, &mut sink);
        }
        for (moment, range) in Moment::ALL.into_iter().zip(moments).filter(|(_, range)| !range.is_empty()) {
            self.engine.read_moment(moment, range, &mut sink);
        }
        values
    }

    /// Takes a piece of another worker's state. It counts from [`Trainer::adopt_state`] on.
    ///
    /// # Panics
    /// When the piece reaches beyond the state.
    pub(crate) fn write_state(&mut self, first: usize, values: &[f32]) {
        assert!(first + values.len() <= self.state_elements(), "the piece lies within the state");
        let [params, moments @ ..] = self.sections(first..first + values.len());
        let (here, mut rest) = values.split_at(params.len());
        if !here.is_empty() {
            self.engine.write_params(params.start, here);
        }
        for (moment, range) in Moment::ALL.into_iter().zip(moments) {
            let (here, beyond) = rest.split_at(range.len());
            if !here.is_empty() {
                self.engine.write_moment(moment, range.start, here);
            }
            rest = beyond;
        }
    }

    /// Goes on from the state that was written.
    pub(crate) fn adopt_state(&mut self, next_step: u64) {
        self.next_step = next_step;
    }

    /// What a range of the state is of the parameters and of each moment, each counted from its own start.
    fn sections(&self, range: Range<usize>) -> [Range<usize>; 3] {
        let elements = self.elements();
        [0, 1, 2].map(|section| {
            let start = section * elements;
            let within = |at: usize| at.clamp(start, start + elements) - start;
            within(range.start)..within(range.end)
        })
    }
}
