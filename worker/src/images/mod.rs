//! From a file of the data root to the pixels of a bucket.
//!
//! In order: decode, turn as the EXIF orientation says, lay transparent pixels over white, crop to the bucket's ratio,
//! resize, mirror. Colour profiles are ignored and 16-bit channels rounded to 8, as the common trainers do. Every step is
//! a pure function of the file and of keyed draws, so the bits do not depend on threads, workers or the order of work.

mod crop;
mod decode;

use ballast_common::dataset::{DataRoots, PathError};
use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::RgbImage;
use thiserror::Error;

pub(crate) use crop::CropDraw;
use crop::crop_rect;

/// Pixels of a bucket, 8 bits per channel: a quarter of the memory of floats while they wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    /// In pixels.
    pub(crate) width: u32,
    /// In pixels.
    pub(crate) height: u32,
    /// `[height, width, 3]`.
    pub(crate) rgb: Vec<u8>,
}

/// What is to be made of which file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PictureRequest {
    /// Relative to the data root, with `/`.
    pub(crate) path: String,
    /// Width of the bucket in pixels.
    pub(crate) width: u32,
    /// Height of the bucket in pixels.
    pub(crate) height: u32,
    /// Where to crop; none: the centre.
    pub(crate) crop: Option<CropDraw>,
    /// Whether the picture is mirrored left to right.
    pub(crate) flip: bool,
}

/// Why a picture cannot be used.
#[derive(Debug, Error)]
pub(crate) enum PictureError {
    /// The path leaves the data root.
    #[error("the path is refused")]
    Path(#[from] PathError),
    /// The file cannot be opened.
    #[error("cannot open the file")]
    Open(#[source] std::io::Error),
    /// The file is no picture that can be read.
    #[error("cannot decode the picture")]
    Decode(#[source] image::ImageError),
}

impl PictureRequest {
    /// Reads the file and makes the picture.
    ///
    /// # Errors
    /// When the path leaves the root, or the file is missing or no readable picture.
    pub(crate) fn load(&self, roots: &DataRoots) -> Result<Picture, PictureError> {
        let image = decode::decode(&roots.locate(&self.path)?)?;
        Ok(self.fit(image))
    }

    /// Crops, resizes and mirrors.
    fn fit(&self, image: RgbImage) -> Picture {
        let (width, height) = (self.width, self.height);
        let rect = crop_rect(image.dimensions(), (width, height), self.crop);
        // Lanczos keeps the most detail of what is there; enlarging, it would ring at edges, where Catmull-Rom (the usual
        // bicubic) hardly does.
        let filter = if rect.width > width { FilterType::Lanczos3 } else { FilterType::CatmullRom };
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).crop(
            f64::from(rect.left),
            f64::from(rect.top),
            f64::from(rect.width),
            f64::from(rect.height),
        );
        let (source_width, source_height) = image.dimensions();
        let source = Image::from_vec_u8(source_width, source_height, image.into_raw(), PixelType::U8x3)
            .expect("an RGB image has three bytes per pixel");
        let mut target = Image::new(width, height, PixelType::U8x3);
        Resizer::new().resize(&source, &mut target, &options).expect("the crop lies within the image, both are RGB");
        let mut rgb = target.into_vec();
        if self.flip {
            mirror(&mut rgb, width as usize);
        }
        Picture { width, height, rgb }
    }
}

/// Mirrors each row of `[height, width, 3]`.
fn mirror(rgb: &mut [u8], width: usize) {
    for row in rgb.chunks_exact_mut(width * 3) {
        row.reverse(); // also turns RGB into BGR
        row.chunks_exact_mut(3).for_each(<[u8]>::reverse);
    }
}

impl Picture {
    /// Returns the pixels as the autoencoder takes them: `[3, height, width]` in -1..=1.
    pub(crate) fn to_chw(&self) -> Vec<f32> {
        let scaled = |byte: &u8| f32::from(*byte) / 127.5 - 1.0;
        (0..3).flat_map(|channel| self.rgb[channel..].iter().step_by(3).map(scaled)).collect()
    }
}

#[cfg(test)]
mod tests;
