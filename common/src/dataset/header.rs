//! Image headers: the size of a picture as people see it, read without decoding it.
//!
//! Hostile files cost bounded memory: sizes are limited before anything is allocated, and of a JPEG only the part before
//! the picture is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader, Limits};

/// The longest side of an image that is read.
pub const MAX_IMAGE_SIDE: u32 = 32_768;

/// The most pixels of an image that is read: 600 MB once decoded.
pub const MAX_IMAGE_PIXELS: u64 = 200_000_000;

/// The most that stands before the picture in a JPEG: embedded previews and colour profiles.
const MAX_JPEG_HEADER: u64 = 64 << 20;

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

/// Reads an image's size. The format is told by the content, as programs that show pictures do, not by the name.
pub(super) fn read_header(path: &Path) -> Result<Header, String> {
    let read = || -> Result<Header, image::ImageError> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let format = guess_format(&mut file)?;
        let (width, height) = match format {
            ImageFormat::Jpeg => oriented_size(Cursor::new(jpeg_header(&mut file)?), format)?,
            _ => oriented_size(file, format)?,
        };
        Ok(Header { width, height, bytes })
    };
    let header = read().map_err(|error| error.to_string())?;
    if header.width == 0 || header.height == 0 {
        return Err("the image has no pixels".to_owned());
    }
    if u64::from(header.width) * u64::from(header.height) > MAX_IMAGE_PIXELS {
        return Err(format!("{}×{} is over {MAX_IMAGE_PIXELS} pixels", header.width, header.height));
    }
    Ok(header)
}

fn guess_format(file: &mut BufReader<File>) -> Result<ImageFormat, image::ImageError> {
    let start = file.fill_buf()?;
    if start.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty").into());
    }
    image::guess_format(start)
}

fn oriented_size<R: BufRead + Seek>(reader: R, format: ImageFormat) -> Result<(u32, u32), image::ImageError> {
    let mut reader = ImageReader::with_format(reader, format);
    reader.limits(image_limits());
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    Ok(match decoder.orientation()? {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    })
}

/// Reads a JPEG up to its start of scan: the decoder would read the whole file to learn its size.
fn jpeg_header(file: &mut BufReader<File>) -> io::Result<Vec<u8>> {
    let mut at = 2; // behind the start of image
    loop {
        file.seek(SeekFrom::Start(at))?;
        let mut marker = [0u8; 4];
        file.read_exact(&mut marker)?;
        let [lead, kind, high, low] = marker;
        match (lead, kind) {
            (0xff, 0xff) => at += 1, // fill bytes
            (0xff, 0xda) => {
                at += 2 + u64::from(u16::from_be_bytes([high, low]));
                break;
            }
            (0xff, _) => at += 2 + u64::from(u16::from_be_bytes([high, low])),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "a JPEG segment begins without a marker")),
        }
        if at > MAX_JPEG_HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "too much before the picture"));
        }
    }
    file.seek(SeekFrom::Start(0))?;
    let mut header = Vec::new();
    file.take(at).read_to_end(&mut header)?;
    Ok(header)
}
