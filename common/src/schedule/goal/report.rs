//! What a proposal does to the balance: every folder before and after, counted from real schedules.

use serde::Serialize;

use super::Proposal;
use crate::dataset::{Dataset, Decimal};
use crate::schedule::report::{Short, Table, grouped, percent, plural, repeats};
use crate::schedule::{EpochReport, Epochs, FolderReport, PlanReport, ScheduleOptions, TextOptions};

/// Above so many repeats of each image a run rather learns the images by heart.
const REPEATS_MAX: f64 = 50.0;

/// Most folders that the table shows.
const FOLDERS_MAX: usize = 250;

/// Columns in which the table has room for everything before and after.
const WIDE: usize = 96;

/// The balance before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BalanceReport {
    /// Epochs of the run.
    pub epochs: u64,
    /// Occurrences per epoch.
    pub occurrences: BeforeAfter<u64>,
    /// Steps per epoch.
    pub steps: BeforeAfter<u64>,
    /// Steps of the run.
    pub run_steps: BeforeAfter<u64>,
    /// Every folder.
    pub folders: Vec<BalanceRow>,
    /// What of the proposal is worth a thought.
    pub warnings: Vec<String>,
}

/// A folder before and after.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BalanceRow {
    /// Relative to the data root; `.` for the root itself.
    pub path: String,
    /// How many usable images it has.
    pub images: u64,
    /// Images that a multiplier of their own keeps out of this.
    pub own_multiply: u64,
    /// The weight of its images' losses.
    pub loss_scale: f64,
    /// Its multiplier.
    pub multiply: BeforeAfter<Decimal>,
    /// Uses in the first epoch.
    pub scheduled: BeforeAfter<u64>,
    /// Its part of all uses.
    pub share: BeforeAfter<f64>,
    /// Its part of all uses × loss scale.
    pub effective_share: BeforeAfter<f64>,
    /// How often each of its images comes up in the run, on average.
    pub repeats_per_image: BeforeAfter<f64>,
}

/// A value before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BeforeAfter<T> {
    /// As it is.
    pub before: T,
    /// As it would be.
    pub after: T,
}

impl BalanceRow {
    /// Says whether the proposal asks for another multiplier.
    pub fn is_changed(&self) -> bool {
        self.multiply.before != self.multiply.after
    }
}

impl BalanceReport {
    /// Schedules an epoch as things are and as they would be.
    pub fn compute(dataset: &Dataset, proposals: &[Proposal], options: &ScheduleOptions, epochs: u64) -> Self {
        let plan = |dataset: &Dataset| {
            let epochs = Epochs { shown: 1, run: epochs };
            let Ok(plan) = PlanReport::compute(dataset, options, epochs, |_| Ok::<(), std::convert::Infallible>(()));
            plan
        };
        let (before, after) = (plan(dataset), plan(&changed(dataset, proposals)));
        let of = |number: fn(&PlanReport) -> u64| BeforeAfter { before: number(&before), after: number(&after) };
        let folders = |plan: &'_ PlanReport| -> Vec<FolderReport> { first(plan).folders.clone() };
        let folders: Vec<BalanceRow> = folders(&before).iter().zip(folders(&after)).map(row).collect();
        Self {
            epochs,
            occurrences: of(|plan| first(plan).occurrences),
            steps: of(|plan| first(plan).steps),
            run_steps: of(|plan| plan.run.steps),
            warnings: warnings(&folders, epochs),
            folders,
        }
    }

    /// Returns the table as text, a line break at its end.
    pub fn text(&self, options: &TextOptions) -> String {
        let mut text = String::new();
        let is_weighed = self.folders.iter().any(|folder| folder.loss_scale != 1.0);
        // Then only the share that matters has room for both.
        let is_narrow = is_weighed && options.width.is_some_and(|width| width < WIDE);
        let mut table = Table::new(["folder", "images", "multiply", "scheduled", "share", "effective", "repeats"]);
        let shown = if options.all { self.folders.len() } else { self.folders.len().min(FOLDERS_MAX) };
        for folder in &self.folders[..shown] {
            let effective = arrow(folder.effective_share, percent);
            table.row([
                folder.path.clone(),
                grouped(folder.images),
                arrow(folder.multiply, |multiply| multiply.short()),
                arrow(folder.scheduled, grouped),
                if is_narrow { percent(folder.share.after) } else { arrow(folder.share, percent) },
                if is_weighed { effective } else { String::new() },
                repeats(folder.repeats_per_image.after),
            ]);
        }
        let images = self.folders.iter().map(|folder| folder.images).sum();
        let [none, empty, nothing, nobody] = [const { String::new() }; 4];
        table.row(["total".into(), grouped(images), none, arrow(self.occurrences, grouped), empty, nothing, nobody]);
        text += &table.without_empty_columns().render(options.width);
        if shown < self.folders.len() {
            let more = plural((self.folders.len() - shown) as u64, "more folder");
            text += &format!("  … and {more} (--all shows them)\n");
        }
        text +=
            &format!("  repeats: how often each image comes up in {}, on average\n\n", plural(self.epochs, "epoch"));
        text + &format!(
            "steps: {} per epoch, {} in the run\n",
            arrow(self.steps, grouped),
            arrow(self.run_steps, grouped)
        )
    }
}

fn first(plan: &PlanReport) -> &EpochReport {
    plan.epochs.first().expect("one epoch was asked for")
}

fn row((before, after): (&FolderReport, FolderReport)) -> BalanceRow {
    let part = |of: fn(&FolderReport) -> f64| BeforeAfter { before: of(before), after: of(&after) };
    BalanceRow {
        path: before.path.clone(),
        images: before.images,
        own_multiply: before.own_multiply,
        loss_scale: before.loss_scale,
        multiply: BeforeAfter { before: before.multiply, after: after.multiply },
        scheduled: BeforeAfter { before: before.scheduled, after: after.scheduled },
        share: part(|folder| folder.share),
        effective_share: part(|folder| folder.effective_share),
        repeats_per_image: part(|folder| folder.repeats_per_image.unwrap_or(0.0)),
    }
}

/// Returns the dataset as it would be. Images with a multiplier of their own keep it.
pub(super) fn changed(dataset: &Dataset, proposals: &[Proposal]) -> Dataset {
    let mut changed = dataset.clone();
    for sample in &mut changed.samples {
        let folder = sample.folder as usize;
        if sample.multiply == dataset.folders[folder].multiply {
            sample.multiply = proposals[folder].multiply;
        }
    }
    changed.folders.iter_mut().zip(proposals).for_each(|(folder, proposal)| folder.multiply = proposal.multiply);
    changed
}

fn warnings(folders: &[BalanceRow], epochs: u64) -> Vec<String> {
    let often = folders.iter().filter(|folder| folder.repeats_per_image.after > REPEATS_MAX);
    let warning = |folder: &BalanceRow| {
        let (images, run) = (plural(folder.images, "image"), plural(epochs, "epoch"));
        let times = repeats(folder.repeats_per_image.after);
        format!(
            "{}: {images} would come up {times} times each in {run}: few pictures seen often are learned by heart \
             (overfitting). Add pictures, train fewer epochs, or ask for a smaller part",
            folder.path
        )
    };
    often.map(warning).collect()
}

fn arrow<T: PartialEq + Copy>(pair: BeforeAfter<T>, show: impl Fn(T) -> String) -> String {
    let (before, after) = (show(pair.before), show(pair.after));
    if before == after { after } else { format!("{} → {after}", before.trim_end_matches(" %")) }
}
