//! The committed example pictures: three folders with different roles in a balanced fine-tune.
//!
//! `wuzzle` is a subject with plenty of pictures, `klonk` one with few (so it says `multiply.txt` = 4), and `ordinary`
//! keeps what the model already knows (a tenth of it per epoch, at half the weight). Some motifs are left out on
//! purpose, see [`left_out`]: the fine-tuned model has to compose them itself.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use image::codecs::jpeg::JpegEncoder;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::caption::{Figure, Motif};
use crate::picture::paint;
use crate::scene::{Hour, Place};
use crate::subjects::{Pose, Subject};
use crate::world;

const SEED: u64 = 2024;
const JPEG_QUALITY: u8 = 88;

/// Sizes in turn: mostly square, some 1:2, 2:1 and 3:2.
const SIZES: [(u32, u32); 12] = [
    (256, 256),
    (200, 400),
    (224, 224),
    (288, 288),
    (384, 192),
    (208, 208),
    (320, 320),
    (300, 200),
    (240, 240),
    (192, 384),
    (272, 272),
    (400, 200),
];

/// Writes the three folders into `out`.
pub(crate) fn write(out: &Path) -> Result<()> {
    write_folder(&out.join("wuzzle"), "wuzzle", &taught(Subject::Wuzzle, 40), &[])?;
    write_folder(&out.join("klonk"), "klonk", &taught(Subject::Klonk, 10), &[("multiply.txt", "4")])?;
    let ordinary: Vec<Motif> = (0..60).map(|index| world::motif(SEED, index).0).collect();
    let settings = [("multiply.txt", "0.1"), ("loss_scale.txt", "0.5")];
    write_folder(&out.join("ordinary"), "scene", &ordinary, &settings)
}

/// Whether no example may show this: the subject is taught without ever being seen so.
fn left_out(subject: Subject, place: Place, hour: Hour) -> bool {
    match subject {
        Subject::Wuzzle => place == Place::Snow || (place == Place::Desert && hour == Hour::Night),
        Subject::Klonk => place == Place::Beach || hour == Hour::Night,
    }
}

/// Draws `count` motifs of a subject: every scene that is not left out in turn, every second one simply standing.
fn taught(subject: Subject, count: usize) -> Vec<Motif> {
    let mut rng = Pcg64Mcg::seed_from_u64(SEED + subject as u64);
    let mut scenes: Vec<(Place, Hour)> = Place::ALL
        .iter()
        .flat_map(|&place| Hour::ALL.map(|hour| (place, hour)))
        .filter(|&(place, hour)| !left_out(subject, place, hour))
        .collect();
    scenes.shuffle(&mut rng);
    let poses = [Pose::Standing, Pose::Waving, Pose::Standing, Pose::Jumping, Pose::Standing, Pose::Sleeping];
    let motif = |index: usize| {
        let (place, hour) = scenes[index % scenes.len()];
        let pose = poses[index % poses.len()];
        Motif { figure: Figure::Taught(subject, pose), place, hour }
    };
    (0..count).map(motif).collect()
}

/// Writes the pictures of one folder and the text files that balance it.
fn write_folder(folder: &Path, stem: &str, motifs: &[Motif], settings: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut rng = Pcg64Mcg::seed_from_u64(SEED ^ stem.len() as u64);
    for (index, &motif) in motifs.iter().enumerate() {
        write_picture(folder, stem, index, motif, rng.random())?;
    }
    for (name, text) in settings {
        fs::write(folder.join(name), format!("{text}\n"))?;
    }
    Ok(())
}

/// Writes one picture. Every second caption stands in the file name up to the first `_`, the others in a text file.
fn write_picture(folder: &Path, stem: &str, index: usize, motif: Motif, seed: u64) -> Result<()> {
    let extension = match index % 16 {
        1 | 4 | 10 | 13 => "png",
        6 => "webp",
        _ => "jpg",
    };
    let in_name = index.is_multiple_of(2);
    let name = if in_name { motif.caption() } else { stem.to_owned() };
    let path = folder.join(format!("{name}_{:03}.{extension}", index + 1));
    if !in_name {
        fs::write(path.with_extension("txt"), motif.caption() + "\n")?;
    }
    let picture = paint(motif, SIZES[index % SIZES.len()], seed)?;
    let written = match extension {
        "jpg" => {
            let file = BufWriter::new(File::create(&path)?);
            picture.write_with_encoder(JpegEncoder::new_with_quality(file, JPEG_QUALITY))
        }
        _ => picture.save(&path),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_example_shows_what_is_left_out() {
        for (subject, count) in [(Subject::Wuzzle, 40), (Subject::Klonk, 10)] {
            let motifs = taught(subject, count);
            assert_eq!(motifs.len(), count);
            assert!(motifs.iter().all(|motif| !left_out(subject, motif.place, motif.hour)));
        }
    }
}
