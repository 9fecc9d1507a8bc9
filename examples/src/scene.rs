//! Where and when: the five places and three hours of the world, and how they are painted.

use rand::RngExt;
use rand_pcg::Pcg64Mcg;
use tiny_skia::{Color, Path, PathBuilder};

use crate::paint::{Canvas, Light, ellipse, mix, polygon, rgb, rounded, segment};

/// A kind of land.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Meadow,
    Desert,
    Beach,
    Snow,
    Forest,
}

impl Place {
    pub(crate) const ALL: [Self; 5] = [Self::Meadow, Self::Desert, Self::Beach, Self::Snow, Self::Forest];
}

/// An hour of the day.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hour {
    Day,
    Sunset,
    Night,
}

impl Hour {
    pub(crate) const ALL: [Self; 3] = [Self::Day, Self::Sunset, Self::Night];

    /// What the hour does to every colour.
    pub(crate) fn light(self) -> Light {
        match self {
            Self::Day => Light { tint: Color::WHITE, amount: 0.0 },
            Self::Sunset => Light { tint: rgb(0xF08A4B), amount: 0.2 },
            Self::Night => Light { tint: rgb(0x18205A), amount: 0.42 },
        }
    }

    /// Sky colours at the zenith and at the horizon.
    fn sky(self) -> (Color, Color) {
        match self {
            Self::Day => (rgb(0x7FC4EE), rgb(0xE2F3F4)),
            Self::Sunset => (rgb(0xB0608E), rgb(0xFFCB74)),
            Self::Night => (rgb(0x141B47), rgb(0x47599A)),
        }
    }
}

/// Paints sky and land. The horizon lies at 0.6 of the height, give or take a little.
pub(crate) fn paint_backdrop(canvas: &mut Canvas, place: Place, hour: Hour, rng: &mut Pcg64Mcg) {
    let (width, height) = canvas.size();
    let unit = (width * height).sqrt();
    let horizon = height * rng.random_range(0.57..0.63);
    paint_sky(canvas, hour, horizon, unit, rng);
    match place {
        Place::Meadow => paint_meadow(canvas, horizon, unit, rng),
        Place::Desert => paint_desert(canvas, horizon, unit, rng),
        Place::Beach => paint_beach(canvas, horizon, unit, rng),
        Place::Snow => paint_snow(canvas, horizon, unit, rng),
        Place::Forest => paint_forest(canvas, horizon, unit, rng),
    }
}

fn paint_sky(canvas: &mut Canvas, hour: Hour, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let (width, _) = canvas.size();
    let (zenith, rim) = hour.sky();
    let side = if rng.random_bool(0.5) { 0.18 } else { 0.82 };
    let sun_x = width * (side + rng.random_range(-0.05..0.05));
    canvas.dimmed(0.0, |c| c.downward(rounded(-1.0, -1.0, width + 2.0, horizon + unit * 0.1, 0.1), zenith, rim));
    match hour {
        Hour::Day => {
            let at = (sun_x, horizon * rng.random_range(0.2..0.3));
            canvas.glow(at, unit * 0.17, faint(0xFFF3B0, 0.8));
            canvas.bright(ellipse(at.0, at.1, unit * 0.065, unit * 0.065), rgb(0xFFE27A));
            for _ in 0..rng.random_range(1..=3) {
                let at = (width * rng.random_range(0.1..0.9), horizon * rng.random_range(0.15..0.6));
                paint_cloud(canvas, at, unit * rng.random_range(0.05..0.08), faint(0xFFFFFF, 0.9));
            }
        }
        Hour::Sunset => {
            let at = (sun_x, horizon * rng.random_range(0.72..0.82));
            canvas.glow(at, unit * 0.34, faint(0xFFE9A0, 0.85));
            canvas.bright(ellipse(at.0, at.1, unit * 0.1, unit * 0.1), rgb(0xFFF0B5));
            for _ in 0..rng.random_range(1..=2) {
                let at = (width * rng.random_range(0.1..0.9), horizon * rng.random_range(0.15..0.45));
                paint_cloud(canvas, at, unit * rng.random_range(0.05..0.08), faint(0xF6A48A, 0.8));
            }
        }
        Hour::Night => {
            for _ in 0..rng.random_range(10..=14) {
                let at = (width * rng.random_range(0.02..0.98), horizon * rng.random_range(0.03..0.85));
                let size = unit * rng.random_range(0.007..0.012);
                canvas.bright(ellipse(at.0, at.1, size, size), rgb(0xF4EFCF));
            }
            let at = (sun_x, horizon * rng.random_range(0.2..0.3));
            canvas.glow(at, unit * 0.16, faint(0xDCE4FF, 0.5));
            canvas.bright(ellipse(at.0, at.1, unit * 0.065, unit * 0.065), rgb(0xF6F1D5));
            canvas.bright(
                ellipse(at.0 + unit * 0.028, at.1 - unit * 0.015, unit * 0.053, unit * 0.053),
                mix(zenith, rim, 0.25),
            );
        }
    }
}

fn faint(hex: u32, alpha: f32) -> Color {
    let mut color = rgb(hex);
    color.set_alpha(alpha);
    color
}

fn paint_cloud(canvas: &mut Canvas, (x, y): (f32, f32), size: f32, color: Color) {
    for (dx, dy, r) in [(-1.1, 0.1, 0.6), (0.0, -0.2, 0.9), (1.1, 0.1, 0.65)] {
        canvas.bright(ellipse(x + dx * size, y + dy * size, r * size * 1.15, r * size * 0.8), color);
    }
}

fn paint_meadow(canvas: &mut Canvas, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let far = hills(canvas, horizon - unit * 0.03, unit * 0.05, 1.0, rng);
    canvas.downward(far, rgb(0x74B265), rgb(0x5C9F58));
    let near = hills(canvas, horizon + unit * 0.06, unit * 0.025, 0.7, rng);
    canvas.downward(near, rgb(0x9CCB62), rgb(0x63A24C));
    for _ in 0..9 {
        let (x, y) = spot(canvas, horizon + unit * 0.13, rng);
        let petal = [rgb(0xFFFFFF), rgb(0xF9E27D), rgb(0xF3A7BE)][rng.random_range(0..3)];
        canvas.flat(ellipse(x, y, unit * 0.011, unit * 0.011), petal);
    }
}

fn paint_desert(canvas: &mut Canvas, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let (width, _) = canvas.size();
    let far = hills(canvas, horizon, unit * 0.07, 1.4, rng);
    canvas.downward(far, rgb(0xD79A5B), rgb(0xE0AC68));
    let near = hills(canvas, horizon + unit * 0.07, unit * 0.03, 0.8, rng);
    canvas.downward(near, rgb(0xF4D391), rgb(0xDDA65E));
    for side in [0.08, 0.92] {
        let (x, base) = (width * (side + rng.random_range(-0.04..0.04)), horizon + unit * rng.random_range(0.08..0.12));
        paint_cactus(canvas, (x, base), unit * rng.random_range(0.15..0.22));
    }
}

fn paint_cactus(canvas: &mut Canvas, (x, base): (f32, f32), tall: f32) {
    let (green, width) = (rgb(0x5B8F56), tall * 0.24);
    canvas.line(segment((x, base), (x, base - tall)), green, width);
    let arm = tall * 0.34;
    for (side, at) in [(-1.0, 0.4), (1.0, 0.55)] {
        canvas.line(segment((x, base - tall * at), (x + side * arm, base - tall * at)), green, width * 0.7);
        canvas.line(
            segment((x + side * arm, base - tall * at), (x + side * arm, base - tall * (at + 0.3))),
            green,
            width * 0.7,
        );
    }
}

fn paint_beach(canvas: &mut Canvas, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let (width, height) = canvas.size();
    canvas.downward(rounded(-1.0, horizon, width + 2.0, height, 0.1), rgb(0x2F8DBD), rgb(0x8FD9E2));
    for row in 0..3 {
        let (x, y) = (width * rng.random_range(0.0..0.9), horizon + unit * (0.025 + 0.028 * row as f32));
        canvas.line(segment((x, y), (x + unit * 0.12, y)), rgb(0xBFE8EE), unit * 0.01);
    }
    let foam = hills(canvas, horizon + unit * 0.115, unit * 0.012, 1.2, &mut rng.clone());
    canvas.flat(foam, rgb(0xFFFFFF));
    let sand = hills(canvas, horizon + unit * 0.135, unit * 0.012, 1.2, rng);
    canvas.downward(sand, rgb(0xF8E6B4), rgb(0xE5C384));
    for _ in 0..4 {
        let (x, y) = spot(canvas, horizon + unit * 0.2, rng);
        canvas.flat(ellipse(x, y, unit * 0.016, unit * 0.01), rgb(0xF5A98B));
    }
}

fn paint_snow(canvas: &mut Canvas, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let (width, height) = canvas.size();
    for at in [0.12, 0.52, 0.9] {
        let (x, top) = (width * (at + rng.random_range(-0.08..0.08)), horizon - unit * rng.random_range(0.16..0.26));
        let (base, half) = (horizon + unit * 0.06, unit * 0.27);
        canvas.flat(polygon(&[(x, top), (x + half, base), (x - half, base)]), rgb(0x93AECB));
        let cap = 0.36;
        let low = top + (base - top) * cap;
        canvas.flat(
            polygon(&[(x, top), (x + half * cap, low), (x, low - unit * 0.02), (x - half * cap, low)]),
            rgb(0xF4F8FC),
        );
    }
    let near = hills(canvas, horizon + unit * 0.04, unit * 0.03, 0.8, rng);
    canvas.downward(near, rgb(0xFBFDFF), rgb(0xCFDEEE));
    for _ in 0..14 {
        let (x, y) = (width * rng.random_range(0.0..1.0), height * rng.random_range(0.0..0.95));
        let size = unit * rng.random_range(0.009..0.014);
        canvas.flat(ellipse(x, y, size, size), rgb(0xFFFFFF));
    }
}

fn paint_forest(canvas: &mut Canvas, horizon: f32, unit: f32, rng: &mut Pcg64Mcg) {
    let (width, _) = canvas.size();
    for (row, color) in [(0.0, rgb(0x7FA58C)), (1.0, rgb(0x3F7A57))] {
        let step = unit * 0.15;
        let mut x = -step * rng.random_range(0.0..1.0);
        while x < width + step {
            let (base, tall) = (horizon + unit * (0.03 + row * 0.05), unit * rng.random_range(0.26..0.36));
            paint_pine(canvas, (x, base), tall * (1.15 - row * 0.15), color);
            x += step * rng.random_range(0.85..1.2);
        }
    }
    let near = hills(canvas, horizon + unit * 0.06, unit * 0.015, 0.8, rng);
    canvas.downward(near, rgb(0x6F8F4A), rgb(0x4A6B3C));
    for _ in 0..5 {
        let (x, y) = spot(canvas, horizon + unit * 0.13, rng);
        canvas.flat(ellipse(x, y, unit * 0.02, unit * 0.011), rgb(0x8C6A42));
    }
}

fn paint_pine(canvas: &mut Canvas, (x, base): (f32, f32), tall: f32, color: Color) {
    for (low, high, half) in [(0.0, 0.55, 0.26), (0.3, 0.8, 0.2), (0.58, 1.0, 0.14)] {
        let (low, high, half) = (base - tall * low, base - tall * high, tall * half);
        canvas.flat(polygon(&[(x, high), (x + half, low), (x - half, low)]), color);
    }
}

/// Land from a wavy line around `top` down to the lower edge.
fn hills(canvas: &Canvas, top: f32, swing: f32, waves: f32, rng: &mut Pcg64Mcg) -> Path {
    let (width, height) = canvas.size();
    let phase: f32 = rng.random_range(0.0..std::f32::consts::TAU);
    let mut path = PathBuilder::new();
    path.move_to(-1.0, height + 1.0);
    for step in 0..=24 {
        let along = step as f32 / 24.0;
        let y = top + swing * (phase + along * waves * std::f32::consts::TAU).sin();
        path.line_to(-1.0 + along * (width + 2.0), y);
    }
    path.line_to(width + 1.0, height + 1.0);
    path.close();
    path.finish().expect("hills have a path")
}

/// A random point of the ground below `top`.
fn spot(canvas: &Canvas, top: f32, rng: &mut Pcg64Mcg) -> (f32, f32) {
    let (width, height) = canvas.size();
    let top = top.min(height * 0.9);
    (width * rng.random_range(0.03..0.97), rng.random_range(top..height * 0.98))
}
