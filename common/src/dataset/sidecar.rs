//! What the files beside the images say: for a folder (`multiply.txt` and its like), for a folder and all below it
//! (`global.yaml`), and for one image (`NAME.txt`, `NAME.yaml`).

use std::collections::BTreeMap;

use super::names::{GLOBAL_FILES, LOCAL_FILES};
use super::node::Problem;
use super::settings::Overrides;
use super::text::{Text, quoted, read_text};
use super::walk::WalkedFolder;
use super::{AppliedFile, Dataset, SkippedImage, values, yaml};

/// No line of a report needs more of a file.
const MAX_SHOWN: usize = 200;

/// What reading the files brought to light.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) applied: Vec<AppliedFile>,
    pub(super) warnings: Vec<String>,
    pub(super) skipped: Vec<SkippedImage>,
    pub(super) problems: Vec<String>,
}

/// A file that was read, with its place and, in one line, what it says.
struct Layer {
    path: String,
    shown: String,
    overrides: Overrides,
}

/// Reads what the files of all folders say; `walked` has every folder behind the one that it lies in. What is wrong is noted,
/// so that all of it is found before anything is reported. Returns the settings of each folder's images.
pub(super) fn read_settings(walked: &[WalkedFolder], findings: &mut Findings) -> Vec<Overrides> {
    let mut inherited: BTreeMap<&str, Overrides> = BTreeMap::new();
    let mut all = Vec::with_capacity(walked.len());
    for folder in walked {
        let mut settings = above(&inherited, &folder.path).cloned().unwrap_or_default();
        let globals = read_layers(folder, &GLOBAL_FILES, findings);
        if !globals.is_empty() {
            let below = format!("{}/", folder.path);
            let reaches = |other: &WalkedFolder| folder.path.is_empty() || other.path.starts_with(&below);
            let is_used =
                walked.iter().any(|other| !other.images.is_empty() && (other.path == folder.path || reaches(other)));
            let unused = (!is_used).then_some("there are no images in its folder or below");
            apply(&mut settings, globals, unused, findings);
            inherited.insert(&folder.path, settings.clone());
        }
        let unused = folder.images.is_empty();
        let unused =
            unused.then_some("there are no images beside it, and a folder's file does not reach the folders below");
        apply(&mut settings, read_layers(folder, &LOCAL_FILES, findings), unused, findings);
        all.push(settings);
    }
    all
}

/// Finds the settings that the nearest folder above hands down.
fn above<'a>(inherited: &'a BTreeMap<&str, Overrides>, path: &str) -> Option<&'a Overrides> {
    let parents = path.match_indices('/').rev().map(|(at, _)| &path[..at]).chain([""]);
    parents.filter_map(|parent| inherited.get(parent)).next()
}

fn read_layers(folder: &WalkedFolder, names: &[&'static str], findings: &mut Findings) -> Vec<Layer> {
    names.iter().filter(|name| folder.has(name)).filter_map(|name| read_layer(folder, name, findings)).collect()
}

fn read_layer(folder: &WalkedFolder, name: &str, findings: &mut Findings) -> Option<Layer> {
    let path = folder.file(name);
    if name == "shuffle_tags.txt" {
        // Its presence is all that counts.
        return Some(Layer {
            path,
            shown: "on".to_owned(),
            overrides: Overrides { shuffle_tags: true, ..Overrides::default() },
        });
    }
    let read = read_text(&folder.directory.join(name)).map_err(|error| vec![cannot_read(&error.to_string())]);
    let parsed = read.and_then(|text| {
        warn_of_encoding(&path, &text, &mut findings.warnings);
        if name.ends_with(".txt") {
            parse_text(name, &text.text).map_err(|text| vec![text])
        } else {
            parse_yaml(&text.text)
        }
    });
    match parsed {
        Ok((overrides, shown)) => Some(Layer { path, shown, overrides }),
        Err(problems) => {
            findings.problems.push(lines(&path, &problems));
            None
        }
    }
}

fn cannot_read(error: &str) -> Problem {
    Problem::new(0, format!("cannot be read: {error}"))
}

/// Returns one entry for the report: a line for each thing that is wrong with a file.
fn lines(path: &str, problems: &[Problem]) -> String {
    problems.iter().map(|problem| problem.in_file(path)).collect::<Vec<_>>().join("\n  ")
}

fn warn_of_encoding(path: &str, text: &Text, warnings: &mut Vec<String>) {
    if !text.is_clean {
        warnings.push(format!("{path} is neither UTF-8 nor UTF-16: read as Latin-1"));
    }
}

/// Reads a file that holds a single value.
fn parse_text(name: &str, text: &str) -> Result<(Overrides, String), Problem> {
    let mut overrides = Overrides::default();
    let trimmed = text.trim();
    let parsed = match name {
        "multiply.txt" => values::multiply(trimmed).map(|value| overrides.multiply = Some(value)),
        "loss_scale.txt" => values::loss_scale(trimmed).map(|value| overrides.loss_scale = Some(value)),
        "cond_dropout.txt" => values::chance(trimmed).map(|value| overrides.cond_dropout = Some(value)),
        "flip_p.txt" => values::chance(trimmed).map(|value| overrides.flip_p = Some(value)),
        "batch_id.txt" => values::batch_id(trimmed).map(|value| overrides.batch_id = Some(value)),
        _ => unreachable!("{name} is no folder's file with a single value"),
    };
    parsed.map_err(|problem| Problem::new(0, format!("contains {}: {problem}", quoted(text))))?;
    let shown = overrides.single_values().into_iter().find_map(|(_, value)| value).unwrap_or_default();
    Ok((overrides, shown))
}

/// Reads a YAML file. An empty one says nothing.
fn parse_yaml(text: &str) -> Result<(Overrides, String), Vec<Problem>> {
    let Some(node) = yaml::parse(text).map_err(|problem| vec![problem])? else { return Ok(Default::default()) };
    let overrides = Overrides::from_node(&node)?;
    let shown = node.to_string();
    let short: String = shown.chars().take(MAX_SHOWN).collect();
    let dots = if short.len() < shown.len() { "…" } else { "" };
    Ok((overrides, short + dots))
}

/// Puts a folder's files over what holds there already, in their order, and notes each. `unused` says why they have no effect.
fn apply(settings: &mut Overrides, layers: Vec<Layer>, unused: Option<&str>, findings: &mut Findings) {
    if unused.is_none() {
        warn_of_overruled(&layers, &mut findings.warnings);
    }
    for Layer { path, shown, mut overrides } in layers {
        if let Some(reason) = unused {
            findings.warnings.push(format!("{path} has no effect: {reason}"));
        } else if shown.is_empty() {
            findings.warnings.push(format!("{path} has no effect: it is empty"));
        } else {
            warn_of_values(&path, &mut overrides, &mut findings.warnings);
            findings.applied.push(AppliedFile { path, value: shown });
        }
        settings.merge(overrides);
    }
}

fn warn_of_values(path: &str, overrides: &mut Overrides, warnings: &mut Vec<String>) {
    let key = if path.ends_with(".txt") { "" } else { ": loss_scale" };
    match overrides.loss_scale {
        Some(0.0) => warnings.push(format!("{path}{key} is 0: its images cost a step and teach nothing")),
        Some(..0.0) => warnings.push(format!("{path}{key} IS NEGATIVE: training moves AWAY from its images")),
        _ => {}
    }
    if !overrides.unused_prompts.is_empty() {
        let unused = std::mem::take(&mut overrides.unused_prompts).join("\", \"");
        warnings.push(format!("{path}: of the main_prompt list only the first is used, not: \"{unused}\""));
    }
}

/// Names values of a folder that a later file of the same folder puts another one over.
fn warn_of_overruled(layers: &[Layer], warnings: &mut Vec<String>) {
    let mut last: BTreeMap<&str, (&str, String)> = BTreeMap::new();
    for layer in layers {
        for (key, value) in layer.overrides.single_values() {
            let Some(value) = value else { continue };
            if let Some((path, before)) = last.insert(key, (&layer.path, value.clone()))
                && before != value
            {
                warnings.push(format!("{path}: {key} {before} is overruled by {}, which says {value}", layer.path));
            }
        }
    }
}

/// Reads a file beside an image: text is a caption, YAML may be any setting. None, with what is wrong noted, when it cannot be used.
pub(super) fn read_sidecar(path: &str, text: &Result<Text, String>, findings: &mut Findings) -> Option<Overrides> {
    let is_yaml = path.ends_with("yaml") || path.ends_with("yml");
    let text = match text {
        Ok(text) => text,
        Err(error) if is_yaml => {
            findings.problems.push(lines(path, &[cannot_read(error)]));
            return None;
        }
        Err(error) => {
            findings.warnings.push(format!("{path} cannot be read: {error}"));
            return None;
        }
    };
    warn_of_encoding(path, text, &mut findings.warnings);
    if !is_yaml {
        return Some(Overrides::from_caption(&text.text));
    }
    match parse_yaml(&text.text) {
        Ok((overrides, _)) => Some(overrides),
        Err(problems) => {
            findings.problems.push(lines(path, &problems));
            None
        }
    }
}

/// Logs every applied file once, with folder and value.
pub(super) fn log_applied(dataset: &Dataset) {
    for file in &dataset.applied_files {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or((".", &file.path));
        tracing::info!(folder, value = file.value, "{name} applied");
    }
}
