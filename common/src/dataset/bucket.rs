//! Aspect buckets: the sizes that images are brought to, so that a micro-batch has one shape.
//!
//! Computed, not listed: for every width the tallest height that keeps the area, the same the other way round, and the largest
//! square. Ratios are compared as fractions of whole numbers: the nearest by |ln(ratio)| without a logarithm, so the answer is the same on
//! every platform, and portrait and landscape mirror each other.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use serde::Serialize;

/// Sides are multiples of this: the VAE halves three times and the UNet three times more.
pub const SIDE_STEP: u32 = 64;

/// A size that images are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bucket {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl Bucket {
    /// Says whether an image of this size has to be enlarged to fill the bucket.
    pub fn upscales(self, width: u32, height: u32) -> bool {
        width < self.width || height < self.height
    }

    fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// How far the ratio of an image is from the bucket's, as a fraction of at least 1: e^|ln(ratio) − ln(ratio)|.
    fn distance(self, width: u32, height: u32) -> (u64, u64) {
        let (a, b) = (u64::from(width) * u64::from(self.height), u64::from(height) * u64::from(self.width));
        (a.max(b), a.min(b))
    }
}

/// Computes the buckets of an area of `resolution²`, sorted by width and height. Never empty for a resolution from 64.
pub fn buckets(resolution: u32, max_aspect: f64) -> Vec<Bucket> {
    let area = u64::from(resolution).pow(2);
    let side = resolution / SIDE_STEP * SIDE_STEP;
    let mut found = BTreeSet::from([Bucket { width: side, height: side }]); // always: 545² has room for 512×576 and no tallest square
    let mut width = SIDE_STEP;
    while u64::from(width) * u64::from(SIDE_STEP) <= area {
        let height = (area / u64::from(width)) as u32 / SIDE_STEP * SIDE_STEP;
        let (long, short) = (width.max(height), width.min(height));
        if f64::from(long) <= max_aspect * f64::from(short) {
            found.insert(Bucket { width, height });
            found.insert(Bucket { width: height, height: width });
        }
        width += SIDE_STEP;
    }
    found.into_iter().collect()
}

/// Returns the index of the bucket whose ratio is nearest; of equally near ones the larger, then the narrower.
///
/// # Panics
/// When there is no bucket.
pub fn nearest_bucket(buckets: &[Bucket], width: u32, height: u32) -> usize {
    let nearer = |a: &Bucket, b: &Bucket| {
        let ((a_long, a_short), (b_long, b_short)) = (a.distance(width, height), b.distance(width, height));
        let by_distance = (u128::from(a_long) * u128::from(b_short)).cmp(&(u128::from(b_long) * u128::from(a_short)));
        by_distance.then(b.area().cmp(&a.area())).then(a.width.cmp(&b.width))
    };
    let best = buckets.iter().enumerate().min_by(|(_, a), (_, b)| -> Ordering { nearer(a, b) });
    best.expect("there is at least one bucket").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nearest(resolution: u32, width: u32, height: u32) -> (u32, u32) {
        let buckets = buckets(resolution, 4.0);
        let bucket = buckets[nearest_bucket(&buckets, width, height)];
        (bucket.width, bucket.height)
    }

    #[test]
    fn buckets_of_512() {
        let sizes: Vec<(u32, u32)> = buckets(512, 4.0).iter().map(|bucket| (bucket.width, bucket.height)).collect();
        let narrow = [(256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576)];
        let wide = [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)];
        assert_eq!(sizes, [&narrow[..], &[(512, 512)], &wide[..]].concat());
        assert_eq!(buckets(64, 4.0), [Bucket { width: 64, height: 64 }]);
        assert_eq!(buckets(512, 1.0), [Bucket { width: 512, height: 512 }]);
    }

    #[test]
    fn images_go_to_the_nearest_ratio() {
        assert_eq!(nearest(512, 1000, 1000), (512, 512));
        assert_eq!(nearest(512, 3000, 2000), (640, 384));
        assert_eq!(nearest(512, 2000, 3000), (384, 640));
        assert_eq!(nearest(512, 10, 4000), (256, 1024));
        assert_eq!(nearest(512, u32::MAX, 1), (1024, 256));
    }

    proptest! {
        #[test]
        fn buckets_keep_their_promises(resolution in 64u32..2048, max_aspect in 1.0f64..8.0) {
            let all = buckets(resolution, max_aspect);
            prop_assert!(!all.is_empty());
            for bucket in &all {
                prop_assert!(bucket.width % 64 == 0 && bucket.height % 64 == 0 && bucket.width > 0 && bucket.height > 0);
                prop_assert!(bucket.area() <= u64::from(resolution).pow(2));
                let ratio = f64::from(bucket.width) / f64::from(bucket.height);
                prop_assert!(ratio.max(1.0 / ratio) <= max_aspect + 1e-9);
                let mirrored = Bucket { width: bucket.height, height: bucket.width };
                prop_assert!(all.contains(&mirrored));
            }
        }

        #[test]
        fn portrait_and_landscape_mirror_each_other(resolution in 64u32..2048, w in 1u32..9999, h in 1u32..9999) {
            prop_assume!(w != h);
            let (width, height) = nearest(resolution, w, h);
            prop_assert_eq!(nearest(resolution, h, w), (height, width));
        }

        #[test]
        fn nearest_agrees_with_logarithms(w in 1u32..9999, h in 1u32..9999) {
            let all = buckets(768, 4.0);
            let ln = |width: u32, height: u32| (f64::from(width) / f64::from(height)).ln();
            let far = |bucket: &Bucket| (ln(bucket.width, bucket.height) - ln(w, h)).abs();
            let chosen = far(&all[nearest_bucket(&all, w, h)]);
            prop_assert!(all.iter().all(|bucket| chosen <= far(bucket) + 1e-12));
        }
    }
}
