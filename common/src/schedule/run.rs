//! The schedule of a whole run: how many steps each epoch has, without building the epochs.

use std::ops::Range;

use super::counts::Counts;
use super::numbers::Numbers;
use super::order::{layout, micro_batch_count};
use super::roster::{Group, Roster};
use super::{ScheduleOptions, threads};
use crate::dataset::Dataset;

/// How a run's steps are divided among its epochs. Epochs may differ by a few steps where multipliers have fractions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunSchedule {
    /// Number of the first step of each epoch, and behind the last the number of all steps.
    starts: Vec<u64>,
}

impl RunSchedule {
    /// Counts the steps of every epoch.
    pub fn compute(dataset: &Dataset, options: &ScheduleOptions, epochs: u64) -> Self {
        Self::of(&Roster::of(dataset), options, epochs)
    }

    /// Counts the steps of every epoch. Takes time per image that the fractions of multipliers ask for, epoch by epoch; no time
    /// for folders whose images may all share a micro-batch, and for whole multipliers.
    pub fn of(roster: &Roster, options: &ScheduleOptions, epochs: u64) -> Self {
        Self::on_threads(roster, options, epochs, threads::worth(epochs.saturating_mul(roster.images())))
    }

    /// Counts on so many threads, which changes how long it takes and nothing else.
    pub(super) fn on_threads(roster: &Roster, options: &ScheduleOptions, epochs: u64, threads: usize) -> Self {
        let lengths = Lengths::new(roster, options);
        let parts = threads::in_parts(threads, epochs as usize, |epochs| lengths.steps(epochs, options));
        let mut starts = vec![0];
        for steps in parts.into_iter().flatten() {
            starts.push(starts[starts.len() - 1] + steps);
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

/// How many occurrences each range has, epoch by epoch.
struct Lengths<'a> {
    roster: &'a Roster,
    counts: Counts<'a>,
    /// What whole parts of multipliers give to each range in every epoch.
    whole: Vec<usize>,
    /// Groups whose multiplier has a fraction.
    fractions: Vec<Fraction<'a>>,
}

/// A group whose multiplier has a fraction.
struct Fraction<'a> {
    group: &'a Group,
    /// For each range that has images of the group, how many.
    images: Vec<(u32, usize)>,
    /// For each image its range, where there are several.
    ranges: Numbers,
}

impl<'a> Lengths<'a> {
    /// Numbers that are kept at a time while epochs are counted side by side.
    const AT_ONCE: usize = 4_000_000;

    fn new(roster: &'a Roster, options: &ScheduleOptions) -> Self {
        let mut whole = vec![0; roster.ranges.len()];
        let mut fractions = Vec::new();
        for group in &roster.groups {
            let mut images = std::collections::BTreeMap::new();
            roster.visit_ranges(group, |range| *images.entry(range).or_default() += 1);
            images.iter().for_each(|(&range, &images)| {
                whole[range as usize] += group.multiply.whole() as usize * images;
            });
            if !group.multiply.is_whole() {
                let mut ranges = Numbers::new();
                if images.len() > 1 {
                    roster.visit_ranges(group, |range| ranges.push(range));
                }
                fractions.push(Fraction { group, images: images.into_iter().collect(), ranges });
            }
        }
        Self { roster, counts: Counts::new(roster, options), whole, fractions }
    }

    /// Returns how many steps each of some epochs has.
    fn steps(&self, epochs: Range<usize>, options: &ScheduleOptions) -> Vec<u64> {
        let micro_batch_size = options.micro_batch_size as usize;
        let mut steps = Vec::with_capacity(epochs.len());
        // Without fractions all epochs are alike.
        let counted =
            if self.fractions.is_empty() { epochs.start..epochs.end.min(epochs.start + 1) } else { epochs.clone() };
        let at_once = (Self::AT_ONCE / self.whole.len().max(1)).max(1);
        for start in counted.clone().step_by(at_once) {
            for lengths in self.of_epochs(start..(start + at_once).min(counted.end)) {
                let stretches = layout(&self.roster.ranges, &lengths, micro_batch_size);
                steps.push(u64::from(micro_batch_count(&stretches, micro_batch_size).div_ceil(options.slots)));
            }
        }
        steps.resize(epochs.len(), steps.last().copied().unwrap_or(0));
        steps
    }

    /// Returns for each of some epochs how many occurrences each range has. A group's epochs are dealt one after the other, so
    /// that each of its decks is shuffled once.
    fn of_epochs(&self, epochs: Range<usize>) -> Vec<Vec<usize>> {
        let mut lengths = vec![self.whole.clone(); epochs.len()];
        for fraction in &self.fractions {
            let mut dealer = self.counts.dealer(fraction.group);
            for (epoch, lengths) in epochs.clone().zip(&mut lengths) {
                if let [(range, _)] = fraction.images[..] {
                    lengths[range as usize] += dealer.count(epoch as u64) as usize;
                } else if dealer.deals_left_out() {
                    fraction.images.iter().for_each(|(range, images)| lengths[*range as usize] += images);
                    dealer.deal(epoch as u64, |card| lengths[fraction.ranges.get(card as usize) as usize] -= 1);
                } else {
                    dealer.deal(epoch as u64, |card| lengths[fraction.ranges.get(card as usize) as usize] += 1);
                }
            }
        }
        lengths
    }
}
