//! The beginning of a file, with as few calls to the system as possible: one read for most, another where a header is long.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

/// What the first read takes: enough for the header of most pictures without an embedded preview.
const FIRST_BYTES: usize = 8 << 10;

/// A file of which a window is in memory.
pub(super) struct Front<'a> {
    file: File,
    /// Of the file, as the disk says.
    length: u64,
    window: &'a mut Vec<u8>,
    window_start: u64,
}

impl<'a> Front<'a> {
    /// Reads the first window.
    pub(super) fn read(file: File, length: u64, buffer: &'a mut Vec<u8>) -> io::Result<Self> {
        let mut front = Self { file, length, window: buffer, window_start: 0 };
        front.fill(FIRST_BYTES)?;
        Ok(front)
    }

    /// Returns the first window.
    pub(super) fn start(&self) -> &[u8] {
        self.window
    }

    /// Returns `count` bytes from `at` on.
    pub(super) fn bytes(&mut self, at: u64, count: usize) -> io::Result<&[u8]> {
        let inside = |start: u64, window: &[u8]| {
            let from = usize::try_from(at.checked_sub(start)?).ok()?;
            (from.checked_add(count)? <= window.len()).then_some(from)
        };
        let from = match inside(self.window_start, self.window) {
            Some(from) => from,
            None => {
                // Beyond the end there is nothing; seeking there would succeed.
                if at.checked_add(count as u64).is_none_or(|end| end > self.length) {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends within its header"));
                }
                self.file.seek(SeekFrom::Start(at))?;
                self.window_start = at;
                self.fill(count.max(FIRST_BYTES))?;
                inside(at, self.window).ok_or(io::ErrorKind::UnexpectedEof)?
            }
        };
        Ok(&self.window[from..from + count])
    }

    /// Returns the whole file if it is in memory, else the file.
    pub(super) fn into_rest(self) -> Result<&'a [u8], File> {
        if self.window_start == 0 && self.window.len() as u64 == self.length { Ok(self.window) } else { Err(self.file) }
    }

    /// Reads up to `count` bytes from where the file stands. A window that reaches the file's end is not read beyond it.
    fn fill(&mut self, count: usize) -> io::Result<()> {
        let count = count.min(usize::try_from(self.length - self.window_start.min(self.length)).unwrap_or(count));
        self.window.resize(count, 0);
        let mut filled = 0;
        while filled < count {
            match self.file.read(&mut self.window[filled..]) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.window.truncate(filled);
        Ok(())
    }
}
