//! The size and orientation of a JPEG (ITU-T T.81, annex B): its segments up to the start of the picture are stepped
//! over, whatever they hold; a decoder would read the whole file.

use std::io::{self, ErrorKind};

use image::metadata::Orientation;

use super::front::Front;

pub(super) const START: [u8; 3] = [0xff, 0xd8, 0xff];

/// The most that stands before the picture: embedded previews and colour profiles.
const MAX_HEADER: u64 = 64 << 20;

/// More segments than this before the picture are there to waste time: a colour profile takes at most 255.
const MAX_SEGMENTS: usize = 4096;

const EXIF: &[u8] = b"Exif\0\0";

pub(super) fn size(front: &mut Front<'_>) -> io::Result<((u32, u32), Orientation)> {
    let (mut size, mut orientation) = (None, None);
    let mut at = 2; // behind the start of image
    for _ in 0..MAX_SEGMENTS {
        let marker = front.bytes(at, 2)?;
        let (lead, kind) = (marker[0], marker[1]);
        if lead != 0xff {
            return Err(io::Error::new(ErrorKind::InvalidData, "a JPEG segment begins without a marker"));
        }
        if kind == 0xff {
            at += 1; // fill byte
            continue;
        }
        let length = front.bytes(at + 2, 2)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length < 2 {
            return Err(io::Error::new(ErrorKind::InvalidData, "a JPEG segment without a length"));
        }
        match kind {
            0xda => {
                let size = size.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a JPEG without a size"))?;
                return Ok((size, orientation.unwrap_or(Orientation::NoTransforms)));
            }
            0xc0..=0xc2 if size.is_none() => {
                let frame = front.bytes(at + 5, 4)?; // behind length and precision
                let side = |high: u8, low: u8| u32::from(u16::from_be_bytes([high, low]));
                size = Some((side(frame[2], frame[3]), side(frame[0], frame[1])));
            }
            // Lossless, hierarchical and arithmetic coding; C4, C8 and CC are other segments.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Err(io::Error::new(ErrorKind::InvalidData, "a kind of JPEG that is hardly used and not read"));
            }
            0xe1 if orientation.is_none() && length > 2 + EXIF.len() => {
                let data = front.bytes(at + 4, length - 2)?;
                orientation = data.strip_prefix(EXIF).and_then(Orientation::from_exif_chunk);
            }
            _ => {}
        }
        at += 2 + length as u64;
        if at > MAX_HEADER {
            break;
        }
    }
    Err(io::Error::new(ErrorKind::InvalidData, "too much before the picture"))
}
