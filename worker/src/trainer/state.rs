//! The state as one long row of `f32`, for a worker that joins later: all that a step changes, and nothing else.
//!
//! The rest of a model (the VAE, a text encoder that is not trained) comes from the model folder on each worker.

use crate::hash::flat_hash;

use super::Trainer;

impl Trainer {
    /// Everything that a step changes, in the order in which it travels.
    fn state(&self) -> [&[f32]; 3] {
        [&self.params, &self.optimizer.exp_avg, &self.optimizer.exp_avg_sq]
    }

    /// Count of elements of the state.
    pub(crate) fn state_elements(&self) -> usize {
        self.state().iter().map(|section| section.len()).sum()
    }

    /// Hash of the state and of the count of steps it has made: the hashes of the sections, hashed.
    pub(crate) fn state_hash(&self, next_step: u64) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&next_step.to_le_bytes());
        for section in self.state() {
            hasher.update(flat_hash(section).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Returns `most` elements from `first` on, fewer at the end.
    pub(crate) fn read_state(&self, first: usize, most: usize) -> Vec<f32> {
        let (mut start, mut values) = (first, Vec::with_capacity(most));
        for section in self.state() {
            if start < section.len() {
                let end = section.len().min(start + most - values.len());
                values.extend_from_slice(&section[start..end]);
                start = section.len();
            }
            start -= section.len();
        }
        values
    }

    /// Takes a piece of another worker's state. It counts from [`Trainer::adopt_state`] on.
    ///
    /// # Panics
    /// When the piece reaches beyond the state.
    pub(crate) fn write_state(&mut self, first: usize, mut values: &[f32]) {
        let sections = [&mut self.params, &mut self.optimizer.exp_avg, &mut self.optimizer.exp_avg_sq];
        let mut start = first;
        for section in sections {
            if start < section.len() {
                let (here, rest) = values.split_at(values.len().min(section.len() - start));
                section[start..start + here.len()].copy_from_slice(here);
                (start, values) = (section.len(), rest);
            }
            start -= section.len();
        }
        assert!(values.is_empty(), "the piece lies within the state");
    }

    /// Goes on from the state that was written.
    pub(crate) fn adopt_state(&mut self, next_step: u64) {
        self.next_step = next_step;
        self.show_params();
    }
}
