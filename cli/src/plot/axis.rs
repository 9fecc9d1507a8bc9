//! Axes with round numbers.

/// A range of numbers whose ends and ticks are round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Axis {
    pub(super) low: f64,
    pub(super) high: f64,
    spacing: f64,
}

impl Axis {
    /// Covers a range with about `ticks` round numbers.
    pub(super) fn covering(low: f64, high: f64, ticks: u32) -> Self {
        let high = if high > low { high } else { low + low.abs().max(1.0) };
        let spacing = round_spacing((high - low) / f64::from(ticks.max(1)));
        // A hair's breadth of rounding must not cost a whole tick.
        let (first, last) = ((low / spacing + 1e-9).floor(), (high / spacing - 1e-9).ceil());
        Self { low: first * spacing, high: last * spacing, spacing }
    }

    /// Covers whole numbers, without making the range wider than it is.
    pub(super) fn of_counts(low: f64, high: f64, ticks: u32) -> Self {
        let high = high.max(low + 1.0);
        let spacing = round_spacing((high - low) / f64::from(ticks.max(1))).max(1.0);
        Self { low, high, spacing }
    }

    /// Returns the round numbers of the range.
    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> {
        let (first, last) = ((self.low / self.spacing - 1e-9).ceil() as i64, (self.high / self.spacing + 1e-9).floor());
        let spacing = self.spacing;
        (first..=last as i64).map(move |tick| tick as f64 * spacing)
    }

    /// Writes a tick with as many decimals as the ticks need.
    pub(super) fn label(&self, value: f64) -> String {
        let digits = (-self.spacing.log10().floor()).clamp(0.0, 9.0) as usize;
        // Minus zero is zero.
        format!("{:.digits$}", if value == 0.0 { 0.0 } else { value })
    }

    /// Returns where a value lies between the ends: 0 to 1 within the range.
    pub(super) fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// Returns the smallest of 1, 2, 5, 10, 20, … that is no smaller, at any power of ten.
fn round_spacing(least: f64) -> f64 {
    let magnitude = 10f64.powf(least.log10().floor());
    let fits = |spacing: &f64| *spacing >= least * (1.0 - 1e-9);
    [1.0, 2.0, 5.0].map(|round| round * magnitude).into_iter().find(fits).unwrap_or(10.0 * magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_reach_the_value() {
        for (low, high, expected) in [
            (0.0, 0.37, "0.0 0.1 0.2 0.3 0.4"),
            (0.0, 4.2, "0 1 2 3 4 5"),
            (0.0, 1.0, "0.0 0.2 0.4 0.6 0.8 1.0"),
            (0.71, 1.28, "0.6 0.8 1.0 1.2 1.4"),
            (0.0, 0.0, "0.0 0.2 0.4 0.6 0.8 1.0"),
            (-3.0, 12.0, "-5 0 5 10 15"),
            (0.0, 3e6, "0 1000000 2000000 3000000"),
        ] {
            let axis = Axis::covering(low, high, 5);
            let labels: Vec<_> = axis.ticks().map(|tick| axis.label(tick)).collect();
            assert_eq!(labels.join(" "), expected, "{low} to {high}");
            assert!(axis.low <= low && axis.high >= high);
        }
    }

    #[test]
    fn counts_keep_their_range_and_have_whole_ticks() {
        let labels = |axis: Axis| axis.ticks().map(|tick| axis.label(tick)).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(Axis::of_counts(0.0, 47.0, 6)), "0 10 20 30 40");
        assert_eq!(labels(Axis::of_counts(10.0, 12.0, 6)), "10 11 12");
        assert_eq!(labels(Axis::of_counts(3.0, 3.0, 6)), "3 4");
    }
}
