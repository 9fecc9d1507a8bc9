//! The two made-up subjects that the quickstart teaches. They appear in the example pictures only, never in the world
//! that the model was pretrained on.

use tiny_skia::Transform;

use crate::paint::{Canvas, curve, ellipse, mix, polygon, rgb, rounded, segment, turned_ellipse};

/// A subject to be taught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subject {
    /// A round, fluffy, orange creature with two feelers.
    Wuzzle,
    /// A boxy blue robot with one lamp.
    Klonk,
}

/// What a subject is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pose {
    Standing,
    Waving,
    Jumping,
    Sleeping,
}

impl Subject {
    /// Paints the subject at the origin, about one unit tall.
    pub(crate) fn paint(self, canvas: &mut Canvas, pose: Pose) {
        canvas.shadow(if pose == Pose::Jumping { 0.4 } else { 0.58 });
        let (lift, squash) = match pose {
            Pose::Standing | Pose::Waving => (0.0, 1.0),
            Pose::Jumping => (-0.2, 1.05),
            Pose::Sleeping => (0.0, 0.86),
        };
        canvas.within(Transform::from_row(1.0, 0.0, 0.0, squash, 0.0, lift), |c| match self {
            Self::Wuzzle => paint_wuzzle(c, pose),
            Self::Klonk => paint_klonk(c, pose),
        });
    }
}

const INK: u32 = 0x2E2A35;

fn paint_wuzzle(canvas: &mut Canvas, pose: Pose) {
    let (fur, cream, tip) = (rgb(0xF28A2E), rgb(0xFFEBC2), rgb(0x2E6FD0));
    for side in [-1.0, 1.0] {
        canvas.line(
            curve((side * 0.14, -0.78), (side * 0.16, -1.0), (side * 0.33, -1.06)),
            mix(fur, rgb(INK), 0.3),
            0.055,
        );
        canvas.shaded(ellipse(side * 0.35, -1.07, 0.1, 0.1), tip);
        canvas.flat(ellipse(side * 0.19, -0.01, 0.15, 0.075), tip);
        paint_wuzzle_arm(canvas, side, pose);
    }
    // Tufts around a circle make the silhouette fluffy.
    for tuft in 0..12 {
        let turn = Transform::from_rotate_at(30.0 * tuft as f32 + 15.0, 0.0, -0.43);
        canvas.within(turn, |c| {
            c.flat(polygon(&[(-0.14, -0.77), (0.0, -0.93), (0.14, -0.77)]), mix(fur, rgb(INK), 0.06))
        });
    }
    canvas.shaded(ellipse(0.0, -0.43, 0.43, 0.42), fur);
    canvas.flat(ellipse(0.0, -0.25, 0.26, 0.2), cream);
    for side in [-1.0, 1.0] {
        if pose == Pose::Sleeping {
            let (inner, outer) = ((side * 0.07, -0.57), (side * 0.27, -0.57));
            canvas.line(curve(inner, (side * 0.17, -0.46), outer), rgb(INK), 0.045);
        } else {
            canvas.flat(ellipse(side * 0.165, -0.57, 0.145, 0.165), rgb(0xFFFFFF));
            canvas.flat(ellipse(side * 0.14, -0.55, 0.07, 0.085), rgb(INK));
        }
    }
    canvas.line(curve((-0.1, -0.35), (0.0, -0.26), (0.1, -0.35)), rgb(0x7A2E1E), 0.055);
}

fn paint_wuzzle_arm(canvas: &mut Canvas, side: f32, pose: Pose) {
    let raised = pose == Pose::Jumping || (pose == Pose::Waving && side > 0.0);
    let (x, y, turn) = if raised { (0.48, -0.62, -45.0) } else { (0.43, -0.3, 50.0) };
    canvas.shaded(turned_ellipse(side * x, y, 0.17, 0.085, side * turn), rgb(0xDB7420));
}

fn paint_klonk(canvas: &mut Canvas, pose: Pose) {
    let (shell, steel) = (rgb(0x3A7BD5), rgb(0x4A5263));
    canvas.line(segment((0.0, -0.85), (0.0, -1.06)), steel, 0.05);
    let lamp = if pose == Pose::Sleeping { rgb(0x9C4A50) } else { rgb(0xFF4B4B) };
    canvas.bright(ellipse(0.0, -1.07, 0.085, 0.085), lamp);
    for side in [-1.0, 1.0] {
        canvas.flat(rounded(side * 0.2 - 0.1, -0.16, 0.2, 0.17, 0.04), steel);
        let raised = pose == Pose::Jumping || (pose == Pose::Waving && side > 0.0);
        let hand = if raised { (side * 0.56, -0.66) } else { (side * 0.5, -0.14) };
        canvas.line(segment((side * 0.3, -0.36), hand), steel, 0.12);
        canvas.flat(ellipse(hand.0, hand.1, 0.085, 0.085), rgb(0xF6C445));
    }
    canvas.shaded(rounded(-0.3, -0.48, 0.6, 0.4, 0.07), shell);
    canvas.flat(ellipse(0.0, -0.28, 0.1, 0.1), rgb(0xF6C445));
    canvas.shaded(rounded(-0.42, -0.9, 0.84, 0.46, 0.1), shell);
    canvas.flat(rounded(-0.33, -0.82, 0.66, 0.3, 0.08), rgb(0x1E2B3D));
    for side in [-1.0, 1.0] {
        if pose == Pose::Sleeping {
            canvas.line(segment((side * 0.08, -0.67), (side * 0.22, -0.67)), rgb(0x9FF7E4), 0.045);
        } else {
            canvas.bright(ellipse(side * 0.15, -0.67, 0.075, 0.085), rgb(0x9FF7E4));
        }
    }
}
