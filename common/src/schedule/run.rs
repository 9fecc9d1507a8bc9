//! The schedule of a whole run: how many steps each epoch has, without building the epochs.

use super::ScheduleOptions;
use super::counts::Counts;
use super::epoch::micro_batch_count;
use super::order::Ranges;
use crate::dataset::Dataset;

/// How a run's steps are divided among its epochs. Epochs may differ by a few steps where multipliers have fractions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSchedule {
    /// Number of the first step of each epoch, and behind the last the number of all steps.
    starts: Vec<u64>,
}

impl RunSchedule {
    /// Counts the steps of every epoch. Takes time per image and epoch, not per occurrence.
    pub fn compute(dataset: &Dataset, options: &ScheduleOptions, epochs: u64) -> Self {
        let counts = Counts::new(dataset, options);
        let ranges = Ranges::new(dataset, options);
        let steps = |epoch: u64| {
            let stretches = ranges.layout(&counts.copies(epoch));
            let micro_batches = micro_batch_count(&stretches, options.micro_batch_size as usize);
            u64::from(micro_batches.div_ceil(options.slots))
        };
        let first = if counts.are_constant() { Some(steps(0)) } else { None };
        let mut starts = vec![0];
        for epoch in 0..epochs {
            starts.push(starts[epoch as usize] + first.unwrap_or_else(|| steps(epoch)));
        }
        Self { starts }
    }

    /// Counts the steps of a run: what learning-rate schedules are as long as.
    pub fn total_steps(dataset: &Dataset, options: &ScheduleOptions, epochs: u64) -> u64 {
        Self::compute(dataset, options, epochs).steps()
    }

    /// Returns how many steps the run has.
    pub fn steps(&self) -> u64 {
        *self.starts.last().expect("there is a start behind the last epoch")
    }

    /// Returns how many epochs the run has.
    pub fn epochs(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// Returns how many steps of the run come before an epoch. `first_step(epochs())` is [`RunSchedule::steps`].
    pub fn first_step(&self, epoch: u64) -> u64 {
        self.starts[epoch as usize]
    }

    /// Returns how many steps an epoch has.
    pub fn steps_in(&self, epoch: u64) -> u64 {
        self.starts[epoch as usize + 1] - self.starts[epoch as usize]
    }

    /// Returns the epoch of a step of the run, and the step's number within it. None behind the last step.
    pub fn locate(&self, step: u64) -> Option<(u64, u64)> {
        let epoch = self.starts.partition_point(|start| *start <= step) - 1;
        ((epoch as u64) < self.epochs()).then(|| (epoch as u64, step - self.starts[epoch]))
    }
}
