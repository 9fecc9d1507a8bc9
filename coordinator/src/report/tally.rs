//! Counts what a run's uses add up to. Pure: uses come in one by one, twice, and none is kept.
//!
//! A loss says little by itself, because it depends far more on the timestep that was drawn than on the picture. So each is
//! also *adjusted*: divided by the mean loss of all uses in the same narrow band of timesteps. 1 is what the run as a whole
//! had there, 1.2 is a fifth more. The first pass ([`TimestepMeans`]) finds the bands' means, the second ([`Tally`]) the rest.

use std::collections::HashMap;

use super::statistics::Statistic;
use crate::ledger::{SampleFacts, Use};

/// Parts that a run's committed steps are divided into, to see a change over time. A multiple of ten, for the tenths.
pub(super) const PARTS: u64 = 50;

/// Timesteps that noise schedulers are trained with, and the config allows.
pub(super) const TIMESTEPS: u32 = 1000;

/// With fewer losses the bands of timesteps are wide, so that each has enough of them to make a mean.
const MANY_LOSSES: u64 = 5_000;

/// The mean loss of each band of timesteps.
pub(super) struct TimestepMeans {
    bands: Vec<Statistic>,
}

impl TimestepMeans {
    pub(super) fn new(uses: u64) -> Self {
        Self { bands: vec![Statistic::default(); if uses < MANY_LOSSES { 10 } else { 50 }] }
    }

    pub(super) fn add(&mut self, used: &Use) {
        if counts(used) {
            let band = self.band(used.timestep);
            self.bands[band].add(used.loss);
        }
    }

    /// Returns how many bands of equal width there are.
    pub(super) fn count(&self) -> usize {
        self.bands.len()
    }

    /// Returns a loss divided by the mean of its band. 1 where the mean is 0: then all losses of the band are.
    fn adjust(&self, used: &Use) -> f64 {
        let mean = self.bands[self.band(used.timestep)].mean().unwrap_or(0.0);
        if mean == 0.0 { 1.0 } else { used.loss / mean }
    }

    fn band(&self, timestep: u32) -> usize {
        share(timestep, self.bands.len())
    }
}

/// Losses as they are, and adjusted for their timesteps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Losses {
    pub(super) raw: Statistic,
    pub(super) adjusted: Statistic,
}

impl Losses {
    fn add(&mut self, loss: f64, adjusted: f64) {
        self.raw.add(loss);
        self.adjusted.add(adjusted);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.raw.merge(&other.raw);
        self.adjusted.merge(&other.adjusted);
    }
}

/// What one image got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ImageTally {
    pub(super) delivered: u64,
    pub(super) skipped: u64,
    pub(super) weight: f64,
    pub(super) losses: Losses,
    pub(super) last: Option<(f64, f64)>,
}

/// What one folder got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FolderTally {
    pub(super) delivered: u64,
    pub(super) skipped: u64,
    pub(super) not_finite: u64,
    pub(super) weight: f64,
    /// Σ loss scale of the scheduled uses.
    pub(super) intended_weight: f64,
    /// Scheduled uses of the epoch that is not complete.
    pub(super) in_running_epoch: u64,
}

/// Where a loss belongs when it is seen over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Line {
    Run,
    Folder(u32),
    Quarter(u32),
}

/// What all uses add up to.
pub(super) struct Tally<'a> {
    samples: &'a [SampleFacts],
    steps: u64,
    running_from: u64,
    means: TimestepMeans,
    pub(super) folders: Vec<FolderTally>,
    pub(super) images: Vec<ImageTally>,
    /// Losses by line and part of the run. Parts without a loss are absent: there may be a hundred thousand folders.
    parts: HashMap<(Line, u64), Losses>,
    /// A few of the losses, evenly spread over the uses: (step, loss).
    pub(super) scatter: Vec<(u64, f64)>,
    scatter_stride: u64,
    seen: u64,
    /// Uses of samples that the ledger does not know.
    pub(super) unknown: u64,
}

/// Most losses that are kept one by one, for a plot.
const SCATTER_MAX: u64 = 1500;

impl<'a> Tally<'a> {
    /// `steps` are committed, `uses` in all; those from step `running_from` on belong to the epoch that is not complete.
    pub(super) fn new(samples: &'a [SampleFacts], folders: usize, means: TimestepMeans, span: Span) -> Self {
        Self {
            samples,
            steps: span.steps,
            running_from: span.running_from,
            means,
            folders: vec![FolderTally::default(); folders],
            images: vec![ImageTally::default(); samples.len()],
            parts: HashMap::new(),
            scatter: Vec::new(),
            scatter_stride: span.uses.div_ceil(SCATTER_MAX).max(1),
            seen: 0,
            unknown: 0,
        }
    }

    pub(super) fn add(&mut self, used: &Use) {
        let Some(sample) = self.samples.get(used.sample as usize) else {
            self.unknown += 1;
            return;
        };
        self.seen += 1;
        let folder = &mut self.folders[sample.folder as usize];
        let image = &mut self.images[used.sample as usize];
        folder.in_running_epoch += u64::from(used.step >= self.running_from);
        folder.intended_weight += sample.loss_scale.unwrap_or(0.0);
        if used.is_skipped {
            folder.skipped += 1;
            image.skipped += 1;
            return;
        }
        folder.delivered += 1;
        folder.weight += used.weight;
        image.delivered += 1;
        image.weight += used.weight;
        if !used.loss.is_finite() {
            folder.not_finite += 1;
            return;
        }
        let adjusted = self.means.adjust(used);
        image.losses.add(used.loss, adjusted);
        image.last = Some((used.loss, adjusted));
        let part = (u128::from(used.step) * u128::from(PARTS) / u128::from(self.steps.max(1))) as u64;
        let quarter = share(used.timestep, 4) as u32;
        for line in [Line::Run, Line::Folder(sample.folder), Line::Quarter(quarter)] {
            self.parts.entry((line, part.min(PARTS - 1))).or_default().add(used.loss, adjusted);
        }
        if self.seen.is_multiple_of(self.scatter_stride) {
            self.scatter.push((used.step, used.loss));
        }
    }

    /// Returns the losses of a line in each part of the run.
    pub(super) fn over_time(&self, line: Line) -> impl Iterator<Item = (u64, Losses)> {
        (0..PARTS).filter_map(move |part| self.parts.get(&(line, part)).map(|losses| (part, *losses)))
    }

    /// Returns how many bands of timesteps the adjustment has used.
    pub(super) fn timestep_bands(&self) -> usize {
        self.means.count()
    }
}

/// How long the run is so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Committed steps.
    pub(super) steps: u64,
    /// Committed uses, skipped ones included.
    pub(super) uses: u64,
    /// First step of the epoch that is not complete.
    pub(super) running_from: u64,
}

fn counts(used: &Use) -> bool {
    !used.is_skipped && used.loss.is_finite()
}

/// Returns which of `count` equal ranges of the timesteps one lies in.
fn share(timestep: u32, count: usize) -> usize {
    (timestep.min(TIMESTEPS - 1) as usize * count) / TIMESTEPS as usize
}
