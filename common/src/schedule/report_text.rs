//! The balance table as text for people, in aligned columns.

use std::fmt;

use super::report::{BucketReport, EpochReport, FolderReport, PlanReport};

/// Most lines that one list of the report takes on a screen; of a hundred thousand small pictures nobody reads all.
const LINES_MAX: usize = 20;

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} images, fingerprint {}", self.dataset.images, self.dataset.fingerprint)?;
        for epoch in &self.epochs {
            write!(f, "\n{epoch}")?;
        }
        let sections = [
            ("files applied", &self.dataset.applied_files),
            ("warnings", &self.dataset.warnings),
            ("enlarged to fill their bucket", &self.dataset.upscaled),
        ];
        for (title, lines) in sections.into_iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "\n{title} ({})", lines.len())?;
            lines.iter().take(LINES_MAX).try_for_each(|line| writeln!(f, "  {line}"))?;
            if lines.len() > LINES_MAX {
                writeln!(f, "  … and {} more", lines.len() - LINES_MAX)?;
            }
        }
        for sample in self.samples.iter().flatten() {
            let [width, height] = sample.bucket;
            writeln!(f, "{}  {width}×{height}  ×{}  {:?}", sample.path, sample.multiply, sample.caption)?;
        }
        Ok(())
    }
}

impl fmt::Display for EpochReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, occurrences, steps, micro_batches, padded, schedule_hash, .. } = self;
        writeln!(
            f,
            "epoch {epoch}: {occurrences} occurrences, {micro_batches} micro-batches ({padded} padded), {steps} steps"
        )?;
        writeln!(f, "schedule {schedule_hash}\n")?;
        let percent = |part: f64| format!("{:.2} %", part * 100.0);
        let head = ["folder", "images", "multiply", "scheduled", "share", "loss scale", "effective"].map(str::to_owned);
        let row = |folder: &FolderReport| {
            let numbers = [folder.images.to_string(), folder.multiply.to_string(), folder.scheduled.to_string()];
            let [images, multiply, scheduled] = numbers;
            let (share, effective) = (percent(folder.share), percent(folder.effective_share));
            [folder.path.clone(), images, multiply, scheduled, share, folder.loss_scale.to_string(), effective]
        };
        write_table(f, std::iter::once(head).chain(self.folders.iter().map(row)).collect())?;
        let head = ["bucket", "occurrences", "micro-batches", "padded"].map(str::to_owned);
        let row = |report: &BucketReport| {
            let size = format!("{}×{}", report.bucket.width, report.bucket.height);
            [size, report.occurrences.to_string(), report.micro_batches.to_string(), report.padded.to_string()]
        };
        writeln!(f)?;
        write_table(f, std::iter::once(head).chain(self.buckets.iter().map(row)).collect())
    }
}

/// Writes rows in aligned columns: the first to the left, numbers to the right.
fn write_table<const N: usize>(f: &mut fmt::Formatter<'_>, rows: Vec<[String; N]>) -> fmt::Result {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in rows {
        write!(f, "  {:<width$}", row[0], width = widths[0])?;
        for (cell, width) in row.iter().zip(widths).skip(1) {
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
