//! The directory of a zip file, as far as `torch.save` needs it: stored entries, zip64, nothing else.
//!
//! Every offset and length is checked against the file's length before it is used, and no entry is ever unpacked:
//! a stored entry has the size it claims, so there is nothing that could swell.

use super::TorchError;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Where a stored entry's bytes lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Of the entry's local header.
    header: u64,
    /// Length of the content in bytes.
    pub(crate) length: u64,
    /// CRC-32 of the content; 0 where the writer was told not to compute it.
    pub(crate) crc: u32,
}

/// What the end of the file says about the directory.
struct Directory {
    offset: u64,
    length: u64,
}

const END: u32 = 0x0605_4B50;
const END_64: u32 = 0x0606_4B50;
const END_64_LOCATOR: u32 = 0x0706_4B50;
const CENTRAL: u32 = 0x0201_4B50;
const LOCAL: u32 = 0x0403_4B50;

/// Bytes of the record at the end without its comment, which has at most 65,535 more.
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;

/// A model has some thousand entries of about a hundred bytes.
const MAX_DIRECTORY_BYTES: u64 = 32 << 20;

/// Reads the names and places of all entries.
pub(crate) fn entries(file: &mut File, file_length: u64) -> Result<HashMap<String, Entry>, TorchError> {
    let directory = find_directory(file, file_length)?;
    let is_inside = directory.offset.checked_add(directory.length).is_some_and(|end| end <= file_length);
    if !is_inside || directory.length > MAX_DIRECTORY_BYTES {
        return Err(damaged(format!(
            "a directory of {} bytes at {} in a file of {file_length}",
            directory.length, directory.offset
        )));
    }
    let bytes = read_at(file, directory.offset, directory.length)?;
    let mut entries = HashMap::new();
    let mut rest = bytes.as_slice();
    while rest.len() >= CENTRAL_BYTES && u32_at(rest, 0) == CENTRAL {
        let (name, entry, used) = central_entry(rest, file_length)?;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(damaged(format!("two entries are called `{name}`")));
        }
        rest = &rest[used..];
    }
    if !rest.is_empty() {
        return Err(damaged("its directory has other things than entries in it".to_owned()));
    }
    Ok(entries)
}

/// Returns the offset of an entry's first byte, behind its local header.
pub(crate) fn content_start(file: &mut File, entry: Entry, file_length: u64) -> Result<u64, TorchError> {
    let header = read_at(file, entry.header, LOCAL_BYTES)?;
    if u32_at(&header, 0) != LOCAL {
        return Err(damaged("an entry is not where the directory says".to_owned()));
    }
    let start = entry.header + LOCAL_BYTES + u64::from(u16_at(&header, 26)) + u64::from(u16_at(&header, 28));
    if start.checked_add(entry.length).is_none_or(|end| end > file_length) {
        return Err(damaged(format!("an entry of {} bytes ends beyond the file of {file_length}", entry.length)));
    }
    Ok(start)
}

pub(crate) fn read_at(file: &mut File, offset: u64, length: u64) -> Result<Vec<u8>, TorchError> {
    let mut bytes = vec![0; length as usize];
    file.seek(SeekFrom::Start(offset)).map_err(TorchError::Io)?;
    file.read_exact(&mut bytes).map_err(TorchError::Io)?;
    Ok(bytes)
}

fn find_directory(file: &mut File, file_length: u64) -> Result<Directory, TorchError> {
    let tail_length = file_length.min(END_BYTES + 0xFFFF);
    let tail_start = file_length - tail_length;
    let tail = read_at(file, tail_start, tail_length)?;
    let last = tail.len().checked_sub(END_BYTES as usize);
    let at = last.and_then(|last| (0..=last).rev().find(|at| u32_at(&tail, *at) == END));
    let at = at.ok_or_else(|| damaged("its end is missing: it is cut short".to_owned()))?;
    let end = &tail[at..];
    let (length, offset) = (u32_at(end, 12), u32_at(end, 16));
    if length != u32::MAX && offset != u32::MAX && u16_at(end, 10) != u16::MAX {
        return Ok(Directory { offset: offset.into(), length: length.into() });
    }
    let locator_at = (tail_start + at as u64).checked_sub(LOCATOR_BYTES);
    let locator_at = locator_at.ok_or_else(|| damaged("no zip64 locator".to_owned()))?;
    let locator = read_at(file, locator_at, LOCATOR_BYTES)?;
    let end_64_at = u64_at(&locator, 8);
    if u32_at(&locator, 0) != END_64_LOCATOR || end_64_at.checked_add(56).is_none_or(|end| end > file_length) {
        return Err(damaged("its zip64 end is not where it should be".to_owned()));
    }
    let end_64 = read_at(file, end_64_at, 56)?;
    if u32_at(&end_64, 0) != END_64 {
        return Err(damaged("its zip64 end is not where it should be".to_owned()));
    }
    Ok(Directory { offset: u64_at(&end_64, 48), length: u64_at(&end_64, 40) })
}

/// Reads one entry of the directory: name, place, and the bytes that describe it.
fn central_entry(bytes: &[u8], file_length: u64) -> Result<(String, Entry, usize), TorchError> {
    let [name_length, extra_length, comment_length] = [28, 30, 32].map(|at| usize::from(u16_at(bytes, at)));
    let used = CENTRAL_BYTES + name_length + extra_length + comment_length;
    if used > bytes.len() {
        return Err(damaged("its directory is cut short".to_owned()));
    }
    let name = &bytes[CENTRAL_BYTES..CENTRAL_BYTES + name_length];
    let name = std::str::from_utf8(name).map_err(|_| damaged("an entry's name is not UTF-8".to_owned()))?.to_owned();
    let extra = &bytes[CENTRAL_BYTES + name_length..][..extra_length];
    let (flags, method) = (u16_at(bytes, 8), u16_at(bytes, 10));
    if flags & 1 != 0 {
        return Err(TorchError::Packed { entry: name, how: "encrypted" });
    }
    if method != 0 {
        return Err(TorchError::Packed { entry: name, how: "compressed" });
    }
    // zip64: those of the numbers that do not fit into 32 bits follow in this order.
    let mut wide = zip64_numbers(extra).into_iter();
    let mut number = |at: usize| match u32_at(bytes, at) {
        u32::MAX => wide.next().ok_or_else(|| damaged(format!("no zip64 size for `{name}`"))),
        small => Ok(u64::from(small)),
    };
    let (length, packed, header) = (number(24)?, number(20)?, number(42)?);
    let end = header.checked_add(LOCAL_BYTES).and_then(|start| start.checked_add(length));
    if length != packed || end.is_none_or(|end| end > file_length) {
        return Err(damaged(format!("`{name}` claims {length} bytes at {header} in a file of {file_length}")));
    }
    let crc = u32_at(bytes, 16);
    Ok((name, Entry { header, length, crc }, used))
}

fn zip64_numbers(mut extra: &[u8]) -> Vec<u64> {
    while extra.len() >= 4 {
        let (kind, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(content) = extra[4..].get(..length) else { break };
        if kind == 1 {
            return content.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        }
        extra = &extra[4 + length..];
    }
    Vec::new()
}

fn damaged(problem: String) -> TorchError {
    TorchError::Zip { problem }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
