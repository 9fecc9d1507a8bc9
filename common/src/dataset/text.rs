//! Text files as people make them: UTF-8 with or without a byte order mark, or UTF-16 with one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// No file beside an image needs more; a larger one is not what its name says.
const MAX_BYTES: u64 = 1 << 20;

/// A text, and whether every byte of it was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    /// False when the file is in some other encoding.
    pub(super) is_clean: bool,
}

/// Reads a small text file as all files beside images are read: UTF-8 with or without a byte order mark, or UTF-16 with one.
///
/// # Errors
/// When it cannot be read, or is longer than a megabyte.
pub fn read_small_text(path: &Path) -> io::Result<String> {
    Ok(read_text(path)?.text)
}

/// As [`read_small_text`], and says whether every byte was understood.
pub(super) fn read_text(path: &Path) -> io::Result<Text> {
    read_text_into(path, &mut Vec::new())
}

/// As [`read_text`], with room to work in.
pub(super) fn read_text_into(path: &Path, bytes: &mut Vec<u8>) -> io::Result<Text> {
    bytes.clear();
    bytes.reserve(1 << 12);
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than a megabyte"));
    }
    Ok(decode(bytes))
}

/// Decodes by the byte order mark. What is neither is read byte by byte as Latin-1, which loses nothing.
pub(super) fn decode(bytes: &[u8]) -> Text {
    let clean = |text: &str| Text { text: text.to_owned(), is_clean: true };
    if let Some(rest) = bytes.strip_prefix(&[0xff, 0xfe]) {
        return decode_utf16(rest, u16::from_le_bytes);
    }
    if let Some(rest) = bytes.strip_prefix(&[0xfe, 0xff]) {
        return decode_utf16(rest, u16::from_be_bytes);
    }
    let rest = bytes.strip_prefix(&[0xef, 0xbb, 0xbf]).unwrap_or(bytes);
    let latin1 = || Text { text: rest.iter().map(|&byte| char::from(byte)).collect(), is_clean: false };
    std::str::from_utf8(rest).map_or_else(|_| latin1(), clean)
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Text {
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
    let text = String::from_utf16(&units);
    let is_clean = text.is_ok() && bytes.len().is_multiple_of(2);
    Text { text: text.unwrap_or_else(|_| String::from_utf16_lossy(&units)), is_clean }
}

/// Shows a file's text in one line, in quotes, cut short when long.
pub(super) fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(bytes).collect()
    }

    #[test]
    fn all_usual_encodings_are_read() {
        let text = "2.5 – größer 🐈\n";
        let forms = [
            text.into(),
            ["\u{feff}", text].concat().into(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
        ];
        for bytes in forms {
            assert_eq!(decode(&bytes), Text { text: text.to_owned(), is_clean: true });
        }
    }

    #[test]
    fn other_encodings_are_read_as_latin1_and_marked() {
        assert_eq!(decode(b"caf\xe9"), Text { text: "café".to_owned(), is_clean: false });
        assert!(!decode(&[0xff, 0xfe, 0x00, 0xd8]).is_clean);
        assert!(!decode(&[0xff, 0xfe, 0x41]).is_clean);
    }

    #[test]
    fn quotes_stay_on_one_line() {
        assert_eq!(quoted("2\n3"), r#""2\n3""#);
        assert_eq!(quoted(&"x".repeat(50)).chars().count(), 43);
    }
}
