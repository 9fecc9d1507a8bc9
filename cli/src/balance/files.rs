//! The multiply.txt files that a proposal asks for: which of them may be written, and how.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ballast_common::dataset::{Dataset, Decimal, read_small_text};
use ballast_common::schedule::{BalanceReport, BalanceRow};
use serde_json::{Value, json};

use crate::failure::Failure;

const NAME: &str = "multiply.txt";

/// A folder's multiplier that is to change.
pub(super) struct Change {
    /// The file, relative to the data root.
    file: String,
    path: PathBuf,
    before: Decimal,
    after: Decimal,
    /// What the file says now. None when there is none.
    old: Option<String>,
    /// Where the multiplier comes from instead.
    obstacle: Option<Obstacle>,
    written: bool,
}

/// Why a multiply.txt would not do.
enum Obstacle {
    /// A file of the folder that goes over multiply.txt.
    Beaten(String),
    /// Another file sets the multiplier, and a multiply.txt would hide it.
    Hides,
}

/// Returns what has to change, in the order of the folders.
pub(super) fn changes(dataset: &Dataset, report: &BalanceReport) -> Result<Vec<Change>, Failure> {
    report.folders.iter().filter(|row| row.is_changed()).map(|row| Change::new(dataset, row)).collect()
}

/// Writes all of the changes, or none when one of them may not be made.
pub(super) fn write(changes: &mut [Change], force: bool) -> Result<(), Failure> {
    let refused: Vec<String> = changes.iter().filter_map(|change| change.refusal(force)).collect();
    if !refused.is_empty() {
        let list = refused.iter().fold(String::new(), |list, line| format!("{list}\n  {line}"));
        let failure = Failure::usage(format!("nothing was written, because of {}:{list}", folders(refused.len())));
        let is_forced = changes.iter().any(|change| !force && change.needs_force());
        return Err(if is_forced { failure.hint("--force writes over a multiply.txt that is there") } else { failure });
    }
    let mut done = Vec::new();
    for change in changes {
        write_file(&change.path, &format!("{}\n", change.after))
            .with_context(|| format!("cannot write {}", change.path.display()))
            .map_err(|error| match done.len() {
                0 => Failure::from(error).hint("nothing was written"),
                _ => Failure::from(error).hint(format!("written before that: {}", done.join(", "))),
            })?;
        change.written = true;
        done.push(change.file.clone());
    }
    Ok(())
}

impl Change {
    fn new(dataset: &Dataset, row: &BalanceRow) -> Result<Self, Failure> {
        let file = if row.path == "." { NAME.to_owned() } else { format!("{}/{NAME}", row.path) };
        let path = dataset.roots.locate(&file).map_err(Failure::failed)?;
        let old =
            path.exists().then(|| read_small_text(&path).map_or_else(|error| error.to_string(), |text| shown(&text)));
        let folder = path.parent().unwrap_or(Path::new("."));
        let beaten = ["local.yaml", "local.yml"].into_iter().find(|name| sets_multiply(&folder.join(name)));
        let obstacle = match beaten {
            Some(name) => Some(Obstacle::Beaten(name.to_owned())),
            None if old.is_none() && row.multiply.before != Decimal::ONE => Some(Obstacle::Hides),
            None => None,
        };
        let (before, after) = (row.multiply.before, row.multiply.after);
        Ok(Self { file, path, before, after, old, obstacle, written: false })
    }

    /// Says whether --write does it only with --force.
    pub(super) fn needs_force(&self) -> bool {
        !self.is_refused() && (self.old.is_some() || self.obstacle.is_some())
    }

    /// Says whether not even --force does it.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.obstacle, Some(Obstacle::Beaten(_)))
    }

    /// Says why it may not be written, if it may not.
    fn refusal(&self, force: bool) -> Option<String> {
        let Self { file, before, after, .. } = self;
        match (&self.obstacle, &self.old) {
            (Some(Obstacle::Beaten(name)), _) => Some(format!(
                "{file}: {name} beside it sets multiply and goes over multiply.txt; write `multiply: {after}` there, or take \
                 its multiply out"
            )),
            (Some(Obstacle::Hides), _) if !force => Some(format!(
                "{file}: the multiplier {before} comes from a global.yaml, which a multiply.txt here would hide; with --force \
                 it is written"
            )),
            (None, Some(old)) if !force => {
                Some(format!("{file}: is there and says {old:?}; {after} would take its place"))
            }
            _ => None,
        }
    }

    /// Returns the change as a line: what the file says now, and what it would say.
    pub(super) fn line(&self) -> String {
        let Self { file, before, after, .. } = self;
        let old = match (&self.old, &self.obstacle) {
            (_, Some(Obstacle::Beaten(_))) => return self.refusal(false).unwrap_or_default(),
            (Some(old), _) => format!("{}was {old:?}", if self.written { "" } else { "is there, needs --force; " }),
            (None, Some(_)) if self.written => format!("hides the {before} of a global.yaml"),
            (None, Some(_)) => format!("would hide the {before} of a global.yaml, needs --force"),
            (None, None) => "new".to_owned(),
        };
        format!("{file}: {after} ({old})")
    }

    pub(super) fn json(&self) -> Value {
        let needs = match self {
            change if change.is_refused() => "refused",
            change if change.needs_force() => "force",
            _ => "write",
        };
        json!({
            "path": self.file,
            "old": self.old,
            "new": self.after,
            "needs": needs,
            "reason": if self.written { None } else { self.refusal(false) },
            "written": self.written,
        })
    }
}

/// Whether a YAML file sets `multiply`. Too careful rather than too bold: what is written must have an effect.
fn sets_multiply(path: &Path) -> bool {
    let Ok(text) = read_small_text(path) else { return false };
    let is_set = |line: &str| {
        let ends = line.match_indices("multiply").map(|(at, word)| &line[at + word.len()..]);
        ends.map(|rest| rest.trim_start_matches(['"', '\'', ' ', '\t'])).any(|rest| rest.starts_with(':'))
    };
    text.lines().filter(|line| !line.trim_start().starts_with('#')).any(is_set)
}

/// Shows what a file says in one line.
fn shown(text: &str) -> String {
    text.trim().chars().take(40).collect()
}

/// Writes a file so that it is whole or absent under its name.
fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    // A dot in front: no walk through the data ever sees it.
    let partial = folder.join(format!(".{NAME}.{}.part", std::process::id()));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&partial); // the first error is the one that counts
    })
}

fn folders(count: usize) -> String {
    if count == 1 { "a folder".to_owned() } else { format!("{count} folders") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_that_sets_a_multiplier_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("local.yaml");
        for (text, expected) in [
            ("multiply: 2\n", true),
            ("flip_p: 0.5\n  multiply : 2", true),
            ("{\"multiply\": 2}", true),
            ("main_prompt: multiply everything\n", false),
            ("# multiply: 2\n", false),
            ("tags: [a]\n", false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(sets_multiply(&path), expected, "{text}");
        }
    }
}
