//! Where a picture is cropped before it is resized.

use ballast_common::rng::KeyedRng;

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rect {
    /// First column.
    pub(crate) left: u32,
    /// First row.
    pub(crate) top: u32,
    /// Columns.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
}

/// The random part of a crop, drawn before the size of the picture is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CropDraw {
    /// Most that is cut off each side, as a fraction of the shorter side.
    pub(crate) jitter_max: f64,
    /// How much of that is cut off left, top, right and bottom, each in `0..1`.
    pub(crate) sides: [f64; 4],
    /// Where the crop lies on the side that is too long, in `0..1`.
    pub(crate) offset: f64,
}

impl CropDraw {
    /// Draws a crop. A jitter of 0 asks for the centre, the same for every use of the picture.
    ///
    /// Otherwise the crop's place is drawn from a triangular distribution: the middle is likeliest, the edges are seen at
    /// times.
    pub(crate) fn draw(jitter_max: f64, rng: &mut KeyedRng) -> Option<Self> {
        (jitter_max > 0.0).then(|| {
            let sides = [rng.uniform(), rng.uniform(), rng.uniform(), rng.uniform()];
            Self { jitter_max, sides, offset: rng.triangular() }
        })
    }
}

/// Returns the largest rectangle of the target's ratio, after the jitter has taken a little off each side.
///
/// The jitter never takes so much that the picture would have to be enlarged.
pub(crate) fn crop_rect(size: (u32, u32), target: (u32, u32), draw: Option<CropDraw>) -> Rect {
    let inner = draw.map_or(Rect { left: 0, top: 0, width: size.0, height: size.1 }, |draw| jitter(size, target, draw));
    let (wide, high) = (u64::from(inner.width) * u64::from(target.1), u64::from(inner.height) * u64::from(target.0));
    let scaled = |length: u32, by: u32, of: u32| {
        let (length, by, of) = (u64::from(length), u64::from(by), u64::from(of));
        ((2 * length * by + of) / (2 * of)) as u32 // rounded half up
    };
    let (width, height) = if wide > high {
        (scaled(inner.height, target.0, target.1).clamp(1, inner.width), inner.height)
    } else {
        (inner.width, scaled(inner.width, target.1, target.0).clamp(1, inner.height))
    };
    let place = |spare: u32| draw.map_or(spare / 2, |draw| (draw.offset * f64::from(spare + 1)) as u32);
    Rect { left: inner.left + place(inner.width - width), top: inner.top + place(inner.height - height), width, height }
}

fn jitter((width, height): (u32, u32), target: (u32, u32), draw: CropDraw) -> Rect {
    let spare = width.saturating_sub(target.0).min(height.saturating_sub(target.1)) / 2;
    let most = (draw.jitter_max * f64::from(width.min(height))).min(f64::from(spare));
    let [left, top, right, bottom] = draw.sides.map(|side| (side * most) as u32);
    Rect { left, top, width: width - left - right, height: height - top - bottom }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_jitter_the_centre_is_taken() {
        let rect = |size, target| crop_rect(size, target, None);
        assert_eq!(rect((512, 512), (512, 512)), Rect { left: 0, top: 0, width: 512, height: 512 });
        assert_eq!(rect((1000, 500), (256, 256)), Rect { left: 250, top: 0, width: 500, height: 500 });
        assert_eq!(rect((500, 1000), (512, 256)), Rect { left: 0, top: 375, width: 500, height: 250 });
        assert_eq!(rect((1, 4000), (64, 64)), Rect { left: 0, top: 1999, width: 1, height: 1 });
        assert_eq!(rect((4000, 1), (64, 256)), Rect { left: 1999, top: 0, width: 1, height: 1 });
    }

    #[test]
    fn the_jitter_stays_inside_and_never_enlarges() {
        for size in [(512, 512), (513, 700), (2000, 1000), (100, 90)] {
            for target in [(512, 512), (64, 256), (640, 384)] {
                for step in 0..100 {
                    let at = |n: u32| f64::from((step * n) % 100) / 100.0;
                    let sides = [at(1), at(3), at(7), at(9)];
                    let rect = crop_rect(size, target, Some(CropDraw { jitter_max: 0.2, sides, offset: at(11) }));
                    assert!(
                        rect.left + rect.width <= size.0 && rect.top + rect.height <= size.1,
                        "{rect:?} in {size:?}"
                    );
                    let fits = size.0 >= target.0 && size.1 >= target.1;
                    assert!(!fits || (rect.width >= target.0 && rect.height >= target.1), "{rect:?} of {size:?}");
                }
            }
        }
    }

    #[test]
    fn both_ends_are_reached() {
        let sides = [0.0; 4];
        let left = |offset| crop_rect((110, 100), (100, 100), Some(CropDraw { jitter_max: 0.1, sides, offset })).left;
        assert_eq!((left(0.0), left(0.5), left(0.999)), (0, 5, 10));
    }
}
