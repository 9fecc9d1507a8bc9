//! Which files are images, how large they are, and what happens to broken and hostile ones.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ImageEncoder, ImageFormat, RgbImage};

use super::*;

fn encoded(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::new(width, height).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A JPEG with an EXIF orientation, and more in front of the picture than a disk block.
fn jpeg(width: u32, height: u32, orientation: u8) -> Vec<u8> {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif.resize(40_000, 0);
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new(&mut bytes);
    encoder.set_exif_metadata(exif).unwrap();
    encoder.encode_image(&RgbImage::new(width, height)).unwrap();
    bytes
}

#[test]
fn all_formats_and_any_case() {
    let root = Root::new()
        .file("a.jpg", encoded(10, 20, ImageFormat::Jpeg))
        .file("b.JPEG", encoded(11, 20, ImageFormat::Jpeg))
        .file("c.PnG", encoded(12, 20, ImageFormat::Png))
        .file("d.bmp", encoded(13, 20, ImageFormat::Bmp))
        .file("e.webp", encoded(14, 20, ImageFormat::WebP))
        .file("f.jfif", encoded(15, 20, ImageFormat::Jpeg))
        .file("g.jpg", encoded(16, 20, ImageFormat::Png));
    let dataset = root.dataset();
    let widths: Vec<u32> = dataset.samples.iter().map(|sample| sample.width).collect();
    assert_eq!(widths, [10, 11, 12, 13, 14, 15, 16]);
    assert!(dataset.samples.iter().all(|sample| sample.height == 20 && sample.bytes > 0));
}

#[test]
fn orientation_turns_the_size() {
    for orientation in 1..=8 {
        let dataset = Root::new().file("a.jpg", jpeg(1024, 256, orientation)).dataset();
        let sample = &dataset.samples[0];
        let is_turned = orientation >= 5;
        assert_eq!((sample.width, sample.height), if is_turned { (256, 1024) } else { (1024, 256) });
        assert_eq!(dataset.bucket_of(sample), Bucket { width: sample.width, height: sample.height });
    }
}

#[test]
fn broken_images_are_skipped_and_named() {
    let root = Root::new()
        .images("a", 1)
        .file("a/empty.png", "")
        .file("a/text.jpg", "not an image")
        .file("a/cut.jpg", &jpeg(64, 64, 1)[..1000])
        .file("a/zero.bmp", bmp(0, 9));
    let dataset = root.dataset();
    assert_eq!((paths(&dataset), dataset.folders[0].images), (vec!["a/0000.bmp"], 1));
    for name in ["a/empty.png", "a/text.jpg", "a/cut.jpg", "a/zero.bmp"] {
        assert_eq!(
            dataset.warnings.iter().filter(|warning| warning.starts_with(&format!("{name} was skipped: "))).count(),
            1
        );
    }
}

#[test]
fn hostile_sizes_are_skipped() {
    let mut png = encoded(8, 8, ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65536 × 65536
    let root = Root::new().images("a", 1).image("b.bmp", 32_000, 32_000).image("c.bmp", 40_000, 9).file("d.png", png);
    let dataset = root.dataset();
    assert_eq!(paths(&dataset), ["a/0000.bmp"]);
    assert_eq!(
        dataset.warnings.iter().filter(|warning| warning.contains("was skipped")).count(),
        3,
        "{:?}",
        dataset.warnings
    );
}

#[test]
fn small_images_are_named_as_enlarged() {
    let dataset = Root::new().image("small.bmp", 100, 100).image("large.bmp", 600, 600).dataset();
    assert_eq!(dataset.upscaled().map(|sample| sample.path.as_str()).collect::<Vec<_>>(), ["small.bmp"]);
    assert!(
        dataset
            .warnings
            .iter()
            .any(|warning| warning.contains("smaller than their bucket") && warning.contains("small.bmp"))
    );
}

#[test]
fn roots_without_images_are_refused() {
    let nothing = Root::new().file("notes.txt", "no image here").error();
    assert!(nothing.starts_with("no usable image under "), "{nothing}");
    let broken = Root::new().file("a.png", "").error();
    assert!(broken.contains("a.png was skipped"), "{broken}");
    let config = |root: &str| DataConfig { root: Some(Path::new(root).into()), ..DataConfig::default() };
    assert!(matches!(Dataset::scan(&config("/nowhere/at/all")), Err(DatasetError::Root { .. })));
    let file = Root::new().file("list.json", "[]");
    let error = Dataset::scan(&config(file.path().join("list.json").to_str().unwrap())).unwrap_err();
    assert!(matches!(error, DatasetError::NotAFolder { .. }) && error.hint().unwrap().contains("manifest"));
    assert!(matches!(Dataset::scan(&DataConfig::default()), Err(DatasetError::NoRoot)));
}
