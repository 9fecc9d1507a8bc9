//! One coordinator per run folder: an exclusive lock that the system releases when its holder dies, however it dies.
//!
//! The lock keeps a second coordinator from starting. Where a file system does not know locks, the ledger still obeys only
//! the newest coordinator (`ledger/authority.rs`).

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::Path;

use crate::error::RunError;

/// File of the lock within a run folder. It stays when the run is over: it is the lock that counts, not the file.
const LOCK_FILE: &str = "coordinator.lock";

/// The lock of a run folder, held as long as this lives.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of a run folder.
    ///
    /// # Errors
    /// When another coordinator holds it, with the words that it left; or when the file cannot be written.
    pub(crate) fn take(run_folder: &Path) -> Result<Self, RunError> {
        let path = run_folder.join(LOCK_FILE);
        let failed = |source| RunError::File { action: "lock", path: path.clone(), source };
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // What cannot be read cannot be told.
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() { "another process".to_owned() } else { holder };
                return Err(RunError::InUse { path: run_folder.to_owned(), holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) if source.kind() == std::io::ErrorKind::Unsupported => {
                tracing::warn!(path = %path.display(), "this file system knows no locks: see that only one coordinator runs");
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let words = this_process();
        file.set_len(0).and_then(|()| writeln!(file, "{words}")).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

impl RunLock {
    /// Says whether a coordinator holds the lock of a run folder at this moment.
    pub(crate) fn is_held(run_folder: &Path) -> bool {
        let file = File::open(run_folder.join(LOCK_FILE));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Names this process for people on other hosts.
pub(crate) fn this_process() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "an unnamed host" } else { host.trim() };
    format!("process {} on {host}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_coordinator_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunLock::take(folder.path()).unwrap();
        let error = RunLock::take(folder.path()).unwrap_err();
        let expected = format!("is in use by another coordinator: {}", this_process());
        assert!(error.to_string().ends_with(&expected), "{error}");
        assert!(RunLock::is_held(folder.path()));
        drop(first);
        assert!(!RunLock::is_held(folder.path()));
        RunLock::take(folder.path()).unwrap();
    }
}
