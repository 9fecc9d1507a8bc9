//! The ordinary things of the world. Each stands at the origin, about one unit tall, and faces us.

use tiny_skia::{Color, Transform};

use crate::paint::{Canvas, curve, dome, ellipse, mix, polygon, rgb, rounded, segment, turned_ellipse};

/// An ordinary thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Thing {
    House,
    Tent,
    Car,
    Balloon,
    Mushroom,
    Flower,
    Cat,
    Owl,
}

impl Thing {
    pub(crate) const ALL: [Self; 8] =
        [Self::House, Self::Tent, Self::Car, Self::Balloon, Self::Mushroom, Self::Flower, Self::Cat, Self::Owl];

    /// Whether the thing hangs in the sky instead of standing on the ground.
    pub(crate) fn floats(self) -> bool {
        self == Self::Balloon
    }

    /// Paints the thing.
    pub(crate) fn paint(self, canvas: &mut Canvas, hue: Hue) {
        match self {
            Self::House => paint_house(canvas, hue),
            Self::Tent => paint_tent(canvas, hue),
            Self::Car => paint_car(canvas, hue),
            Self::Balloon => paint_balloon(canvas, hue),
            Self::Mushroom => paint_mushroom(canvas, hue),
            Self::Flower => paint_flower(canvas, hue),
            Self::Cat => paint_cat(canvas, hue),
            Self::Owl => paint_owl(canvas, hue),
        }
    }
}

/// A colour with a name that a caption can say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hue {
    Red,
    Yellow,
    Green,
    Blue,
    Purple,
    White,
}

impl Hue {
    pub(crate) const ALL: [Self; 6] = [Self::Red, Self::Yellow, Self::Green, Self::Blue, Self::Purple, Self::White];

    fn color(self) -> Color {
        match self {
            Self::Red => rgb(0xD8392F),
            Self::Yellow => rgb(0xF6C730),
            Self::Green => rgb(0x2F9A55),
            Self::Blue => rgb(0x2E6FD0),
            Self::Purple => rgb(0x8B49B5),
            Self::White => rgb(0xF5F2EC),
        }
    }
}

const INK: u32 = 0x2E2A35;
const CREAM: u32 = 0xFBEFD6;
const WOOD: u32 = 0x8A5A3B;

fn paint_house(canvas: &mut Canvas, hue: Hue) {
    let wall = hue.color();
    canvas.shadow(0.62);
    canvas.flat(rounded(0.16, -0.98, 0.13, 0.3, 0.02), rgb(WOOD));
    canvas.shaded(rounded(-0.38, -0.58, 0.76, 0.6, 0.03), wall);
    canvas.shaded(polygon(&[(0.0, -1.05), (0.5, -0.56), (-0.5, -0.56)]), mix(wall, rgb(0x4A2C2A), 0.55));
    canvas.flat(rounded(-0.09, -0.32, 0.18, 0.33, 0.05), rgb(WOOD));
    for x in [-0.3, 0.16] {
        canvas.flat(rounded(x - 0.02, -0.46, 0.18, 0.2, 0.02), rgb(CREAM));
        canvas.bright(rounded(x, -0.44, 0.14, 0.16, 0.01), rgb(0xFFE08A));
    }
}

fn paint_tent(canvas: &mut Canvas, hue: Hue) {
    let cloth = hue.color();
    canvas.shadow(0.7);
    canvas.shaded(polygon(&[(0.0, -0.9), (0.58, 0.02), (-0.58, 0.02)]), cloth);
    canvas.flat(polygon(&[(0.0, -0.9), (0.0, 0.02), (0.24, 0.02)]), mix(cloth, rgb(INK), 0.75));
    canvas.flat(polygon(&[(0.0, -0.9), (0.0, 0.02), (-0.24, 0.02)]), mix(cloth, rgb(INK), 0.6));
    canvas.line(segment((0.0, -0.88), (0.0, -1.05)), rgb(WOOD), 0.04);
    canvas.flat(polygon(&[(0.01, -1.08), (0.2, -1.0), (0.01, -0.92)]), rgb(CREAM));
}

fn paint_car(canvas: &mut Canvas, hue: Hue) {
    let paint = hue.color();
    canvas.shadow(0.8);
    canvas.shaded(rounded(-0.4, -0.66, 0.74, 0.42, 0.17), paint);
    canvas.flat(rounded(-0.31, -0.57, 0.26, 0.24, 0.07), rgb(0xCDEBF5));
    canvas.flat(rounded(0.01, -0.57, 0.25, 0.24, 0.07), rgb(0xCDEBF5));
    canvas.shaded(rounded(-0.66, -0.37, 1.3, 0.3, 0.12), paint);
    canvas.bright(ellipse(0.57, -0.25, 0.06, 0.06), rgb(0xFFF2B0));
    for x in [-0.37, 0.36] {
        canvas.flat(ellipse(x, -0.09, 0.15, 0.15), rgb(INK));
        canvas.flat(ellipse(x, -0.09, 0.065, 0.065), rgb(0xD9D5CC));
    }
}

fn paint_balloon(canvas: &mut Canvas, hue: Hue) {
    let cloth = hue.color();
    for x in [-0.1, 0.1] {
        canvas.line(segment((x, -0.13), (x * 2.2, -0.42)), rgb(WOOD), 0.025);
    }
    canvas.flat(polygon(&[(-0.36, -0.5), (0.36, -0.5), (0.13, -0.27), (-0.13, -0.27)]), mix(cloth, rgb(INK), 0.25));
    canvas.shaded(ellipse(0.0, -0.7, 0.44, 0.44), cloth);
    canvas.shaded(ellipse(0.0, -0.7, 0.19, 0.44), mix(cloth, rgb(0xFFF6E0), 0.55));
    canvas.shaded(rounded(-0.13, -0.16, 0.26, 0.18, 0.04), rgb(WOOD));
}

fn paint_mushroom(canvas: &mut Canvas, hue: Hue) {
    let dot = if hue == Hue::White { rgb(0xD9B79B) } else { rgb(0xFFF8EA) };
    canvas.shadow(0.5);
    canvas.shaded(rounded(-0.15, -0.5, 0.3, 0.53, 0.11), rgb(CREAM));
    canvas.shaded(dome(0.0, -0.4, 0.54, 0.56), hue.color());
    for (x, y, r) in [(-0.25, -0.54, 0.085), (0.06, -0.73, 0.095), (0.29, -0.53, 0.075)] {
        canvas.flat(ellipse(x, y, r, r * 0.9), dot);
    }
}

fn paint_flower(canvas: &mut Canvas, hue: Hue) {
    canvas.shadow(0.35);
    canvas.line(curve((0.0, 0.0), (0.05, -0.3), (0.0, -0.65)), rgb(0x3E7D43), 0.07);
    canvas.flat(turned_ellipse(-0.17, -0.2, 0.18, 0.075, 28.0), rgb(0x4F9650));
    canvas.flat(turned_ellipse(0.18, -0.28, 0.18, 0.075, -28.0), rgb(0x4F9650));
    for petal in 0..6 {
        let turn = Transform::from_rotate_at(60.0 * petal as f32 + 30.0, 0.0, -0.72);
        canvas.within(turn, |c| c.shaded(ellipse(0.0, -0.94, 0.14, 0.17), hue.color()));
    }
    canvas.shaded(ellipse(0.0, -0.72, 0.13, 0.13), if hue == Hue::Yellow { rgb(0x8A5A2B) } else { rgb(0xF2B63C) });
}

fn paint_cat(canvas: &mut Canvas, hue: Hue) {
    let fur = hue.color();
    let pale = mix(fur, rgb(0xFFF6E6), 0.65);
    canvas.shadow(0.5);
    canvas.line(curve((0.2, -0.08), (0.62, -0.02), (0.5, -0.42)), mix(fur, rgb(INK), 0.12), 0.11);
    canvas.shaded(ellipse(0.0, -0.26, 0.31, 0.3), fur);
    canvas.flat(ellipse(0.0, -0.2, 0.16, 0.2), pale);
    for side in [-1.0, 1.0] {
        canvas.flat(ellipse(side * 0.14, -0.02, 0.1, 0.06), pale);
        let ear = [(side * 0.32, -0.98), (side * 0.33, -0.66), (side * 0.06, -0.82)];
        canvas.flat(polygon(&ear), mix(fur, rgb(INK), 0.15));
    }
    canvas.shaded(ellipse(0.0, -0.64, 0.34, 0.27), fur);
    for side in [-1.0, 1.0] {
        canvas.flat(ellipse(side * 0.14, -0.67, 0.05, 0.065), rgb(INK));
    }
    canvas.flat(ellipse(0.0, -0.54, 0.11, 0.075), pale);
    canvas.flat(ellipse(0.0, -0.57, 0.04, 0.03), rgb(0xE58A9A));
}

fn paint_owl(canvas: &mut Canvas, hue: Hue) {
    let feathers = hue.color();
    let dark = mix(feathers, rgb(INK), 0.3);
    canvas.shadow(0.48);
    for side in [-1.0, 1.0] {
        canvas.flat(ellipse(side * 0.13, 0.0, 0.1, 0.05), rgb(0xE9A23B));
        canvas.flat(polygon(&[(side * 0.34, -1.03), (side * 0.38, -0.74), (side * 0.1, -0.9)]), dark);
    }
    canvas.shaded(rounded(-0.38, -0.94, 0.76, 0.95, 0.36), feathers);
    canvas.flat(ellipse(0.0, -0.28, 0.22, 0.25), mix(feathers, rgb(0xFFF6E6), 0.6));
    for side in [-1.0, 1.0] {
        canvas.flat(turned_ellipse(side * 0.36, -0.36, 0.1, 0.27, side * -10.0), dark);
        canvas.flat(ellipse(side * 0.165, -0.68, 0.165, 0.165), rgb(0xFFFDF5));
        canvas.flat(ellipse(side * 0.15, -0.67, 0.08, 0.08), rgb(INK));
    }
    canvas.flat(polygon(&[(-0.06, -0.6), (0.06, -0.6), (0.0, -0.47)]), rgb(0xE9A23B));
}
