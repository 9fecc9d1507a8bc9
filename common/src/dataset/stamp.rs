//! When a file was last changed, as far as the disk tells: a file whose stamp is equal need not be opened again.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Disks keep times in steps of up to two seconds. What was changed less long ago may change once more within the same step.
const COARSEST_CLOCK: Duration = Duration::from_secs(2);

/// What tells whether a file is still the same. The time of the last status change goes along with every change of the
/// content, and cannot be set back; other systems than Unix have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    modified_ns: i64,
    changed_ns: i64,
    inode: u64,
}

impl Stamp {
    pub(super) const BYTES: usize = 32;

    /// Asks the disk.
    ///
    /// # Errors
    /// When there is no such file, or it is a folder, pipe or device: to open one of those could wait for ever.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a folder"));
        }
        Ok(Self::from_metadata(&metadata))
    }

    #[cfg(unix)]
    fn from_metadata(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let nanoseconds = |seconds: i64, rest: i64| seconds.wrapping_mul(1_000_000_000).wrapping_add(rest);
        Self {
            bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
        }
    }

    #[cfg(not(unix))]
    fn from_metadata(metadata: &Metadata) -> Self {
        let modified_ns = metadata.modified().map_or(i64::MAX, nanoseconds);
        Self { bytes: metadata.len(), modified_ns, changed_ns: modified_ns, inode: 0 }
    }

    /// Says whether a later change would show, for a stamp taken after `start`.
    pub(super) fn is_settled(&self, start: SystemTime) -> bool {
        let latest = nanoseconds(start).saturating_sub(COARSEST_CLOCK.as_nanos() as i64);
        self.modified_ns < latest && self.changed_ns < latest
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.modified_ns.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.changed_ns.to_le_bytes());
        bytes[24..].copy_from_slice(&self.inode.to_le_bytes());
        bytes
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_a_moment_ago_may_change_unseen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stamp = Stamp::of(file.path()).unwrap();
        let now = SystemTime::now();
        assert!(!stamp.is_settled(now) && !stamp.is_settled(now + Duration::from_secs(1)));
        assert!(stamp.is_settled(now + Duration::from_secs(3)));
        let future = Stamp { modified_ns: i64::MAX, ..stamp };
        assert!(!future.is_settled(now + Duration::from_secs(3)));
    }
}
