//! The balance report as text for people, in aligned columns.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;

use super::table::{Short, Table, grouped, percent, plural, repeats};
use super::{BucketReport, EpochReport, FolderReport, PlanReport};
use crate::dataset::SkippedImage;

/// Most lines that one list of the report takes on a screen; of a hundred thousand small pictures nobody reads all.
const LINES_MAX: usize = 20;

/// Most rows of the table of folders: they are what the report is about.
const FOLDERS_MAX: usize = 250;

/// Most epochs that are listed one by one.
const EPOCHS_MAX: usize = 10;

/// How a report is laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// Columns of the screen. None: names are never cut.
    pub width: Option<usize>,
    /// Whether lists are shown to their end.
    pub all: bool,
}

impl TextOptions {
    fn most(&self, lines: usize) -> usize {
        if self.all { usize::MAX } else { lines }
    }
}

impl PlanReport {
    /// Returns the report as text, a line break at its end.
    pub fn text(&self, options: &TextOptions) -> String {
        let mut text = self.head();
        text += &epochs(&self.epochs, self.run.epochs, options);
        let advice: Vec<&str> = self.advice.iter().map(|advice| advice.message.as_str()).collect();
        list(&mut text, "worth a thought", &advice, options);
        let skipped: Vec<String> =
            self.dataset.skipped.iter().map(|image| format!("{}: {}", image.path, image.reason)).collect();
        list(&mut text, "skipped images", &skipped, options);
        let said: BTreeSet<String> = self.dataset.skipped.iter().map(SkippedImage::warning).collect();
        let others: Vec<_> = self.dataset.warnings.iter().filter(|warning| !said.contains(*warning)).collect();
        list(&mut text, "found in the data", &others, options);
        list(&mut text, "files applied", &self.dataset.applied_files, options);
        let is_every_name_wanted = options.all || self.samples.is_some();
        let upscaled = &self.dataset.upscaled;
        if is_every_name_wanted {
            list(&mut text, "enlarged to fill their bucket", upscaled, &TextOptions { all: true, ..*options });
        }
        if let Some(samples) = &self.samples {
            text += &format!("\nsamples ({})\n", grouped(samples.len() as u64));
            for sample in samples {
                let ([width, height], multiply) = (sample.bucket, sample.multiply);
                _ = writeln!(text, "  {}  {width}×{height}  ×{multiply}  {:?}", sample.path, sample.caption);
            }
        }
        text
    }

    fn head(&self) -> String {
        let (dataset, run) = (&self.dataset, &self.run);
        let folders = self.epochs.first().map_or(0, |epoch| epoch.folders.len() as u64);
        let mut text = format!("{} in {}", plural(dataset.images, "image"), plural(folders, "folder"));
        let counts = [(dataset.upscaled.len(), "enlarged"), (dataset.skipped.len(), "skipped")];
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            text += &format!(", {} {what}", grouped(count as u64));
        }
        let (steps, uses) = (plural(run.steps, "step"), plural(run.occurrences, "use"));
        format!(
            "{text}\nfingerprint {}\nrun: {}, {steps}, {uses} of images; a step is {} × {}\n",
            dataset.fingerprint,
            plural(run.epochs, "epoch"),
            plural(u64::from(run.slots), "slot"),
            plural(u64::from(run.micro_batch_size), "image"),
        )
    }
}

/// With lists cut and names whole.
impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(&TextOptions::default()))
    }
}

impl fmt::Display for EpochReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(epochs(std::slice::from_ref(self), 1, &TextOptions::default()).trim_start_matches('\n'))
    }
}

/// Returns one table for all epochs: their counts differ by one here and there, so a range says it.
fn epochs(epochs: &[EpochReport], run_epochs: u64, options: &TextOptions) -> String {
    let Some(first) = epochs.first() else { return String::new() };
    let last = epochs.last().unwrap_or(first);
    let which = match epochs.len() {
        1 => format!("epoch {}", first.epoch),
        _ => format!("epochs {}–{}, each", first.epoch, last.epoch),
    };
    let range = |of: fn(&EpochReport) -> u64| Range::of(epochs.iter().map(of));
    let mut text = format!(
        "\n{which}: {} occurrences, {} micro-batches ({} padded), {} steps\n",
        range(|epoch| epoch.occurrences),
        range(|epoch| epoch.micro_batches),
        range(|epoch| epoch.padded),
        range(|epoch| epoch.steps),
    );
    if epochs.len() == 1 {
        text += &format!("schedule {}\n", first.schedule_hash);
    }
    text += &format!("\n{}", folder_table(epochs, run_epochs, options));
    text += &format!("\n{}", bucket_table(epochs, options));
    if epochs.len() > 1 {
        text += &format!("\n{}", epoch_list(epochs, options));
    }
    text
}

/// The smallest and the largest of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    least: u64,
    most: u64,
}

impl Range {
    fn of(numbers: impl Iterator<Item = u64>) -> Self {
        numbers.fold(Self { least: u64::MAX, most: 0 }, |range, number| Self {
            least: range.least.min(number),
            most: range.most.max(number),
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Range { least, most } if least == most => f.write_str(&grouped(most)),
            Range { least, most } => write!(f, "{}–{}", grouped(least), grouped(most)),
        }
    }
}

fn folder_table(epochs: &[EpochReport], run_epochs: u64, options: &TextOptions) -> String {
    let folders = &epochs[0].folders;
    let each = |index: usize| epochs.iter().map(move |epoch| &epoch.folders[index]);
    let mean = |index: usize, of: fn(&FolderReport) -> f64| each(index).map(of).sum::<f64>() / epochs.len() as f64;
    let mut table = Table::new(["folder", "images", "multiply", "scheduled", "share", "scale", "effective", "repeats"]);
    let shown = if folders.len() > options.most(FOLDERS_MAX) { FOLDERS_MAX } else { folders.len() };
    for (index, folder) in folders.iter().enumerate().take(shown) {
        table.row([
            folder.path.clone(),
            grouped(folder.images),
            with_own(folder.multiply.short(), folder.own_multiply),
            Range::of(each(index).map(|folder| folder.scheduled)).to_string(),
            percent(mean(index, |folder| folder.share)),
            with_own(folder.loss_scale.short(), folder.own_loss_scale),
            percent(mean(index, |folder| folder.effective_share)),
            folder.repeats_per_image.map_or(String::new(), repeats),
        ]);
    }
    if folders.len() > 1 {
        table.row(total_row(epochs));
    }
    let mut text = table.without_empty_columns().render(options.width);
    if shown < folders.len() {
        text += &format!("  … and {} (--all shows them)\n", plural((folders.len() - shown) as u64, "more folder"));
    }
    let notes = notes(folders, run_epochs);
    if notes.is_empty() { text } else { text + &notes }
}

fn total_row(epochs: &[EpochReport]) -> [String; 8] {
    let folders = &epochs[0].folders;
    let images: u64 = folders.iter().map(|folder| folder.images).sum();
    let uses: Option<f64> = folders.iter().map(|folder| Some(folder.repeats_per_image? * folder.images as f64)).sum();
    [
        "total".to_owned(),
        grouped(images),
        String::new(),
        Range::of(epochs.iter().map(|epoch| epoch.occurrences)).to_string(),
        String::new(),
        String::new(),
        String::new(),
        uses.map_or(String::new(), |uses| repeats(uses / images.max(1) as f64)),
    ]
}

/// Explains the columns that do not explain themselves.
fn notes(folders: &[FolderReport], run_epochs: u64) -> String {
    let mut text = String::new();
    if folders.iter().any(|folder| folder.own_values > 0) {
        text += "  +N own: so many images have a value of their own, which scheduled and effective count in\n";
    }
    if folders.iter().any(|folder| folder.repeats_per_image.is_some()) {
        text += &format!("  repeats: how often each image comes up in {}, on average\n", plural(run_epochs, "epoch"));
    }
    text
}

fn with_own(value: String, own: u64) -> String {
    if own == 0 { value } else { format!("{value} (+{} own)", grouped(own)) }
}

fn bucket_table(epochs: &[EpochReport], options: &TextOptions) -> String {
    let mut table = Table::new(["bucket", "images", "scheduled", "micro-batches", "fill", "padded"]);
    for (index, bucket) in epochs[0].buckets.iter().enumerate() {
        let each = || epochs.iter().map(|epoch| &epoch.buckets[index]);
        let range = |of: fn(&BucketReport) -> u64| Range::of(each().map(of)).to_string();
        let entries: u64 = each().map(|bucket| bucket.occurrences + bucket.padded).sum();
        let occurrences: u64 = each().map(|bucket| bucket.occurrences).sum();
        let fill = match entries {
            0 => "–".to_owned(),
            entries => format!("{:.0} %", occurrences as f64 / entries as f64 * 100.0),
        };
        table.row([
            format!("{}×{}", bucket.bucket.width, bucket.bucket.height),
            grouped(bucket.images),
            range(|bucket| bucket.occurrences),
            range(|bucket| bucket.micro_batches),
            fill,
            range(|bucket| bucket.padded),
        ]);
    }
    table.render(options.width)
}

fn epoch_list(epochs: &[EpochReport], options: &TextOptions) -> String {
    let alike = epochs.iter().all(|epoch| is_alike(epoch, &epochs[0]));
    let mut text = match alike {
        true => "the epochs have the same counts, each in an order of its own\n".to_owned(),
        false => "counts of fractions alternate; over the epochs they are exact\n".to_owned(),
    };
    let shown = epochs.len().min(options.most(EPOCHS_MAX));
    let mut table = Table::new(["epoch", "occurrences", "steps", "padded", "schedule"]);
    for epoch in &epochs[..shown] {
        table.row([
            epoch.epoch.to_string(),
            grouped(epoch.occurrences),
            grouped(epoch.steps),
            grouped(epoch.padded),
            format!("{}…", &epoch.schedule_hash[..16]),
        ]);
    }
    text += &table.render(options.width);
    if shown < epochs.len() {
        text += &format!("  … and {} (--all shows them)\n", plural((epochs.len() - shown) as u64, "more epoch"));
    }
    text
}

/// Whether two epochs give the same to every folder and bucket.
fn is_alike(a: &EpochReport, b: &EpochReport) -> bool {
    let scheduled = |epoch: &EpochReport| epoch.folders.iter().map(|folder| folder.scheduled).collect::<Vec<_>>();
    scheduled(a) == scheduled(b) && a.buckets == b.buckets
}

/// Adds a list under a title, cut to what one reads.
pub(super) fn list<T: AsRef<str>>(text: &mut String, title: &str, lines: &[T], options: &TextOptions) {
    if lines.is_empty() {
        return;
    }
    *text += &format!("\n{title} ({})\n", grouped(lines.len() as u64));
    let shown = lines.len().min(options.most(LINES_MAX));
    for line in &lines[..shown] {
        *text += &wrapped(line.as_ref(), options.width);
    }
    if shown < lines.len() {
        *text += &format!("  … and {} more (--all shows them)\n", grouped((lines.len() - shown) as u64));
    }
}

/// Indents a line, and breaks it between words where it is too long for the screen.
fn wrapped(line: &str, width: Option<usize>) -> String {
    use unicode_width::UnicodeWidthStr as _;
    let room = width.map_or(usize::MAX, |width| width.max(40));
    let mut text = String::from("  ");
    let mut used = 2;
    for (index, word) in line.split(' ').enumerate() {
        if index > 0 && used + 1 + word.width() > room {
            text += "\n      ";
            used = 6;
        } else if index > 0 {
            text.push(' ');
            used += 1;
        }
        text += word;
        used += word.width();
    }
    text + "\n"
}
