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
