//! Files that appear complete or not at all: written under another name, synced, renamed.

use super::CheckpointError;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Writes `path` by `fill`. The temporary file lies in the same folder, and is removed on failure.
pub(crate) fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let temporary = temporary_name(path);
    let written = write_and_sync(&temporary, path, fill);
    let result = written.and_then(|()| rename(&temporary, path).map_err(|source| failed(path, source)));
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary); // the first failure is the one to report
    }
    result
}

/// [`write`] of bytes at hand.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    write(path, |file| file.write_all(bytes).map_err(|source| failed(path, source)))
}

/// Makes the folder `path` by `fill`, which is given another, and renames it when it is complete. A model's folder that
/// is there already is replaced if `replace` says so; anything else in the way is left alone.
pub(crate) fn write_folder(
    path: &Path,
    replace: bool,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let exists = |problem: &str| CheckpointError::Exists { path: path.to_owned(), problem: problem.to_owned() };
    let is_empty = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let is_there = path.symlink_metadata().is_ok();
    if is_there && !(replace || is_empty(path)) {
        return Err(exists(""));
    }
    if is_there && !path.join("model_index.json").is_file() && !is_empty(path) {
        return Err(exists(" and is no model's folder: remove it yourself"));
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
    let temporary = temporary_name(path);
    let made = std::fs::create_dir(&temporary).map_err(|source| failed(path, source));
    let result = made.and_then(|()| fill(&temporary)).and_then(|()| {
        let replaced = if is_there { Some(temporary_name(path)) } else { None };
        let exchange = || {
            let Some(old) = &replaced else { return rename(&temporary, path) };
            std::fs::rename(path, old)?;
            rename(&temporary, path).inspect_err(|_| drop(std::fs::rename(old, path)))
        };
        exchange().map_err(|source| failed(path, source))?;
        // The new one is in place: what is left of the old one harms nobody.
        replaced.map(std::fs::remove_dir_all);
        Ok(())
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    result
}

pub(crate) fn failed(path: &Path, source: io::Error) -> CheckpointError {
    CheckpointError::Write { path: path.to_owned(), source }
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()))
}

fn write_and_sync(
    temporary: &Path,
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let file = File::create(temporary).map_err(|source| failed(path, source))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    let file = writer.into_inner().map_err(|error| failed(path, error.into_error()))?;
    file.sync_all().map_err(|source| failed(path, source))
}

fn rename(temporary: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(temporary, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) {
        File::open(folder)?.sync_all()?; // the new name itself
    }
    Ok(())
}
