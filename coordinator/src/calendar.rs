//! Where a step of the run lies: which epoch, and which step within it.
//!
//! Epochs differ in length, because a folder's count may alternate between two whole numbers.

/// The first step of each epoch of a run. Pure numbers: the pictures behind them are the schedule's business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Calendar {
    /// First step of each epoch, and one past the last step of the last epoch.
    boundaries: Vec<u64>,
}

/// A step's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) epoch: u64,
    pub(crate) step_in_epoch: u64,
    pub(crate) steps_in_epoch: u64,
}

impl Calendar {
    /// Lays epochs of the given numbers of steps end to end.
    pub(crate) fn new(steps_per_epoch: impl IntoIterator<Item = u64>) -> Self {
        let mut boundaries = vec![0];
        let mut total = 0;
        for steps in steps_per_epoch {
            total += steps;
            boundaries.push(total);
        }
        Self { boundaries }
    }

    /// Steps of the whole run.
    pub(crate) fn total_steps(&self) -> u64 {
        *self.boundaries.last().expect("new() pushes the start")
    }

    /// Count of epochs.
    pub(crate) fn epochs(&self) -> u64 {
        self.boundaries.len() as u64 - 1
    }

    /// Finds a step's epoch. Epochs without steps are passed over.
    ///
    /// # Panics
    /// When `step` is not below `total_steps`.
    pub(crate) fn place(&self, step: u64) -> Place {
        assert!(step < self.total_steps(), "step {step} of {}", self.total_steps());
        let epoch = self.boundaries.partition_point(|first| *first <= step) - 1;
        Place {
            epoch: epoch as u64,
            step_in_epoch: step - self.boundaries[epoch],
            steps_in_epoch: self.boundaries[epoch + 1] - self.boundaries[epoch],
        }
    }

    /// Returns how many epochs are complete when `next_step` steps are done, if that is a boundary.
    pub(crate) fn epochs_complete_at(&self, next_step: u64) -> Option<u64> {
        let index = self.boundaries.partition_point(|first| *first <= next_step) - 1;
        (self.boundaries[index] == next_step && index > 0).then_some(index as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_place() {
        let calendar = Calendar::new([3, 0, 2]);
        let places: Vec<_> = (0..5).map(|step| calendar.place(step)).map(|p| (p.epoch, p.step_in_epoch)).collect();
        assert_eq!(places, [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]);
        assert_eq!((calendar.total_steps(), calendar.epochs()), (5, 3));
        assert_eq!(calendar.place(4).steps_in_epoch, 2);
    }

    #[test]
    fn boundaries_count_complete_epochs() {
        let calendar = Calendar::new([3, 2]);
        let complete: Vec<_> = (0..=5).map(|step| calendar.epochs_complete_at(step)).collect();
        assert_eq!(complete, [None, None, None, Some(1), None, Some(2)]);
    }
}
