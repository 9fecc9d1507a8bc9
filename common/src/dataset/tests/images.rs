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
    let file = Root::new().file("list.txt", "a.png");
    let error = Dataset::scan(&config(file.path().join("list.txt").to_str().unwrap())).unwrap_err();
    assert!(matches!(error, DatasetError::NotAFolder { .. }) && error.hint().unwrap().contains("manifest"));
    assert!(matches!(Dataset::scan(&DataConfig::default()), Err(DatasetError::NoRoot)));
}

/// A PNG chunk without its checksum, which nobody asks for on the way to the size.
fn chunk(kind: &[u8; 4], claimed: u32, data: &[u8]) -> Vec<u8> {
    [claimed.to_be_bytes().as_slice(), kind, data, &[0; 4]].concat()
}

fn with_chunks(chunks: &[Vec<u8>]) -> Vec<u8> {
    let png = encoded(24, 16, ImageFormat::Png);
    [&png[..33], &chunks.concat(), &png[33..]].concat()
}

#[test]
fn huge_headers_cost_no_memory() {
    let segments = |marker: u8, count: usize, length: usize| {
        let jpeg = encoded(24, 16, ImageFormat::Jpeg);
        let length = (length as u16).to_be_bytes();
        let segment = [&[0xff, marker], &length[..], &vec![7; usize::from(u16::from_be_bytes(length)) - 2]].concat();
        [&jpeg[..2], &segment.repeat(count), &jpeg[2..]].concat()
    };
    let whole = 5 << 20;
    let files = [
        ("icc.png", with_chunks(&[chunk(b"iCCP", whole, &vec![1; whole as usize])]), true),
        ("text.png", with_chunks(&[chunk(b"zTXt", whole, &vec![1; whole as usize])]), true),
        ("exif.png", with_chunks(&[chunk(b"eXIf", whole, &vec![1; whole as usize])]), true),
        ("claimed.png", with_chunks(&[chunk(b"tEXt", u32::MAX / 2, b"short")]), false),
        ("chunks.png", with_chunks(&vec![chunk(b"tEXt", 0, b""); 5000]), false),
        ("profile.jpg", segments(0xe2, 255, 65_000), true),
        ("exif.jpg", segments(0xe1, 40, 65_000), true),
        ("segments.jpg", segments(0xfe, 5000, 2), false),
        ("fill.jpg", [&[0xff, 0xd8][..], &[0xff; 100_000]].concat(), false),
        ("none.jpg", [&[0xff, 0xd8][..], &[0xff, 0xe0, 0, 0].repeat(10)].concat(), false),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut buffer = Vec::new();
    for (name, bytes, is_good) in files {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let header = super::super::header::read_header(&path, bytes.len() as u64, &mut buffer);
        assert_eq!(header.map(|header| (header.width, header.height)).is_ok(), is_good, "{name}");
        assert!(buffer.capacity() <= 256 << 10, "{name}: {} bytes held", buffer.capacity());
    }
}

#[test]
fn absurd_sizes_are_skipped_in_every_format() {
    let sized_png = |width: u32, height: u32| {
        let mut png = encoded(8, 8, ImageFormat::Png);
        png[16..20].copy_from_slice(&width.to_be_bytes());
        png[20..24].copy_from_slice(&height.to_be_bytes());
        png
    };
    let mut jpeg = encoded(8, 8, ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]); // 65535 × 65535
    let webp = [b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0".as_slice(), &[0xff; 6]].concat(); // 2²⁴ × 2²⁴
    let root = Root::new()
        .file("a.png", sized_png(65_535, 65_535))
        .file("b.png", sized_png(u32::MAX, u32::MAX))
        .file("c.png", sized_png(0, 8))
        .file("d.jpg", jpeg)
        .file("e.webp", webp)
        .image("f.bmp", 0x4000_0000, 0)
        .file("g.png", sized_png(30_000, 30_000))
        .file("long.png", sized_png(30_000, 6_000))
        .file("one.png", sized_png(1, 1));
    let dataset = root.dataset();
    assert_eq!(paths(&dataset), ["long.png", "one.png"], "{:?}", dataset.warnings);
    let skipped = dataset.warnings.iter().filter(|warning| warning.contains("was skipped: ")).count();
    assert_eq!(skipped, 7, "{:?}", dataset.warnings);
    assert!(dataset.warnings.iter().any(|warning| warning.starts_with("a.png was skipped: 65535×65535 is over 32768")));
    assert!(
        dataset.warnings.iter().any(|warning| warning.starts_with("g.png was skipped: 30000×30000 is over 200000000"))
    );
}

#[test]
fn headers_agree_with_the_decoder() {
    let formats = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP];
    for (number, format) in formats.into_iter().enumerate() {
        for (width, height) in [(1, 1), (1, 300), (257, 3), (64, 64)] {
            let bytes = encoded(width, height, format);
            let dataset = Root::new().file(&format!("{number}.png"), &bytes).dataset();
            let sample = &dataset.samples[0];
            assert_eq!((sample.width, sample.height, sample.bytes), (width, height, bytes.len() as u64));
        }
    }
}

#[test]
fn a_header_cut_anywhere_is_skipped_or_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    for bytes in [jpeg(60, 40, 6), encoded(60, 40, ImageFormat::Png), encoded(60, 40, ImageFormat::WebP)] {
        for length in (0..bytes.len().min(1500)).chain(bytes.len().saturating_sub(200)..bytes.len()) {
            fs::write(&path, &bytes[..length]).unwrap();
            let header = super::super::header::read_header(&path, length as u64, &mut Vec::new());
            let size = header.map(|header| (header.width, header.height));
            assert!(size.is_err() || size == Ok((60, 40)) || size == Ok((40, 60)), "{length} bytes: {size:?}");
        }
    }
}
