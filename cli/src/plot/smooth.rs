//! Smoothed lines with the band in which they may well lie.

/// Some numbers that lie close together: where, how many, their mean and standard deviation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) at: f64,
    pub(crate) count: u64,
    pub(crate) mean: f64,
    pub(crate) deviation: f64,
}

/// Sections of a smoothed line.
const SECTIONS: u32 = 150;

/// Returns (place, mean, half the band's width) along the line: means weighted by count and by a Gaussian of the distance, and
/// two standard errors. Looks both ways, so that a line does not begin with the noise of its first point.
pub(crate) fn smooth(points: &[Point], width: f64) -> Vec<(f64, f64, f64)> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    let place = |section: u32| first.at + (last.at - first.at) * f64::from(section) / f64::from(SECTIONS);
    let at = |at: f64| {
        let (mut weights, mut squares, mut sum, mut variance) = (0.0, 0.0, 0.0, 0.0);
        for point in points {
            let near = (-0.5 * ((point.at - at) / width.max(f64::MIN_POSITIVE)).powi(2)).exp();
            // Far from all points every weight may vanish; the floor leaves their plain mean then.
            let (near, count) = (near.max(1e-200), point.count as f64);
            weights += near * count;
            squares += near * near * count;
            sum += near * count * point.mean;
            variance += near * count * point.deviation * point.deviation;
        }
        let effective_count = (weights * weights / squares.max(f64::MIN_POSITIVE)).max(1.0);
        (at, sum / weights, 2.0 * (variance / weights / effective_count).sqrt())
    };
    (0..=SECTIONS).map(|section| at(place(section))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(means: &[f64]) -> Vec<Point> {
        let point = |(index, mean): (usize, &f64)| Point { at: index as f64, count: 4, mean: *mean, deviation: 0.6 };
        means.iter().enumerate().map(point).collect()
    }

    #[test]
    fn a_constant_stays_and_its_band_is_two_standard_errors() {
        for (_, mean, _) in smooth(&points(&[0.3; 20]), 2.0) {
            assert!((mean - 0.3).abs() < 1e-12);
        }
        // Alone and far from others: 2 · 0.6 / √4.
        let (_, _, band) = smooth(&points(&[0.3]), 1.0)[0];
        assert!((band - 0.6).abs() < 1e-9, "{band}");
    }

    #[test]
    fn a_line_goes_through_the_middle_of_its_points() {
        let line = smooth(&points(&[1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0]), 3.0);
        assert!(line.iter().all(|(_, mean, _)| (1.5..2.5).contains(mean)), "{line:?}");
        assert!(smooth(&[], 1.0).is_empty());
    }
}
