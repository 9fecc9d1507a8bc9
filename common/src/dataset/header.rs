//! Image headers: the size of a picture as people see it, read without decoding it.
//!
//! Hostile files cost bounded memory: of a file no more is held than a buffer of a few kilobytes, whatever lengths it
//! claims, and sizes are limited before anything believes them.

mod front;
mod jpeg;
mod png;

use std::fs::File;
use std::io::{self, BufReader, Cursor, Seek as _};
use std::path::Path;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageError, ImageReader, Limits};

use front::Front;

/// The longest side of an image that is read.
pub const MAX_IMAGE_SIDE: u32 = 32_768;

/// The most pixels of an image that is read: 600 MB once decoded.
pub const MAX_IMAGE_PIXELS: u64 = 200_000_000;

/// The most memory that the header of a WebP or BMP may take: colour profiles and EXIF data.
const MAX_METADATA_BYTES: u64 = 16 << 20;

/// Returns the limits within which images are decoded.
pub fn image_limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_IMAGE_SIDE);
    limits.max_image_height = Some(MAX_IMAGE_SIDE);
    limits.max_alloc = Some(MAX_IMAGE_PIXELS * 8); // 16 bits per channel, four channels
    limits
}

/// What is known of an image without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Once the orientation is applied.
    pub(super) width: u32,
    pub(super) height: u32,
    /// Size of the file.
    pub(super) bytes: u64,
}

/// Why an image is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeaderError {
    pub(super) text: String,
    /// False when the disk failed, so that another try may go better.
    pub(super) is_in_content: bool,
}

/// Reads the header of an image of `bytes` bytes. The format is told by the content, as programs that show pictures do, not
/// by the name. `buffer` is room to work in.
pub(super) fn read_header(path: &Path, bytes: u64, buffer: &mut Vec<u8>) -> Result<Header, HeaderError> {
    let (width, height) = upright_size(path, bytes, buffer).map_err(HeaderError::from)?;
    let too_large = match (width, height) {
        (0, _) | (_, 0) => Some("the image has no pixels".to_owned()),
        _ if width.max(height) > MAX_IMAGE_SIDE => {
            Some(format!("{width}×{height} is over {MAX_IMAGE_SIDE} pixels on a side"))
        }
        _ if u64::from(width) * u64::from(height) > MAX_IMAGE_PIXELS => {
            Some(format!("{width}×{height} is over {MAX_IMAGE_PIXELS} pixels"))
        }
        _ => None,
    };
    too_large.map_or(Ok(Header { width, height, bytes }), |text| Err(HeaderError { text, is_in_content: true }))
}

fn upright_size(path: &Path, bytes: u64, buffer: &mut Vec<u8>) -> Result<(u32, u32), ImageError> {
    let mut front = Front::read(File::open(path)?, bytes, buffer)?;
    let (size, orientation) = match front.start() {
        [] => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty").into()),
        start if start.starts_with(&jpeg::START) => jpeg::size(&mut front)?,
        start if start.starts_with(&png::START) => png::size(&mut front)?,
        start => {
            let format = image::guess_format(start)?;
            match front.into_rest() {
                Ok(whole) => decoder_size(ImageReader::with_format(Cursor::new(whole), format))?,
                Err(mut file) => {
                    file.rewind()?;
                    decoder_size(ImageReader::with_format(BufReader::new(file), format))?
                }
            }
        }
    };
    Ok(match orientation {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (size.1, size.0)
        }
        _ => size,
    })
}

/// Asks the decoder. Damaged EXIF data does not make the pixels worse.
fn decoder_size<R: io::BufRead + io::Seek>(
    mut reader: ImageReader<R>,
) -> Result<((u32, u32), Orientation), ImageError> {
    let mut limits = image_limits();
    limits.max_alloc = Some(MAX_METADATA_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    Ok((decoder.dimensions(), decoder.orientation().unwrap_or(Orientation::NoTransforms)))
}

impl From<ImageError> for HeaderError {
    fn from(error: ImageError) -> Self {
        let is_in_content = match &error {
            ImageError::IoError(error) => {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
            }
            _ => true,
        };
        Self { text: error.to_string(), is_in_content }
    }
}
