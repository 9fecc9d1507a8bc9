//! The config as written: every value with the place it came from, later layers over earlier ones.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, ValueDeserializer};

use super::error::Problem;
use super::keys::{Section, is_optional, nearest, sections};

/// Keys whose value is a path, or a list of paths.
const PATHS: [&str; 3] = ["run.out", "data.root", "model.path"];

const ENV_PREFIX: &str = "BALLAST_";

/// Values by key (`optimizer.lr`), each already tried against its type, and the problems met on the way.
pub(super) struct RawConfig {
    sections: [Section; 12],
    values: BTreeMap<String, Located>,
    problems: Vec<Problem>,
    /// What is no problem and should be known all the same.
    notes: Vec<String>,
}

struct Located {
    value: toml::Value,
    location: String,
}

impl Default for RawConfig {
    fn default() -> Self {
        Self { sections: sections(), values: BTreeMap::new(), problems: Vec::new(), notes: Vec::new() }
    }
}

impl RawConfig {
    pub(super) fn add_file(&mut self, path: &Path) {
        let location = path.display().to_string();
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return super::everydream2::add_train_json(self, path);
        }
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let folder = path.parent().unwrap_or(Path::new(""));
                self.add_text(text.trim_start_matches('\u{feff}'), &location, Some(folder));
            }
            Err(error) => self.problem(location, "", format!("cannot read the config: {error}"), None),
        }
    }

    /// Adds TOML text. `name` is what problems call it; relative paths are taken from `folder`.
    pub(super) fn add_text(&mut self, text: &str, name: &str, folder: Option<&Path>) {
        let line = |at: usize| format!("{name}:{}", text[..at].matches('\n').count() + 1);
        let table = match DeTable::parse(text) {
            Ok(table) => table.into_inner(),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start);
                return self.problem(line(at), "", format!("not valid TOML: {}", error.message()), None);
            }
        };
        for (section, entries) in in_order(table) {
            let location = line(section.span().start);
            let section = section.into_inner();
            let DeValue::Table(entries) = entries.into_inner() else {
                self.unknown_section(location, &section);
                continue;
            };
            for (key, value) in in_order(entries) {
                let location = line(key.span().start);
                match toml::Value::deserialize(ValueDeserializer::from(value)) {
                    Ok(value) => self.add(&section, key.as_ref(), value, location, folder),
                    Err(error) => self.problem(location, &format!("{section}.{key}"), error.message().into(), None),
                }
            }
        }
    }

    /// Adds `BALLAST_SECTION__KEY` variables. Other `BALLAST_` variables belong to others, unless the name is a key's with
    /// one underscore missing.
    pub(super) fn add_environment(&mut self, environment: impl IntoIterator<Item = (String, String)>) {
        let ours = environment.into_iter().filter_map(|(name, text)| {
            let key = name.strip_prefix(ENV_PREFIX)?.to_ascii_lowercase();
            Some((name, key, text))
        });
        let sorted: BTreeMap<String, (String, String)> = ours.map(|(name, key, text)| (name, (key, text))).collect();
        for (name, (key, text)) in sorted {
            if let Some((section, key)) = key.split_once("__") {
                self.add_written(section, key, &text, name.clone());
            } else if let Some(right) = self.with_one_underscore(&key) {
                let hint = Some(format!("two underscores stand between section and key: {right}"));
                self.problem(name, "", "is no variable of ballast".to_owned(), hint);
            }
        }
    }

    /// Adds `key=value` pairs of the command line.
    pub(super) fn add_overrides(&mut self, overrides: &[(String, String)]) {
        for (key, text) in overrides {
            match key.trim().split_once('.') {
                Some((section, key)) => self.add_written(section, key, text, "--set".to_owned()),
                None => self.unknown_section("--set".to_owned(), key),
            }
        }
    }

    /// Says whether there is such a key.
    pub(super) fn knows(&self, section: &str, key: &str) -> bool {
        self.sections.iter().any(|known| known.name == section && known.keys.contains(&key))
    }

    /// Returns the value of a key whose value is text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.value.as_str()
    }

    /// Takes a value away.
    pub(super) fn remove(&mut self, key: &str) {
        self.values.remove(key);
    }

    /// Adds a problem of a file that is read elsewhere.
    pub(super) fn add_problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Adds what should be known of a config that is good.
    pub(super) fn add_note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Takes the notes out.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Returns the values as one table, ready for [`super::RunConfig`].
    pub(super) fn table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for (key, located) in &self.values {
            let (section, key) = key.split_once('.').expect("`add` joined the two with a dot");
            let section = table.entry(section).or_insert_with(|| toml::Table::new().into());
            section.as_table_mut().expect("made above").insert(key.to_owned(), located.value.clone());
        }
        table
    }

    /// Notes a problem with a key, at the place where its value was written.
    pub(super) fn note(&mut self, key: &str, message: String, hint: Option<String>) {
        let location = self.values.get(key).map(|located| located.location.clone());
        self.problems.push(Problem { location, key: key.to_owned(), message, hint });
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Adds a value that was given as plain text: read as TOML if that fits the key, else as a string.
    fn add_written(&mut self, section: &str, key: &str, text: &str, location: String) {
        let Some(known) = self.section(section, key, &location) else { return };
        if text.trim() == "none" && is_optional(section, key) {
            self.values.remove(&format!("{section}.{key}"));
            return;
        }
        let as_toml = ValueDeserializer::parse(text.trim()).and_then(toml::Value::deserialize).ok();
        let as_string = toml::Value::String(text.to_owned());
        let fits = |value: &toml::Value| (known.accepts)(key, value).is_ok();
        let value = match as_toml {
            Some(value) if fits(&value) || !fits(&as_string) => value,
            _ => as_string,
        };
        self.add(section, key, value, location, None);
    }

    /// Adds a value of a file, or notes why it does not fit its key.
    pub(super) fn add(
        &mut self,
        section: &str,
        key: &str,
        value: toml::Value,
        location: String,
        folder: Option<&Path>,
    ) {
        let Some(known) = self.section(section, key, &location) else { return };
        let name = format!("{section}.{key}");
        if let Err(message) = (known.accepts)(key, &value) {
            let message = format!("is {}; allowed: {}", shown(&value), allowed(&message));
            return self.problem(location, &name, message, None);
        }
        let value = if PATHS.contains(&name.as_str()) { absolute(value, folder) } else { value };
        self.values.insert(name, Located { value, location });
    }

    /// Finds the section that has the key, or notes what is wrong with the name.
    fn section(&mut self, section: &str, key: &str, location: &str) -> Option<&Section> {
        let Some(index) = self.sections.iter().position(|known| known.name == section) else {
            self.unknown_section(location.to_owned(), section);
            return None;
        };
        let keys = self.sections[index].keys;
        if !keys.contains(&key) {
            let message = format!("is not a key; [{section}] has: {}", keys.join(", "));
            let hint = nearest(key, keys.iter().copied()).map(|near| format!("did you mean `{section}.{near}`?"));
            self.problem(location.to_owned(), &format!("{section}.{key}"), message, hint);
            return None;
        }
        Some(&self.sections[index])
    }

    fn unknown_section(&mut self, location: String, written: &str) {
        let names: Vec<&str> = self.sections.iter().map(|section| section.name).collect();
        let owner = self.sections.iter().find(|section| section.keys.contains(&written));
        let message = format!("is not a section; there are: {}", names.join(", "));
        let hint = match owner {
            Some(section) => Some(format!("did you mean `{}.{written}`?", section.name)),
            None => nearest(written, names).map(|near| format!("did you mean `{near}`?")),
        };
        self.problem(location, written, message, hint);
    }

    fn with_one_underscore(&self, written: &str) -> Option<String> {
        let of_section = |section: &Section| {
            let key = written.strip_prefix(section.name)?.strip_prefix('_')?;
            let is_known = section.keys.contains(&key);
            is_known.then(|| format!("{ENV_PREFIX}{}__{}", section.name, key).to_ascii_uppercase())
        };
        self.sections.iter().find_map(of_section)
    }

    fn problem(&mut self, location: String, key: &str, message: String, hint: Option<String>) {
        self.problems.push(Problem { location: Some(location), key: key.to_owned(), message, hint });
    }
}

/// Returns the entries in the order in which they stand in the file.
fn in_order(table: DeTable<'_>) -> Vec<(Spanned<DeString<'_>>, Spanned<DeValue<'_>>)> {
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn absolute(value: toml::Value, folder: Option<&Path>) -> toml::Value {
    let written = match value {
        toml::Value::String(written) => written,
        toml::Value::Array(paths) => {
            return toml::Value::Array(paths.into_iter().map(|path| absolute(path, folder)).collect());
        }
        _ => unreachable!("the key's type is a path or a list of paths"),
    };
    let joined = folder.unwrap_or(Path::new("")).join(written);
    // Fails only for an empty path or without a current directory; the value then stays as written and is reported where it is used.
    let path = std::path::absolute(&joined).unwrap_or(joined);
    toml::Value::String(path.to_string_lossy().into_owned())
}

/// Shows a value as it would be written, cut short when long.
fn shown(value: &toml::Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(57).chain("...".chars()).collect() } else { text }
}

/// Turns serde's "…, expected f64" into words for people.
fn allowed(message: &str) -> &str {
    let expected = message.rsplit_once("expected ").map_or(message, |(_, expected)| expected);
    match expected {
        "f64" => "a number",
        "u32" | "u64" => "a whole number, 0 or more",
        "a boolean" => "true or false",
        "a sequence" => "a list, as in [\"one\", \"two\"]",
        "a string" | "path string" => "text in quotes",
        other => other,
    }
}
