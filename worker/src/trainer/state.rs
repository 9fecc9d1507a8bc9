//! The state as one long row of `f32`, for a worker that joins later: all that a step changes, and nothing else.
//!
//! The rest of a model (the VAE, a text encoder that is not trained) comes from the model folder on each worker.

use crate::hash::flat_hash;

use super::Trainer;

impl Trainer {
    /// What follows the parameters in the row.
    fn moments(&self) -> [&[f32]; 2] {
        [&self.optimizer.exp_avg, &self.optimizer.exp_avg_sq]
    }

    /// Count of elements of the state.
    pub(crate) fn state_elements(&self) -> usize {
        3 * self.elements()
    }

    /// Hash of the state and of the count of steps it has made: the hashes of the sections, hashed.
    pub(crate) fn state_hash(&self, next_step: u64) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&next_step.to_le_bytes());
        hasher.update(self.params_hash().as_bytes());
        for moments in self.moments() {
            hasher.update(flat_hash(moments).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns `most` elements from `first` on, fewer at the end.
    pub(crate) fn read_state(&self, first: usize, most: usize) -> Vec<f32> {
        let (elements, end) = (self.elements(), self.state_elements().min(first + most));
        let mut values = Vec::with_capacity(end.saturating_sub(first));
        if first < elements {
            self.params().read(first..end.min(elements), &mut |piece| values.extend_from_slice(piece));
        }
        for (moments, start) in self.moments().into_iter().zip([elements, 2 * elements]) {
            let within = |at: usize| at.clamp(start, start + elements) - start;
            values.extend_from_slice(&moments[within(first)..within(end.max(first))]);
        }
        values
    }

    /// Takes a piece of another worker's state. It counts from [`Trainer::adopt_state`] on.
    ///
    /// # Panics
    /// When the piece reaches beyond the state.
    pub(crate) fn write_state(&mut self, first: usize, values: &[f32]) {
        let elements = self.elements();
        assert!(first + values.len() <= self.state_elements(), "the piece lies within the state");
        let (params, mut rest) = values.split_at(values.len().min(elements.saturating_sub(first)));
        if !params.is_empty() {
            self.model.write_trained(&self.layout, first, params);
        }
        let mut start = first.max(elements) - elements;
        for moments in [&mut self.optimizer.exp_avg, &mut self.optimizer.exp_avg_sq] {
            if start < elements {
                let (here, beyond) = rest.split_at(rest.len().min(elements - start));
                moments[start..start + here.len()].copy_from_slice(here);
                (start, rest) = (elements, beyond);
            }
            start -= elements;
        }
    }

    /// Goes on from the state that was written.
    pub(crate) fn adopt_state(&mut self, next_step: u64) {
        self.next_step = next_step;
    }
}
