use std::path::PathBuf;

use ballast_common::rng::{Purpose, Streams};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, GrayImage, ImageEncoder, Luma, Rgb, RgbaImage};

use super::*;

/// A picture whose four quarters differ: red, green / blue, white.
fn quarters(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| match (x < width / 2, y < height / 2) {
        (true, true) => Rgb([255, 0, 0]),
        (false, true) => Rgb([0, 255, 0]),
        (true, false) => Rgb([0, 0, 255]),
        (false, false) => Rgb([255, 255, 255]),
    })
}

fn request(path: &str, width: u32, height: u32) -> PictureRequest {
    PictureRequest { path: path.to_owned(), width, height, crop: None, flip: false }
}

fn folder_with(name: &str, image: &RgbImage) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    image.save_with_format(&path, image::ImageFormat::Png).unwrap();
    (folder, path)
}

/// An EXIF block with nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    tiff
}

/// Undoes an orientation by its definition in the EXIF standard: which corner row 0 and column 0 show.
fn stored(upright: &RgbImage, orientation: u8) -> RgbImage {
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
    match orientation {
        1 => upright.clone(),
        2 => flip_horizontal(upright),
        3 => rotate180(upright),
        4 => flip_vertical(upright),
        5 => flip_horizontal(&rotate90(upright)),
        6 => rotate270(upright),
        7 => flip_horizontal(&rotate270(upright)),
        _ => rotate90(upright),
    }
}

#[test]
fn all_eight_exif_orientations_come_out_upright() {
    let upright = quarters(64, 128);
    for orientation in 1..=8 {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("p.jpg")).unwrap();
        let mut encoder = JpegEncoder::new_with_quality(file, 100);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        let image = stored(&upright, orientation);
        encoder.write_image(&image, image.width(), image.height(), ExtendedColorType::Rgb8).unwrap();
        let picture = request("p.jpg", 64, 128).load(&DataRoots::at(folder.path())).unwrap();
        for (x, y) in [(8, 8), (56, 8), (8, 120), (56, 120)] {
            let at = (y * 64 + x) as usize * 3;
            let found = &picture.rgb[at..at + 3];
            let wanted = upright.get_pixel(x, y).0;
            let close = found.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) < 12);
            assert!(close, "orientation {orientation} at {x}, {y}: {found:?}, not {wanted:?}");
        }
    }
}

#[test]
fn a_picture_of_the_buckets_size_keeps_its_bytes() {
    let image = quarters(64, 64);
    let (folder, _) = folder_with("p.png", &image);
    assert_eq!(request("p.png", 64, 64).load(&DataRoots::at(folder.path())).unwrap().rgb, image.into_raw());
}

#[test]
fn mirroring_swaps_the_columns() {
    let image = quarters(64, 64);
    let (folder, _) = folder_with("p.png", &image);
    let flipped =
        PictureRequest { flip: true, ..request("p.png", 64, 64) }.load(&DataRoots::at(folder.path())).unwrap();
    assert_eq!(flipped.rgb, image::imageops::flip_horizontal(&image).into_raw());
}

#[test]
fn transparent_pixels_are_laid_over_white() {
    let folder = tempfile::tempdir().unwrap();
    let image = RgbaImage::from_fn(64, 64, |x, _| image::Rgba([200, 0, 0, [0, 255, 128][x as usize % 3]]));
    image.save(folder.path().join("p.png")).unwrap();
    let picture = request("p.png", 64, 64).load(&DataRoots::at(folder.path())).unwrap();
    assert_eq!(picture.rgb[..9], [255, 255, 255, 200, 0, 0, 227, 127, 127]);
}

#[test]
fn grey_pictures_and_wrong_file_names_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let image = GrayImage::from_pixel(80, 80, Luma([90]));
    image.save_with_format(folder.path().join("p.jpg"), image::ImageFormat::Png).unwrap();
    assert_eq!(request("p.jpg", 64, 64).load(&DataRoots::at(folder.path())).unwrap().rgb, [90; 64 * 64 * 3]);
}

#[test]
fn a_jittered_crop_is_the_same_for_the_same_key() {
    let image = RgbImage::from_fn(300, 200, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]));
    let (folder, _) = folder_with("p.png", &image);
    let picture = |epoch| {
        let crop = CropDraw::draw(0.1, &mut Streams::new(5).sample(Purpose::Crop, epoch, "p.png", 0));
        PictureRequest { crop, ..request("p.png", 64, 64) }.load(&DataRoots::at(folder.path())).unwrap()
    };
    assert_eq!(picture(0), picture(0));
    assert_ne!(picture(0), picture(1));
}

#[test]
fn what_cannot_be_used_says_why() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.png"), "no picture").unwrap();
    let (_kept, path) = folder_with("whole.png", &quarters(64, 64));
    let whole = std::fs::read(path).unwrap();
    std::fs::write(folder.path().join("cut.png"), &whole[..whole.len() / 2]).unwrap();
    let load = |path: &str| request(path, 64, 64).load(&DataRoots::at(folder.path()));
    assert!(matches!(load("text.png"), Err(PictureError::Decode(_))));
    assert!(matches!(load("cut.png"), Err(PictureError::Decode(_))));
    assert!(matches!(load("missing.png"), Err(PictureError::Open(_))));
    assert!(matches!(load("../whole.png"), Err(PictureError::Path(_))));
}

#[test]
fn floats_are_planes_from_minus_one_to_one() {
    let picture = Picture { width: 2, height: 1, rgb: vec![0, 255, 51, 255, 0, 204] };
    assert_eq!(picture.to_chw(), [-1.0, 1.0, 1.0, -1.0, -0.6, 0.6]);
}
