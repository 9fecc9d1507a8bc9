//! Which folder a run lives in: `OUT/NAME`, where NAME is given, or the config file's stem with the next free number.

use std::path::{Path, PathBuf};

use ballast_common::config::RunSettings;
use ballast_coordinator::{RunStanding, standing};

use crate::failure::Failure;

/// Finds the folder of a new run. Does not create it.
pub(crate) fn for_new_run(settings: &RunSettings, config_file: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(name) = &settings.name {
        let folder = settings.out.join(name);
        if folder.exists() {
            return Err(Failure::usage(format_args!("the run folder {} exists already", folder.display()))
                .hint("go on with that run by --resume, or give this one another --name"));
        }
        return Ok(folder);
    }
    let stem = stem(config_file);
    let free = (1..).map(|number| settings.out.join(numbered(&stem, number))).find(|folder| !folder.exists());
    Ok(free.expect("some number is free"))
}

/// Finds the folder of the run to go on with: the one of that name, or the last numbered one of the config's stem.
pub(crate) fn to_resume(settings: &RunSettings, config_file: Option<&Path>) -> Result<PathBuf, Failure> {
    let wanted = settings.name.clone().unwrap_or_else(|| stem(config_file));
    let folder = match &settings.name {
        Some(name) => Some(settings.out.join(name)).filter(|folder| folder.is_dir()),
        None => last_numbered(&settings.out, &wanted),
    };
    folder.ok_or_else(|| {
        Failure::usage(format_args!("there is no run {wanted} in {} to go on with", settings.out.display()))
            .hint("start it without --resume, or say where it lies by --out and --name")
    })
}

/// Finds the folder for `ballast coordinator`, which a supervisor may start again by the same command line: the run that was
/// cut short, or with `resume` whatever there is; else that of a new run. Says whether there is a run in it.
pub(crate) fn to_continue(
    settings: &RunSettings,
    config_file: Option<&Path>,
    resume: bool,
) -> Result<(PathBuf, bool), Failure> {
    let begin = || Ok((for_new_run(settings, config_file)?, false));
    let Ok(folder) = to_resume(settings, config_file) else { return begin() };
    let is_named = settings.name.is_some();
    match standing(&folder) {
        // Killed before it had begun.
        RunStanding::None if is_named || resume => Ok((folder, false)),
        RunStanding::CutShort => Ok((folder, true)),
        RunStanding::InUse if is_named || resume => Ok((folder, true)),
        _ if resume => Ok((folder, true)),
        _ => begin(),
    }
}

fn stem(config_file: Option<&Path>) -> String {
    let stem = config_file.and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
    stem.filter(|stem| !stem.starts_with('.')).unwrap_or_else(|| "run".to_owned())
}

/// `quickstart`, `quickstart-2`, `quickstart-3`, …
fn numbered(stem: &str, number: u32) -> String {
    if number == 1 { stem.to_owned() } else { format!("{stem}-{number}") }
}

fn last_numbered(out: &Path, stem: &str) -> Option<PathBuf> {
    let number = |name: &str| match name.strip_prefix(stem)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse::<u32>().ok().filter(|number| *number > 1),
    };
    let folders = std::fs::read_dir(out).ok()?.flatten().filter(|entry| entry.path().is_dir());
    let numbers = folders.filter_map(|entry| number(entry.file_name().to_str()?));
    numbers.max().map(|number| out.join(numbered(stem, number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(out: &Path, name: Option<&str>) -> RunSettings {
        RunSettings { out: out.to_owned(), name: name.map(str::to_owned), ..RunSettings::default() }
    }

    #[test]
    fn unnamed_runs_are_numbered_and_the_last_is_resumed() {
        let out = tempfile::tempdir().unwrap();
        let config = Some(Path::new("somewhere/cats.toml"));
        let unnamed = settings(out.path(), None);
        assert!(to_resume(&unnamed, config).is_err());
        for name in ["cats", "cats-2", "cats-3"] {
            let folder = for_new_run(&unnamed, config).unwrap();
            assert_eq!(folder, out.path().join(name));
            std::fs::create_dir(&folder).unwrap();
            assert_eq!(to_resume(&unnamed, config).unwrap(), folder);
        }
        std::fs::create_dir(out.path().join("cats-and-dogs")).unwrap();
        assert_eq!(to_resume(&unnamed, config).unwrap(), out.path().join("cats-3"));
    }

    #[test]
    fn a_named_run_is_never_overwritten() {
        let out = tempfile::tempdir().unwrap();
        let named = settings(out.path(), Some("mine"));
        assert!(to_resume(&named, None).is_err());
        std::fs::create_dir(for_new_run(&named, None).unwrap()).unwrap();
        assert!(for_new_run(&named, None).is_err());
        assert_eq!(to_resume(&named, None).unwrap(), out.path().join("mine"));
    }
}
