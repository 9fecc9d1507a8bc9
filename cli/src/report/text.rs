//! The report as text for people.

use ballast_coordinator::report::{FolderReport, ImageReport, LossReport, RunReport};

use crate::progress::counted;
use crate::summary::shown;
use crate::table::{column, extra, table};

/// Writes the report in lines of at most `width` characters, tables of folders with at most `rows`.
pub(super) fn text(report: &RunReport, rows: usize, width: usize) -> String {
    let mut text = head(report, width);
    if report.run.committed_steps == 0 {
        return text + "  nothing is committed yet\n";
    }
    text += &exposures(report, rows, width);
    text += &losses(report, rows, width);
    text += &quarters(report, width);
    let from = counted(report.ranked_from_exposures, "use");
    for (title, images) in [("highest", &report.highest_loss), ("most erratic", &report.most_erratic)] {
        if !images.is_empty() {
            text += &format!("\nimages with the {title} adjusted loss (of those with at least {from})\n");
            text += &image_table(images, width);
        }
    }
    if let Some(images) = &report.images {
        text += &format!("\nevery image ({})\n", images.len());
        text += &image_table(images, width);
    }
    for (index, note) in report.notes.iter().enumerate() {
        text += if index == 0 { "\nnotes\n" } else { "" };
        text += &wrapped(note, width);
    }
    text
}

fn head(report: &RunReport, width: usize) -> String {
    let run = &report.run;
    let of = |all: Option<u64>| all.map_or_else(String::new, |all| format!(" of {all}"));
    let steps = format!("{}{} steps are committed", run.committed_steps, of(run.total_steps));
    let epochs = format!("{}{} epochs are covered whole", run.complete_epochs, of(run.epochs));
    let mut text = format!("{}: {steps}, {epochs}\n", shown(&run.folder));
    if run.steps_taken_back > 0 {
        let times = counted(run.rollbacks.len() as u64, "rollback");
        let steps = counted(run.steps_taken_back, "step");
        let line = format!("{steps} were taken back in {times}, to be computed again; only what counts is shown");
        text += &wrapped(&line, width);
    }
    text
}

fn exposures(report: &RunReport, rows: usize, width: usize) -> String {
    let columns = [
        column("folder"),
        column("images"),
        column("delivered"),
        column("intended"),
        column("skipped"),
        column("per image"),
        column("effective"),
        extra("intended"),
        extra("weight"),
        extra("multiply"),
        extra("loss scale"),
    ];
    let several = |value: Option<String>| value.unwrap_or_else(|| "several".to_owned());
    let row = |folder: &&FolderReport| {
        let (exposures, spread) = (&folder.exposures, &folder.exposures_per_image);
        let intended_share = folder.intended_effective_share.map_or_else(nothing, percent);
        let known = |value: Option<String>| if exposures.intended.is_none() { nothing() } else { several(value) };
        [
            folder.path.clone(),
            folder.images.to_string(),
            exposures.delivered.to_string(),
            exposures.intended.map_or_else(nothing, |intended| intended.to_string()),
            exposures.skipped.to_string(),
            if spread.min == spread.max { spread.min.to_string() } else { format!("{}–{}", spread.min, spread.max) },
            percent(folder.effective_share),
            intended_share,
            number(exposures.weight),
            known(folder.multiply.map(|multiply| multiply.to_string())),
            known(folder.loss_scale.map(|scale| scale.to_string())),
        ]
    };
    let mut cells: Vec<_> = most_used(report, rows).iter().map(row).collect();
    let total = &report.total;
    let mut all: [String; 11] = Default::default();
    all[0] = "all".to_owned();
    all[1] = total.images.to_string();
    all[2] = total.exposures.delivered.to_string();
    all[3] = total.exposures.intended.map_or_else(nothing, |intended| intended.to_string());
    all[4] = total.exposures.skipped.to_string();
    all[8] = number(total.exposures.weight);
    cells.push(all);
    let never = total.images - total.images_used;
    let never = if never > 0 { format!("{} never came up so far\n", counted(never, "image")) } else { String::new() };
    let title = "\nuses of images: delivered against intended, and the share of the whole weight (effective)\n";
    wrapped_head(title, width) + &table(columns, &cells, width) + &more(report, rows) + &indented(&never)
}

fn losses(report: &RunReport, rows: usize, width: usize) -> String {
    let row = |folder: &&FolderReport| loss_row(folder.path.clone(), folder.exposures.delivered, &folder.loss);
    let mut cells: Vec<_> = most_used(report, rows).iter().map(row).collect();
    cells.push(loss_row("all".to_owned(), report.total.exposures.delivered, &report.total.loss));
    let band = 1000 / report.timestep_bands.max(1);
    let title = format!(
        "\nloss, and adjusted: each over the run's mean in its band of {band} timesteps (1 is the run as a whole)\n"
    );
    wrapped_head(&title, width) + &table(loss_columns("folder"), &cells, width) + &more(report, rows)
}

fn quarters(report: &RunReport, width: usize) -> String {
    let used = report.timestep_quarters.iter().filter(|quarter| quarter.losses > 0);
    let row = |quarter: &ballast_coordinator::report::QuarterReport| {
        let name = format!("{} to {}", quarter.from_timestep, quarter.to_timestep - 1);
        loss_row(name, quarter.losses, &quarter.loss)
    };
    let cells: Vec<_> = used.map(row).collect();
    if cells.is_empty() { String::new() } else { "\n".to_owned() + &table(loss_columns("timesteps"), &cells, width) }
}

const fn loss_columns(what: &'static str) -> [crate::table::Column; 7] {
    [
        column(what),
        extra("uses"),
        column("loss"),
        column("adjusted"),
        column("first tenth"),
        column("last tenth"),
        column("change"),
    ]
}

fn loss_row(name: String, uses: u64, loss: &LossReport) -> [String; 7] {
    let change = loss.change.map_or_else(nothing, |change| signed(change * 100.0) + " %");
    let (first, last) = (loss.first_tenth.adjusted, loss.last_tenth.adjusted);
    [name, uses.to_string(), decimal(loss.mean), decimal(loss.adjusted), decimal(first), decimal(last), change]
}

fn image_table(images: &[ImageReport], width: usize) -> String {
    let columns = [
        column("image"),
        column("uses"),
        extra("skipped"),
        extra("weight"),
        column("loss"),
        column("adjusted"),
        column("deviation"),
        column("last"),
    ];
    let row = |image: &ImageReport| {
        [
            image.path.clone(),
            image.delivered.to_string(),
            image.skipped.to_string(),
            number(image.weight),
            decimal(image.mean),
            decimal(image.adjusted),
            decimal(image.adjusted_deviation),
            decimal(image.last_adjusted),
        ]
    };
    table(columns, &images.iter().map(row).collect::<Vec<_>>(), width)
}

/// Returns the folders that a table shows: all in the order of their paths, or those with the most uses.
fn most_used(report: &RunReport, rows: usize) -> Vec<&FolderReport> {
    let mut folders: Vec<_> = report.folders.iter().collect();
    if folders.len() > rows {
        folders.sort_by_key(|folder| std::cmp::Reverse(folder.exposures.delivered));
        folders.truncate(rows);
    }
    folders
}

fn more(report: &RunReport, rows: usize) -> String {
    match report.folders.len().saturating_sub(rows) {
        0 => String::new(),
        more => format!("  … and {more} more folders with fewer uses (--rows {} shows all)\n", report.folders.len()),
    }
}

fn nothing() -> String {
    "–".to_owned()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn decimal(value: Option<f64>) -> String {
    value.map_or_else(nothing, |value| format!("{value:.3}"))
}

/// Writes a sum of weights without decimals that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn signed(value: f64) -> String {
    if value < -0.05 { format!("−{:.1}", -value) } else { format!("+{:.1}", value.abs()) }
}

fn indented(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("  {text}") }
}

fn wrapped_head(text: &str, width: usize) -> String {
    text.chars().take_while(|c| *c == '\n').collect::<String>()
        + wrapped(text.trim(), width + 2).replace("\n  ", "\n").trim_start_matches(' ')
}

/// Breaks a text into indented lines.
fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("one is there from the start");
        if !line.is_empty() && line.chars().count() + word.chars().count() + 3 > width {
            lines.push(word.to_owned());
        } else {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use ballast_coordinator::report::{
        ExposureCount, Exposures, LossPair, LossPart, QuarterReport, Rollback, RunFacts, Spread, Totals,
    };

    use super::*;

    fn loss(level: f64) -> LossReport {
        let part = |part: u64| LossPart {
            from_step: part * 2,
            to_step: part * 2 + 2,
            losses: 5,
            mean: 0.2 * level,
            deviation: 0.1,
            adjusted: level - part as f64 * 0.004,
            adjusted_deviation: 0.3,
        };
        let pair = |adjusted| LossPair { mean: Some(0.2), adjusted: Some(adjusted) };
        LossReport {
            mean: Some(0.2 * level),
            adjusted: Some(level - 0.1),
            first_tenth: pair(level),
            last_tenth: pair(level - 0.2),
            change: Some(-0.2 / level),
            over_time: (0..50).map(part).collect(),
        }
    }

    fn folder(number: usize) -> FolderReport {
        FolderReport {
            path: format!("subjects/folder number {number}"),
            images: 20,
            images_used: 18,
            multiply: (number != 1).then(|| ballast_common::dataset::Decimal::parse("2.5").unwrap()),
            loss_scale: Some(0.5),
            exposures: Exposures {
                delivered: 50,
                intended: Some(51),
                skipped: 1,
                not_finite: 0,
                weight: 25.0,
                intended_weight: Some(25.5),
            },
            share: 0.1,
            effective_share: 0.123,
            intended_effective_share: Some(0.125),
            exposures_per_image: Spread { min: 0, mean: 2.5, max: 3 },
            loss: loss(1.0 + number as f64 / 1000.0),
        }
    }

    fn image(path: &str) -> ImageReport {
        ImageReport {
            path: path.to_owned(),
            delivered: 7,
            skipped: 0,
            weight: 3.5,
            mean: Some(0.4),
            deviation: Some(0.2),
            adjusted: Some(1.8),
            adjusted_deviation: Some(0.7),
            last: None,
            last_adjusted: None,
        }
    }

    /// A report of so many folders.
    pub(in crate::report) fn sample(folders: usize) -> RunReport {
        let quarter = |number: u32| QuarterReport {
            from_timestep: number * 250,
            to_timestep: number * 250 + 250,
            losses: 9,
            loss: loss(1.0),
        };
        RunReport {
            run: RunFacts {
                folder: "runs/cats".into(),
                id: "cats".to_owned(),
                committed_steps: 100,
                total_steps: Some(400),
                complete_epochs: 2,
                epochs: Some(8),
                steps_taken_back: 3,
                rollbacks: vec![Rollback { from_step: 12, to_step: 9 }],
            },
            total: Totals {
                images: 20 * folders as u64,
                images_used: 18 * folders as u64,
                exposures: Exposures { delivered: 50 * folders as u64, ..folder(0).exposures },
                loss: loss(1.0),
            },
            folders: (0..folders).map(folder).collect(),
            timestep_quarters: (0..4).map(quarter).collect(),
            timestep_bands: 50,
            exposures_per_image: vec![
                ExposureCount { exposures: 0, images: 2 },
                ExposureCount { exposures: 3, images: 18 },
            ],
            ranked_from_exposures: 3,
            highest_loss: vec![image("subjects/folder number 0/a rather long name of a picture (17).png")],
            most_erratic: vec![],
            images: None,
            notes: vec!["1 use had a picture that could not be read: it counted with weight 0".to_owned()],
            scatter: vec![(3, 0.2)],
        }
    }

    #[test]
    fn lines_keep_to_the_width_and_say_what_matters() {
        for width in [80, 120] {
            let text = text(&sample(3), 30, width);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            for part in [
                "runs/cats: 100 of 400 steps are committed, 2 of 8 epochs are covered whole",
                "3 steps were taken back in 1 rollback",
                "0–3",
                "12.3 %",
                "−20.0 %",
                "750 to 999",
                "6 images never came up so far",
                "band of 20 timesteps",
                "with at least 3 uses",
            ] {
                assert!(text.replace('\n', " ").contains(part), "{part}\n{text}");
            }
            assert_eq!(text.contains("several"), width == 120);
        }
    }

    #[test]
    fn many_folders_are_cut() {
        let text = text(&sample(300), 30, 80);
        assert_eq!(text.matches("… and 270 more folders").count(), 2);
        assert!(text.lines().count() < 100, "{text}");
    }

    #[test]
    fn nothing_yet() {
        let mut report = sample(1);
        report.run.committed_steps = 0;
        assert!(text(&report, 30, 80).ends_with("nothing is committed yet\n"));
    }
}
