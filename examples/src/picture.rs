//! From a motif to pixels: places the figure in the scene and paints both.

use anyhow::Result;
use image::RgbImage;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tiny_skia::Transform;

use crate::caption::{Figure, Motif};
use crate::paint::Canvas;
use crate::scene::paint_backdrop;

/// Paints `motif` at `width` by `height` pixels. Equal arguments give equal pixels.
///
/// Lengths scale with the geometric mean of the sides, so that a figure covers the same share of a tall, a wide and a
/// square picture.
pub(crate) fn paint(motif: Motif, (width, height): (u32, u32), seed: u64) -> Result<RgbImage> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut canvas = Canvas::new(width, height, motif.hour.light())?;
    paint_backdrop(&mut canvas, motif.place, motif.hour, &mut rng);

    let (wide, tall) = canvas.size();
    let unit = (wide * tall).sqrt();
    let floats = matches!(motif.figure, Figure::Ordinary(thing, _) if thing.floats());
    let size = unit * rng.random_range(0.44..0.54);
    let x = wide * rng.random_range(0.4..0.6);
    let foot = if floats { 0.68 } else { 0.88 } + rng.random_range(-0.03..0.03);
    let flip = if rng.random_bool(0.5) { -1.0 } else { 1.0 };
    // The figure keeps more of its own colour than the land, so that a red house is still red at night.
    let stand = Transform::from_row(size * flip, 0.0, 0.0, size, x, tall * foot);
    canvas.dimmed(0.6, |c| {
        c.within(stand, |c| match motif.figure {
            Figure::Nothing => {}
            Figure::Ordinary(thing, hue) => thing.paint(c, hue),
            Figure::Taught(subject, pose) => subject.paint(c, pose),
        });
    });
    Ok(RgbImage::from_raw(width, height, canvas.into_rgb()).expect("three bytes a pixel"))
}
