//! What differs between two plans, as text for people.

use std::fmt::Write as _;

use super::changes::{BucketChange, ChangeKind, Changes, FolderChange, ImageChange, Pair};
use super::table::{Short, Table, grouped, percent};
use super::text::list;
use super::{BucketReport, FolderReport, TextOptions};

/// Most folders that a table shows.
const FOLDERS_MAX: usize = 50;

impl Changes {
    /// Returns the differences as text, a line break at its end.
    pub fn text(&self, options: &TextOptions) -> String {
        let mut text = format!("a: {}\nb: {}\n", self.names.a, self.names.b);
        if self.identical {
            return text + "\nNo difference: the same data, settings and schedule.\n";
        }
        text += &self.summary(options);
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|setting| {
                format!("{}: {}", setting.key, arrow(&setting.value, |value| value.clone().unwrap_or("none".into())))
            })
            .collect();
        list(&mut text, "settings", &settings, options);
        text += &self.folder_tables(options);
        text += &bucket_table(&self.buckets, options);
        list(&mut text, "images only in b", &self.added_images, options);
        list(&mut text, "images only in a", &self.removed_images, options);
        let images: Vec<String> = self.changed_images.iter().map(image_line).collect();
        list(&mut text, "images that differ", &images, options);
        text
    }

    fn summary(&self, options: &TextOptions) -> String {
        let mut table = Table::new(["* differs", "a", "b"]);
        let numbers = [
            ("images", &self.images),
            ("occurrences per epoch", &self.occurrences),
            ("steps per epoch", &self.steps_per_epoch),
            ("epochs", &self.epochs),
            ("steps in the run", &self.run_steps),
        ];
        for (name, pair) in numbers {
            let mark = if pair.is_same() { "" } else { " *" };
            table.row([format!("{name}{mark}"), grouped(pair.a), grouped(pair.b)]);
        }
        let hashes =
            [("data", self.same_fingerprint, &self.fingerprint), ("schedule", self.same_schedule, &self.schedule_hash)];
        for (name, is_same, pair) in hashes {
            let mark = if is_same { "" } else { " *" };
            let short = |hash: &String| hash.chars().take(12).chain("…".chars()).collect::<String>();
            table.row([format!("{name}{mark}"), short(&pair.a), short(&pair.b)]);
        }
        let verdict = match (self.same_fingerprint, self.same_schedule) {
            (true, true) => "the same data, the same schedule",
            (true, false) => "the same data, another schedule",
            (false, true) => "other data, the same schedule",
            (false, false) => "other data, another schedule",
        };
        format!("\n{verdict}\n{}", table.render(options.width))
    }

    fn folder_tables(&self, options: &TextOptions) -> String {
        if self.folders.is_empty() {
            return String::new();
        }
        let count = |kind| self.folders.iter().filter(|folder| folder.change == kind).count();
        let counts = [
            (count(ChangeKind::Added), "added"),
            (count(ChangeKind::Removed), "removed"),
            (count(ChangeKind::Changed), "changed"),
            (count(ChangeKind::Moved), "with another share only"),
        ];
        let counts: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let mut text = format!("\nfolders ({})\n", counts.join(", "));
        let changed: Vec<&FolderChange> =
            self.folders.iter().filter(|folder| folder.change != ChangeKind::Moved).collect();
        text += &limited(&changed, options, ["folder", "images", "multiply", "scale", "scheduled", ""], |folder| {
            let of = |of: fn(&FolderReport) -> String| both(&folder.values, of);
            [
                folder.path.clone(),
                of(|folder| grouped(folder.images)),
                of(|folder| folder.multiply.short()),
                of(|folder| folder.loss_scale.short()),
                of(|folder| grouped(folder.scheduled)),
                change_name(folder.change).to_owned(),
            ]
        });
        text += "\nshares, and by how many points they went up or down\n";
        let head = ["folder", "share a", "b", "points", "effective a", "b", "points"];
        let all: Vec<&FolderChange> = self.folders.iter().collect();
        text += &limited(&all, options, head, |folder| {
            let part = |value: &Option<FolderReport>, of: fn(&FolderReport) -> f64| {
                value.as_ref().map_or("–".to_owned(), |folder| percent(of(folder)))
            };
            let share = |folder: &FolderReport| folder.share;
            let effective = |folder: &FolderReport| folder.effective_share;
            let Pair { a, b } = &folder.values;
            [
                folder.path.clone(),
                part(a, share),
                part(b, share),
                points(folder.share_points),
                part(a, effective),
                part(b, effective),
                points(folder.effective_share_points),
            ]
        });
        text
    }
}

fn limited<const N: usize>(
    changes: &[&FolderChange],
    options: &TextOptions,
    head: [&str; N],
    row: impl Fn(&FolderChange) -> [String; N],
) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let shown = if options.all { changes.len() } else { changes.len().min(FOLDERS_MAX) };
    let mut table = Table::new(head);
    changes[..shown].iter().for_each(|change| table.row(row(change)));
    let mut text = table.render(options.width);
    if shown < changes.len() {
        _ = writeln!(text, "  … and {} more (--all shows them)", grouped((changes.len() - shown) as u64));
    }
    text
}

fn bucket_table(changes: &[BucketChange], options: &TextOptions) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let mut table = Table::new(["bucket", "images", "scheduled", "micro-batches", "padded"]);
    for change in changes {
        let of = |of: fn(&BucketReport) -> String| both(&change.values, of);
        let [width, height] = change.bucket;
        table.row([
            format!("{width}×{height}"),
            of(|bucket| grouped(bucket.images)),
            of(|bucket| grouped(bucket.occurrences)),
            of(|bucket| grouped(bucket.micro_batches)),
            of(|bucket| grouped(bucket.padded)),
        ]);
    }
    format!("\nbuckets ({})\n{}", changes.len(), table.render(options.width))
}

fn image_line(change: &ImageChange) -> String {
    let mut line = format!("{}: {}", change.path, change.what.join(", "));
    if let Some(caption) = &change.caption {
        line += &format!(" ({:?} → {:?})", caption.a, caption.b);
    }
    line
}

fn change_name(change: ChangeKind) -> &'static str {
    match change {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Changed => "changed",
        ChangeKind::Moved => "moved",
    }
}

fn arrow<T>(pair: &Pair<T>, show: impl Fn(&T) -> String) -> String {
    let (a, b) = (show(&pair.a), show(&pair.b));
    if a == b { a } else { format!("{a} → {b}") }
}

fn both<T>(values: &Pair<Option<T>>, show: fn(&T) -> String) -> String {
    match (&values.a, &values.b) {
        (Some(_), Some(_)) => arrow(values, |value| value.as_ref().map_or("–".to_owned(), show)),
        (one, other) => one.as_ref().or(other.as_ref()).map_or("–".to_owned(), show),
    }
}

fn points(points: f64) -> String {
    if points.abs() < 0.005 { "0.00".to_owned() } else { format!("{points:+.2}") }
}
