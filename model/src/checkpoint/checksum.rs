//! Checksums that a file has of parts of itself: looked at when a part is read for the first time.
//!
//! A part is read for that, and then its tensors are: twice through the system's memory of the file, once from the disk.
//! What nobody asks for (an optimizer's state, averages) is not read at all.

use super::TensorsError;
use super::torch::TorchError;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, Ordering};

/// A part of a file, and the CRC-32 that it should have.
#[derive(Debug)]
pub(crate) struct Checksum {
    /// Its name, for messages.
    pub(crate) entry: String,
    /// Of the first byte.
    pub(crate) start: u64,
    /// In bytes.
    pub(crate) length: u64,
    pub(crate) crc: u32,
}

/// All parts of a file that have a checksum.
#[derive(Debug, Default)]
pub(crate) struct Checksums {
    /// In the order of the file, and whether it was found to be sound.
    parts: Vec<(Checksum, AtomicBool)>,
}

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

impl Checksums {
    pub(crate) fn new(mut parts: Vec<Checksum>) -> Self {
        parts.sort_by_key(|part| part.start);
        Self { parts: parts.into_iter().map(|part| (part, AtomicBool::new(false))).collect() }
    }

    /// Checks the part that a byte lies in, unless that was done or there is none.
    pub(crate) fn check_at(&self, file: &File, offset: u64) -> Result<(), TensorsError> {
        let after = self.parts.partition_point(|(part, _)| part.start <= offset);
        let Some((part, is_sound)) = after.checked_sub(1).map(|at| &self.parts[at]) else { return Ok(()) };
        if offset - part.start >= part.length || is_sound.load(Ordering::Relaxed) {
            return Ok(());
        }
        let found = crc_of(file, part).map_err(TensorsError::Io)?;
        if found != part.crc {
            return Err(TensorsError::Torch(TorchError::checksum(&part.entry, part.crc, found)));
        }
        is_sound.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn crc_of(mut file: &File, part: &Checksum) -> std::io::Result<u32> {
    file.seek(SeekFrom::Start(part.start))?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; CHUNK.min(part.length as usize)];
    let mut left = part.length;
    while left > 0 {
        let count = left.min(CHUNK as u64) as usize;
        file.read_exact(&mut buffer[..count])?;
        hasher.update(&buffer[..count]);
        left -= count as u64;
    }
    Ok(hasher.finalize())
}
