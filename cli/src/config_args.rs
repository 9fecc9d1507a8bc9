//! The config as the command line gives it: a file, `--set`, and flags that stand for keys.

use std::path::{Path, PathBuf};

use ballast_common::config::RunConfig;

use crate::failure::Failure;

/// Settings that go over those of the file.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct SetArgs {
    /// Sets one key of the config, e.g. --set optimizer.lr=2e-6. May be given many times; the last one wins.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value, help_heading = "Config")]
    pub(crate) set: Vec<(String, String)>,
}

/// Reads the config: defaults, the file, `BALLAST_*` variables, `--set`, then the flags.
pub(crate) fn load(file: Option<&Path>, set: &SetArgs, flags: Flags) -> Result<RunConfig, Failure> {
    let overrides: Vec<(String, String)> = set.set.iter().cloned().chain(flags.0).collect();
    // A variable that is not UTF-8 cannot be one of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (config, notes) = RunConfig::load_with_notes(file, &overrides, environment)?;
    for note in notes {
        crate::output::say(&format!("warning: {note}"));
    }
    Ok(config)
}

/// Flags that stand for keys of the config.
#[derive(Default)]
pub(crate) struct Flags(Vec<(String, String)>);

impl Flags {
    /// Adds a flag if it was given.
    pub(crate) fn with(mut self, key: &str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| (key.to_owned(), value.to_string())));
        self
    }

    /// Adds a path if it was given.
    pub(crate) fn with_path(self, key: &str, path: Option<&PathBuf>) -> Self {
        self.with(key, path.map(|path| path.to_string_lossy()))
    }

    /// Adds paths if any were given: one as it is, several as a list.
    pub(crate) fn with_paths(self, key: &str, paths: &[PathBuf]) -> Self {
        if paths.len() < 2 {
            return self.with_path(key, paths.first());
        }
        let quoted = |path: &PathBuf| serde_json::Value::from(path.to_string_lossy()).to_string();
        let list = paths.iter().map(quoted).collect::<Vec<_>>().join(", ");
        self.with(key, Some(format!("[{list}]")))
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE, as in optimizer.lr=2e-6")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}
