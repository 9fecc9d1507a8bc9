//! The cache's bytes: numbers are little-endian, texts have their length in front.

use super::{Content, HASH_BYTES, KnownContent};
use crate::dataset::header::Header;
use crate::dataset::text::Text;

const IMAGE: u8 = 1;
const BROKEN_IMAGE: u8 = 2;
const TEXT: u8 = 3;
const UNCLEAN_TEXT: u8 = 4;
const HASH: u8 = 5;

/// Reads from a place on. None at the end.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let bytes = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    pub(super) fn number(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length as usize)
    }

    pub(super) fn content(&mut self) -> Option<Content> {
        let kind = self.take(1)?[0];
        let rest = self.take(self.bytes.len() - self.at)?;
        let text = || String::from_utf8(rest.to_vec()).ok();
        Some(match kind {
            IMAGE => {
                let mut reader = Reader { bytes: rest, at: 0 };
                let (width, height) = (reader.number()?, reader.number()?);
                let bytes = u64::from_le_bytes(reader.take(8)?.try_into().ok()?);
                Content::Image(Ok(Header { width, height, bytes }))
            }
            BROKEN_IMAGE => Content::Image(Err(text()?)),
            TEXT | UNCLEAN_TEXT => Content::Text(Text { text: text()?, is_clean: kind == TEXT }),
            HASH => Content::Hash(<[u8; HASH_BYTES]>::try_from(rest).ok()?),
            _ => return None,
        })
    }
}

pub(super) fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("names and texts are a megabyte at most");
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(bytes);
}

/// Writes the content to the end of an entry.
pub(super) fn put_content(to: &mut Vec<u8>, content: &KnownContent<'_>) {
    match content {
        KnownContent::Image(Ok(header)) => {
            to.push(IMAGE);
            to.extend_from_slice(&header.width.to_le_bytes());
            to.extend_from_slice(&header.height.to_le_bytes());
            to.extend_from_slice(&header.bytes.to_le_bytes());
        }
        KnownContent::Image(Err(error)) => {
            to.push(BROKEN_IMAGE);
            to.extend_from_slice(error.as_bytes());
        }
        KnownContent::Text(text) => {
            to.push(if text.is_clean { TEXT } else { UNCLEAN_TEXT });
            to.extend_from_slice(text.text.as_bytes());
        }
        KnownContent::Hash(hash) => {
            to.push(HASH);
            to.extend_from_slice(*hash);
        }
    }
}
