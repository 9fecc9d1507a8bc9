//! The size and orientation of a PNG (third edition, section 5): its chunks up to the picture are stepped over, whatever
//! they hold.

use std::io::{self, ErrorKind};

use image::metadata::Orientation;

use super::front::Front;

pub(super) const START: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];

/// More chunks than this before the picture are there to waste time.
const MAX_CHUNKS: usize = 4096;

/// The orientation stands near the beginning of EXIF data; an embedded preview behind it is not needed.
const MAX_EXIF_BYTES: usize = 64 << 10;

pub(super) fn size(front: &mut Front<'_>) -> io::Result<((u32, u32), Orientation)> {
    let mut orientation = None;
    let first = front.bytes(8, 16)?;
    if first[..8] != [0, 0, 0, 13, b'I', b'H', b'D', b'R'] {
        return Err(io::Error::new(ErrorKind::InvalidData, "a PNG that does not begin with its size"));
    }
    let side = |at: usize| u32::from_be_bytes([first[at], first[at + 1], first[at + 2], first[at + 3]]);
    let size = (side(8), side(12));
    let mut at = 8 + 12 + 13;
    for _ in 0..MAX_CHUNKS {
        let chunk = front.bytes(at, 8)?;
        let length = u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        match &chunk[4..8] {
            b"IDAT" => return Ok((size, orientation.unwrap_or(Orientation::NoTransforms))),
            b"eXIf" if orientation.is_none() => {
                let bytes = (length as usize).min(MAX_EXIF_BYTES);
                orientation = Orientation::from_exif_chunk(front.bytes(at + 8, bytes)?);
            }
            _ => {}
        }
        at += 12 + u64::from(length);
    }
    Err(io::Error::new(ErrorKind::InvalidData, "too much before the picture"))
}
