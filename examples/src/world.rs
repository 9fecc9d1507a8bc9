//! The pretraining world: random motifs of ordinary things, each picture with its caption beside it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::caption::{Figure, Motif};
use crate::picture::paint;
use crate::scene::{Hour, Place};
use crate::things::{Hue, Thing};

/// Width and height, and how many of 100 pictures have them: the buckets of `resolution = 192`.
const SIZES: [((u32, u32), u32); 3] = [((192, 192), 70), ((128, 256), 15), ((256, 128), 15)];

/// Draws picture `index` of the world `seed`: a motif and its size.
pub(crate) fn motif(seed: u64, index: u64) -> (Motif, (u32, u32)) {
    let mut rng = Pcg64Mcg::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(index));
    let figure = if rng.random_bool(0.04) {
        Figure::Nothing
    } else {
        Figure::Ordinary(any(&Thing::ALL, &mut rng), any(&Hue::ALL, &mut rng))
    };
    let motif = Motif { figure, place: any(&Place::ALL, &mut rng), hour: any(&Hour::ALL, &mut rng) };
    let mut lot = rng.random_range(0..100);
    let size = SIZES.iter().find(|(_, share)| {
        lot < *share || {
            lot -= share;
            false
        }
    });
    (motif, size.expect("the shares add up to 100").0)
}

/// Writes `count` pictures as `000000.png`, `000000.txt`, ...
pub(crate) fn write(out: &Path, count: u64, seed: u64) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    for index in 0..count {
        let (motif, size) = motif(seed, index);
        let path = out.join(format!("{index:06}.png"));
        let picture = paint(motif, size, seed ^ (index << 16))?;
        picture.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        fs::write(path.with_extension("txt"), motif.caption() + "\n")?;
    }
    Ok(())
}

pub(crate) fn any<T: Copy>(all: &[T], rng: &mut Pcg64Mcg) -> T {
    all[rng.random_range(0..all.len())]
}
