//! The bytes of a pickle, one after the other: nothing is taken that is not there.

use super::pickle::PickleError;

/// A place in a pickle.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes that were taken so far.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, length: u64) -> Result<&'a [u8], PickleError> {
        let left = self.bytes.len() - self.at;
        if length > left as u64 {
            return Err(self.malformed(&format!("{length} bytes are announced and {left} are left")));
        }
        let start = self.at;
        self.at += length as usize;
        Ok(&self.bytes[start..self.at])
    }

    pub(crate) fn skip(&mut self, length: u64) -> Result<(), PickleError> {
        self.take(length).map(|_| ())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        Ok(self.take(N as u64)?.try_into().expect("as many as asked for"))
    }

    /// An unsigned little-endian number of `width` bytes, at most eight.
    pub(crate) fn number(&mut self, width: u64) -> Result<u64, PickleError> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// What stands before the next line feed, which is passed over.
    pub(crate) fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| self.malformed("a line without an end"))?;
        self.at += end + 1;
        std::str::from_utf8(&rest[..end]).map_err(|_| self.malformed("a line that is not UTF-8"))
    }

    pub(crate) fn line_number(&mut self) -> Result<u64, PickleError> {
        let line = self.line()?;
        line.parse().map_err(|_| self.malformed("a place that is no number"))
    }

    pub(crate) fn malformed(&self, problem: &str) -> PickleError {
        PickleError::Malformed { offset: self.at, problem: problem.to_owned() }
    }
}
