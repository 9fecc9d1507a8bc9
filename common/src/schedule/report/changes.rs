//! What differs between two plans: settings, folders, images, buckets, steps, and whether the schedules are the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{BucketReport, FolderReport, PlanReport, caption_text};
use crate::config::RunConfig;
use crate::dataset::{Dataset, Decimal, Sample};

/// Keys that say where a run lies and not what it does.
const PLACES: [&str; 3] = ["data.root", "run.name", "run.out"];

/// A plan with what it was made of.
#[derive(Debug, Clone, Copy)]
pub struct Planned<'a> {
    /// What the person called it: a config or a folder.
    pub name: &'a str,
    /// The config.
    pub config: &'a RunConfig,
    /// The data.
    pub dataset: &'a Dataset,
    /// The plan.
    pub report: &'a PlanReport,
}

/// What differs between two plans, `a` and `b`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changes {
    /// Whether nothing differs that has a part in what is learned or how it is balanced.
    pub identical: bool,
    /// Whether all that was found in the data is the same.
    pub same_fingerprint: bool,
    /// Whether every epoch that both show has the same schedule.
    pub same_schedule: bool,
    /// Names of the two.
    pub names: Pair<String>,
    /// Fingerprints of the data.
    pub fingerprint: Pair<String>,
    /// Hashes of the first epoch's schedule.
    pub schedule_hash: Pair<String>,
    /// Images of both.
    pub images: Pair<u64>,
    /// Occurrences of the first epoch.
    pub occurrences: Pair<u64>,
    /// Steps of the first epoch.
    pub steps_per_epoch: Pair<u64>,
    /// Epochs of the run.
    pub epochs: Pair<u64>,
    /// Steps of the run.
    pub run_steps: Pair<u64>,
    /// Settings that differ.
    pub settings: Vec<SettingChange>,
    /// Folders that differ.
    pub folders: Vec<FolderChange>,
    /// Buckets that differ.
    pub buckets: Vec<BucketChange>,
    /// Images that are only in `b`.
    pub added_images: Vec<String>,
    /// Images that are only in `a`.
    pub removed_images: Vec<String>,
    /// Images in both that differ.
    pub changed_images: Vec<ImageChange>,
}

/// A value of each plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair<T> {
    /// Of the first plan.
    pub a: T,
    /// Of the second plan.
    pub b: T,
}

impl<T: PartialEq> Pair<T> {
    /// Whether both are the same.
    pub fn is_same(&self) -> bool {
        self.a == self.b
    }
}

/// A setting that differs. None where it has no value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingChange {
    /// The key, as in `run.seed`.
    pub key: String,
    /// As it would be written into the config.
    #[serde(flatten)]
    pub value: Pair<Option<String>>,
}

/// How something came to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// It is only in `b`.
    Added,
    /// It is only in `a`.
    Removed,
    /// Its images or its values differ.
    Changed,
    /// Nothing of its own differs, but its share does, because others changed.
    Moved,
}

/// A folder that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FolderChange {
    /// Relative to the data root.
    pub path: String,
    /// How.
    pub change: ChangeKind,
    /// How many points of a percent its share went up.
    pub share_points: f64,
    /// The same of its effective share.
    pub effective_share_points: f64,
    /// What it was and is.
    #[serde(flatten)]
    pub values: Pair<Option<FolderReport>>,
}

/// A bucket that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BucketChange {
    /// Width and height.
    pub bucket: [u32; 2],
    /// What it was and is.
    #[serde(flatten)]
    pub values: Pair<Option<BucketReport>>,
}

/// An image that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImageChange {
    /// Relative to the data root.
    pub path: String,
    /// What differs: `picture`, `caption`, `multiply`, …
    pub what: Vec<&'static str>,
    /// The captions, if they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<Pair<String>>,
}

impl Changes {
    /// Compares two plans.
    pub fn between(a: &Planned<'_>, b: &Planned<'_>) -> Self {
        let pair = |of: &dyn Fn(&Planned<'_>) -> u64| Pair { a: of(a), b: of(b) };
        let text = |of: &dyn Fn(&Planned<'_>) -> String| Pair { a: of(a), b: of(b) };
        let first =
            |plan: &Planned<'_>| plan.report.epochs.first().map_or((0, 0), |epoch| (epoch.occurrences, epoch.steps));
        let schedules = |plan: &Planned<'_>| -> Vec<String> {
            plan.report.epochs.iter().map(|epoch| epoch.schedule_hash.clone()).collect()
        };
        let mut changes = Self {
            identical: false,
            same_fingerprint: a.dataset.fingerprint == b.dataset.fingerprint,
            same_schedule: schedules(a) == schedules(b),
            names: text(&|plan| plan.name.to_owned()),
            fingerprint: text(&|plan| plan.dataset.fingerprint.clone()),
            schedule_hash: text(&|plan| schedules(plan).into_iter().next().unwrap_or_default()),
            images: pair(&|plan| plan.report.dataset.images),
            occurrences: pair(&|plan| first(plan).0),
            steps_per_epoch: pair(&|plan| first(plan).1),
            epochs: pair(&|plan| plan.report.run.epochs),
            run_steps: pair(&|plan| plan.report.run.steps),
            settings: settings(a.config, b.config),
            folders: folders(a.report, b.report),
            buckets: buckets(a.report, b.report),
            added_images: Vec::new(),
            removed_images: Vec::new(),
            changed_images: Vec::new(),
        };
        changes.compare_images(a.dataset, b.dataset);
        changes.identical = changes.same_fingerprint
            && changes.same_schedule
            && changes.run_steps.is_same()
            && changes.settings.is_empty()
            && changes.folders.is_empty()
            && changes.buckets.is_empty()
            && changes.added_images.is_empty()
            && changes.removed_images.is_empty()
            && changes.changed_images.is_empty();
        changes
    }

    /// Samples are sorted by path, so that the two lists are gone through side by side.
    fn compare_images(&mut self, a: &Dataset, b: &Dataset) {
        let (mut left, mut right) = (a.samples.iter().peekable(), b.samples.iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) => a.path.cmp(&b.path),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (None, None) => return,
            };
            let old = order.is_le().then(|| left.next()).flatten();
            let new = order.is_ge().then(|| right.next()).flatten();
            match (old, new) {
                (Some(old), Some(new)) => self.changed_images.extend(image_change((a, old), (b, new))),
                (Some(old), None) => self.removed_images.push(old.path.clone()),
                (None, Some(new)) => self.added_images.push(new.path.clone()),
                (None, None) => return,
            }
        }
    }
}

fn settings(a: &RunConfig, b: &RunConfig) -> Vec<SettingChange> {
    let (a, b) = (flat(a), flat(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let changed = keys.into_iter().filter(|key| !PLACES.contains(&key.as_str()) && a.get(*key) != b.get(*key));
    let change = |key: &String| SettingChange {
        key: key.clone(),
        value: Pair { a: a.get(key).cloned(), b: b.get(key).cloned() },
    };
    changed.map(change).collect()
}

/// Returns every value of a config by its key, as it would be written.
fn flat(config: &RunConfig) -> BTreeMap<String, String> {
    let config = toml::Table::try_from(config).expect("every field of the config has a TOML form");
    let mut values = BTreeMap::new();
    for (section, entries) in config {
        for (key, value) in entries.as_table().into_iter().flatten() {
            values.insert(format!("{section}.{key}"), value.to_string());
        }
    }
    values
}

fn folders(a: &PlanReport, b: &PlanReport) -> Vec<FolderChange> {
    let by_path = |report: &PlanReport| -> BTreeMap<String, FolderReport> {
        let folders = report.epochs.first().map(|epoch| epoch.folders.clone()).unwrap_or_default();
        folders.into_iter().map(|folder| (folder.path.clone(), folder)).collect()
    };
    paired(by_path(a), by_path(b)).into_iter().filter_map(|(path, values)| FolderChange::new(path, values)).collect()
}

impl FolderChange {
    fn new(path: String, values: Pair<Option<FolderReport>>) -> Option<Self> {
        let part =
            |folder: &Option<FolderReport>, of: fn(&FolderReport) -> f64| folder.as_ref().map_or(0.0, of) * 100.0;
        let points = |of: fn(&FolderReport) -> f64| part(&values.b, of) - part(&values.a, of);
        let change = match (&values.a, &values.b) {
            (Some(a), Some(b)) if own(a) != own(b) => ChangeKind::Changed,
            (Some(a), Some(b)) if (a.share, a.effective_share) != (b.share, b.effective_share) => ChangeKind::Moved,
            (Some(_), Some(_)) | (None, None) => return None,
            (None, Some(_)) => ChangeKind::Added,
            (Some(_), None) => ChangeKind::Removed,
        };
        let (share_points, effective_share_points) =
            (points(|folder| folder.share), points(|folder| folder.effective_share));
        Some(Self { path, change, share_points, effective_share_points, values })
    }
}

/// What a folder has by itself, whatever the others have.
fn own(folder: &FolderReport) -> (u64, Decimal, f64, u64, u64, u64) {
    let FolderReport { images, multiply, loss_scale, scheduled, own_multiply, own_loss_scale, .. } = folder;
    (*images, *multiply, *loss_scale, *scheduled, *own_multiply, *own_loss_scale)
}

fn buckets(a: &PlanReport, b: &PlanReport) -> Vec<BucketChange> {
    let by_size = |report: &PlanReport| -> BTreeMap<[u32; 2], BucketReport> {
        let buckets = report.epochs.first().map(|epoch| epoch.buckets.clone()).unwrap_or_default();
        buckets.into_iter().map(|report| ([report.bucket.width, report.bucket.height], report)).collect()
    };
    let pairs = paired(by_size(a), by_size(b)).into_iter().filter(|(_, values)| !values.is_same());
    pairs.map(|(bucket, values)| BucketChange { bucket, values }).collect()
}

fn paired<K: Ord + Clone, V>(mut a: BTreeMap<K, V>, mut b: BTreeMap<K, V>) -> Vec<(K, Pair<Option<V>>)> {
    let keys: BTreeSet<K> = a.keys().chain(b.keys()).cloned().collect();
    keys.into_iter().map(|key| (key.clone(), Pair { a: a.remove(&key), b: b.remove(&key) })).collect()
}

/// Compares an image with itself. A multiplier or loss scale counts only where it is not the folder's: else the folder's line says it.
fn image_change((of_a, a): (&Dataset, &Sample), (of_b, b): (&Dataset, &Sample)) -> Option<ImageChange> {
    let folders = (&of_a.folders[a.folder as usize], &of_b.folders[b.folder as usize]);
    let has_own_multiply = a.multiply != folders.0.multiply || b.multiply != folders.1.multiply;
    let has_own_scale = a.loss_scale != folders.0.loss_scale || b.loss_scale != folders.1.loss_scale;
    let (old, new) = (caption_text(a), caption_text(b));
    let differences = [
        ("picture", (a.bytes, a.width, a.height) != (b.bytes, b.width, b.height)),
        ("caption", a.caption != b.caption),
        ("multiply", has_own_multiply && a.multiply != b.multiply),
        ("loss_scale", has_own_scale && a.loss_scale != b.loss_scale),
        ("cond_dropout", a.cond_dropout != b.cond_dropout),
        ("flip_p", a.flip_p != b.flip_p),
        ("batch_id", a.batch_id != b.batch_id),
        ("rating", a.rating != b.rating),
    ];
    let what: Vec<&str> = differences.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect();
    let caption = (old != new).then_some(Pair { a: old, b: new });
    (!what.is_empty()).then(|| ImageChange { path: b.path.clone(), what, caption })
}
