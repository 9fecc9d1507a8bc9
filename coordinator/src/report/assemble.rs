//! Reads the ledger twice and puts the report together.

use std::collections::BTreeMap;
use std::path::Path;

use ballast_common::dataset::Decimal;

use super::intended::uses_in_whole_epochs;
use super::statistics::Statistic;
use super::tally::{FolderTally, ImageTally, Line, Losses, PARTS, Span, TIMESTEPS, Tally, TimestepMeans};
use super::*;
use crate::ledger::{LedgerError, SampleFacts};

/// Reads the ledger and reports.
pub(super) fn assemble(folder: &Path, ledger: &Ledger, options: &ReportOptions) -> Result<RunReport, LedgerError> {
    let (run, running_from) = run_facts(folder, ledger)?;
    let (folders, samples) = ledger.samples()?;
    let span = Span { steps: run.committed_steps, uses: ledger.count_uses()?, running_from };
    let mut means = TimestepMeans::new(span.uses);
    ledger.for_each_use(|used| means.add(&used))?;
    let mut tally = Tally::new(&samples, folders.len(), means, span);
    ledger.for_each_use(|used| tally.add(&used))?;
    let promised = uses_in_whole_epochs(&samples, folders.len(), run.complete_epochs);
    Ok(Assembly { run, samples: &samples, tally: &tally, promised }.report(&folders, options))
}

/// Returns what is known of the run, and the first step of the epoch that is not complete.
fn run_facts(folder: &Path, ledger: &Ledger) -> Result<(RunFacts, u64), LedgerError> {
    let number = |key| Ok::<_, LedgerError>(ledger.fact(key)?.and_then(|text| text.parse::<u64>().ok()));
    let committed_steps = ledger.next_step()?;
    // Epochs are noted when their first step is planned, so several may be incomplete. An epoch without a step is never noted.
    let begun = ledger.epochs()?;
    let running = begun.iter().find(|epoch| epoch.first_step + epoch.steps > committed_steps);
    let complete_epochs = running.map_or(begun.last().map_or(0, |last| last.epoch + 1), |running| running.epoch);
    let end = begun.last().map_or(0, |last| last.first_step + last.steps);
    let running_from = running.map_or(end, |running| running.first_step);
    let rollback = |(from_step, to_step)| Rollback { from_step, to_step };
    let rollbacks: Vec<_> = ledger.rollbacks()?.into_iter().map(rollback).collect();
    let facts = RunFacts {
        folder: folder.to_owned(),
        id: ledger.fact("run_id")?.unwrap_or_default(),
        committed_steps,
        total_steps: number("total_steps")?,
        complete_epochs,
        epochs: number("epochs")?,
        steps_taken_back: rollbacks.iter().map(|rollback| rollback.from_step - rollback.to_step).sum(),
        rollbacks,
    };
    Ok((facts, running_from))
}

/// What was read and counted.
struct Assembly<'a> {
    run: RunFacts,
    samples: &'a [SampleFacts],
    tally: &'a Tally<'a>,
    /// Uses by folder in the whole epochs, where the ledger knows the multipliers.
    promised: Option<Vec<u64>>,
}

impl Assembly<'_> {
    fn report(self, paths: &[String], options: &ReportOptions) -> RunReport {
        let folders = self.folders(paths);
        let total = self.totals(&folders);
        let images = &self.tally.images;
        let most = images.iter().map(|image| image.losses.raw.count()).max().unwrap_or(0);
        // Of a mean of one or two losses chance says more than the picture does.
        let ranked_from_exposures = most.clamp(1, 3);
        let rank = |by: fn(&ImageTally) -> Option<f64>| self.rank(ranked_from_exposures, options.top, by);
        RunReport {
            timestep_quarters: (0..4).map(|quarter| self.quarter(quarter)).collect(),
            timestep_bands: self.tally.timestep_bands(),
            exposures_per_image: histogram(images.iter().map(|image| image.delivered)),
            ranked_from_exposures,
            highest_loss: rank(|image| image.losses.adjusted.mean()),
            most_erratic: rank(|image| image.losses.adjusted.deviation()),
            images: options.every_image.then(|| (0..images.len()).map(|index| self.image(index)).collect()),
            notes: self.notes(&folders, &total),
            scatter: self.tally.scatter.clone(),
            run: self.run,
            total,
            folders,
        }
    }

    fn folders(&self, paths: &[String]) -> Vec<FolderReport> {
        let mut members = vec![Members::default(); paths.len()];
        for (sample, image) in self.samples.iter().zip(&self.tally.images) {
            members[sample.folder as usize].add(sample, image);
        }
        let tallies = &self.tally.folders;
        let all: u64 = tallies.iter().map(|tally| tally.delivered).sum();
        let weight: f64 = tallies.iter().map(|tally| tally.weight.abs()).sum();
        let intended_weight: f64 = tallies.iter().map(|tally| tally.intended_weight.abs()).sum();
        let folder = |(index, path): (usize, &String)| {
            let (tally, members) = (&tallies[index], &members[index]);
            FolderReport {
                path: path.clone(),
                images: members.images,
                images_used: members.used,
                multiply: members.multiply.common().copied(),
                loss_scale: members.loss_scale.common().copied(),
                exposures: self.exposures(tally, self.promised.as_ref().map(|promised| promised[index])),
                share: part(tally.delivered as f64, all as f64),
                effective_share: part(tally.weight, weight),
                intended_effective_share: self.promised.is_some().then(|| part(tally.intended_weight, intended_weight)),
                exposures_per_image: members.spread(),
                loss: self.losses(Line::Folder(index as u32)),
            }
        };
        paths.iter().enumerate().map(folder).collect()
    }

    fn exposures(&self, tally: &FolderTally, promised: Option<u64>) -> Exposures {
        Exposures {
            delivered: tally.delivered,
            intended: promised.map(|promised| promised + tally.in_running_epoch),
            skipped: tally.skipped,
            not_finite: tally.not_finite,
            weight: tally.weight,
            intended_weight: promised.map(|_| tally.intended_weight),
        }
    }

    fn totals(&self, folders: &[FolderReport]) -> Totals {
        let mut exposures = Exposures { intended: Some(0), intended_weight: Some(0.0), ..Exposures::default() };
        for folder in folders.iter().map(|folder| &folder.exposures) {
            exposures.delivered += folder.delivered;
            exposures.skipped += folder.skipped;
            exposures.not_finite += folder.not_finite;
            exposures.weight += folder.weight;
            exposures.intended = exposures.intended.zip(folder.intended).map(|(sum, intended)| sum + intended);
            let weights = exposures.intended_weight.zip(folder.intended_weight);
            exposures.intended_weight = weights.map(|(sum, weight)| sum + weight);
        }
        Totals {
            images: self.samples.len() as u64,
            images_used: folders.iter().map(|folder| folder.images_used).sum(),
            exposures,
            loss: self.losses(Line::Run),
        }
    }

    fn quarter(&self, quarter: u32) -> QuarterReport {
        let loss = self.losses(Line::Quarter(quarter));
        QuarterReport {
            from_timestep: quarter * TIMESTEPS / 4,
            to_timestep: (quarter + 1) * TIMESTEPS / 4,
            losses: loss.over_time.iter().map(|part| part.losses).sum(),
            loss,
        }
    }

    fn losses(&self, line: Line) -> LossReport {
        let (mut all, mut first, mut last) = (Losses::default(), Losses::default(), Losses::default());
        let mut over_time = Vec::new();
        for (part, losses) in self.tally.over_time(line) {
            all.merge(&losses);
            match part * 10 / PARTS {
                0 => first.merge(&losses),
                9 => last.merge(&losses),
                _ => {}
            }
            over_time.push(self.part(part, &losses));
        }
        let change = last.adjusted.mean().zip(first.adjusted.mean()).filter(|(_, first)| *first > 0.0);
        LossReport {
            mean: all.raw.mean(),
            adjusted: all.adjusted.mean(),
            first_tenth: pair(&first),
            last_tenth: pair(&last),
            change: change.map(|(last, first)| last / first - 1.0),
            over_time,
        }
    }

    fn part(&self, part: u64, losses: &Losses) -> LossPart {
        let start = |part: u64| (part * self.run.committed_steps).div_ceil(PARTS);
        let known = |statistic: &Statistic| (statistic.mean().unwrap_or(0.0), statistic.deviation().unwrap_or(0.0));
        let ((mean, deviation), (adjusted, adjusted_deviation)) = (known(&losses.raw), known(&losses.adjusted));
        let (from_step, to_step) = (start(part), start(part + 1));
        LossPart { from_step, to_step, losses: losses.raw.count(), mean, deviation, adjusted, adjusted_deviation }
    }

    fn rank(&self, from_exposures: u64, top: usize, by: fn(&ImageTally) -> Option<f64>) -> Vec<ImageReport> {
        let images = self.tally.images.iter().enumerate();
        let ranked = images.filter(|(_, image)| image.losses.raw.count() >= from_exposures);
        let mut ranked: Vec<_> = ranked.filter_map(|(index, image)| Some((by(image)?, index))).collect();
        // Equal values in the order of the paths.
        ranked.sort_by(|(a, first), (b, second)| b.total_cmp(a).then(first.cmp(second)));
        ranked.into_iter().take(top).map(|(_, index)| self.image(index)).collect()
    }

    fn image(&self, index: usize) -> ImageReport {
        let ImageTally { delivered, skipped, weight, losses, last } = &self.tally.images[index];
        ImageReport {
            path: self.samples[index].path.clone(),
            delivered: *delivered,
            skipped: *skipped,
            weight: *weight,
            mean: losses.raw.mean(),
            deviation: losses.raw.deviation(),
            adjusted: losses.adjusted.mean(),
            adjusted_deviation: losses.adjusted.deviation(),
            last: last.map(|(raw, _)| raw),
            last_adjusted: last.map(|(_, adjusted)| adjusted),
        }
    }

    fn notes(&self, folders: &[FolderReport], total: &Totals) -> Vec<String> {
        let mut notes = Vec::new();
        let Exposures { delivered, skipped, not_finite, weight, .. } = total.exposures;
        if self.promised.is_none() {
            notes.push(
                "this ledger is of format 1, which does not say what was intended: only what was delivered is shown"
                    .to_owned(),
            );
        }
        let differs = |folder: &&FolderReport| {
            let Exposures { delivered, intended, skipped, .. } = folder.exposures;
            intended.is_some_and(|intended| intended != delivered + skipped)
        };
        for folder in folders.iter().filter(differs) {
            let Exposures { delivered, intended, skipped, .. } = folder.exposures;
            notes.push(format!(
                "{}: {} uses were scheduled and the ledger has {}; `ballast verify` says more",
                folder.path,
                intended.unwrap_or(0),
                delivered + skipped
            ));
        }
        if skipped > 0 {
            notes.push(format!("{skipped} uses had a picture that could not be read: they counted with weight 0"));
        }
        if not_finite > 0 {
            notes.push(format!("{not_finite} losses are no finite number; they are in no mean"));
        }
        if self.tally.unknown > 0 {
            notes.push(format!("{} uses are of samples that the ledger does not name", self.tally.unknown));
        }
        let scales = self.samples.iter().zip(&self.tally.images);
        let by_scale: f64 =
            scales.map(|(sample, image)| sample.loss_scale.unwrap_or(0.0) * image.delivered as f64).sum();
        if self.promised.is_some() && delivered > 0 && (weight - by_scale).abs() > 1e-6 * by_scale.abs().max(1e-6) {
            notes.push(
                "the delivered weights are loss scale × the objective's own weight of each timestep (min-SNR), the \
                 intended ones loss scale alone: compare their shares"
                    .to_owned(),
            );
        }
        notes
    }
}

/// What the images of a folder have in common.
#[derive(Default, Clone)]
struct Members {
    images: u64,
    used: u64,
    least: Option<u64>,
    most: u64,
    delivered: u64,
    multiply: Common<Decimal>,
    loss_scale: Common<f64>,
}

impl Members {
    fn add(&mut self, sample: &SampleFacts, image: &ImageTally) {
        self.images += 1;
        self.used += u64::from(image.delivered > 0);
        self.least = Some(self.least.map_or(image.delivered, |least| least.min(image.delivered)));
        self.most = self.most.max(image.delivered);
        self.delivered += image.delivered;
        self.multiply.add(sample.multiply);
        self.loss_scale.add(sample.loss_scale);
    }

    fn spread(&self) -> Spread {
        let mean = part(self.delivered as f64, self.images as f64);
        Spread { min: self.least.unwrap_or(0), mean, max: self.most }
    }
}

/// A value that all have, as long as they do.
#[derive(Default, Clone)]
enum Common<T> {
    #[default]
    Nobody,
    All(T),
    Several,
}

impl<T: PartialEq> Common<T> {
    fn add(&mut self, value: Option<T>) {
        *self = match (std::mem::take(self), value) {
            (Self::Nobody, Some(value)) => Self::All(value),
            (Self::All(common), Some(value)) if common == value => Self::All(common),
            _ => Self::Several,
        };
    }

    fn common(&self) -> Option<&T> {
        if let Self::All(value) = self { Some(value) } else { None }
    }
}

fn histogram(values: impl Iterator<Item = u64>) -> Vec<ExposureCount> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    counts.into_iter().map(|(exposures, images)| ExposureCount { exposures, images }).collect()
}

fn pair(losses: &Losses) -> LossPair {
    LossPair { mean: losses.raw.mean(), adjusted: losses.adjusted.mean() }
}

fn part(of: f64, total: f64) -> f64 {
    if total == 0.0 { 0.0 } else { of / total }
}
