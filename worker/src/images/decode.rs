//! From a file to upright RGB pixels.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, Rgb, RgbImage};

use super::PictureError;

/// Longest side in pixels, and most memory for one decoded picture: a file of a few bytes can claim to be enormous.
const SIDE_MAX: u32 = 65_535;
const DECODED_BYTES_MAX: u64 = 2 << 30;

pub(super) fn decode(path: &Path) -> Result<RgbImage, PictureError> {
    let file = File::open(path).map_err(PictureError::Open)?;
    // The content decides on the format: pictures are often named wrongly.
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format().map_err(PictureError::Open)?;
    upright(reader).map_err(PictureError::Decode)
}

fn upright(mut reader: ImageReader<BufReader<File>>) -> image::ImageResult<RgbImage> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(SIDE_MAX);
    limits.max_image_height = Some(SIDE_MAX);
    limits.max_alloc = Some(DECODED_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    // Damaged EXIF data does not make the pixels worse.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { over_white(&image) } else { image.into_rgb8() })
}

/// Lays the picture over white: what a page behind it would show. Without that, transparent pixels would show whatever
/// colour they happen to hold.
fn over_white(image: &DynamicImage) -> RgbImage {
    let rgba = image.to_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (to, from) in rgb.pixels_mut().zip(rgba.pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let blend = |colour: u32| ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        *to = Rgb([blend(red), blend(green), blend(blue)]);
    }
    rgb
}
