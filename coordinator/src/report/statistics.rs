//! Running statistics: a mean and a deviation of numbers that come one by one and are not kept.

/// Count, mean and spread of the numbers added so far (B. P. Welford, Technometrics 4, 1962).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Statistic {
    count: u64,
    mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
}

impl Statistic {
    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        let distance = value - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (value - self.mean);
    }

    /// Takes in all that another one has seen.
    pub(super) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        let (count, others) = (self.count as f64, other.count as f64);
        let distance = other.mean - self.mean;
        self.count += other.count;
        self.mean += distance * others / (count + others);
        self.squares += other.squares + distance * distance * count * others / (count + others);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// None of nothing.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.count > 0).then_some(self.mean)
    }

    /// The standard deviation (n − 1). None of fewer than two numbers.
    pub(super) fn deviation(&self) -> Option<f64> {
        (self.count > 1).then(|| (self.squares / (self.count - 1) as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Statistic {
        let mut statistic = Statistic::default();
        values.iter().for_each(|value| statistic.add(*value));
        statistic
    }

    #[test]
    fn mean_and_deviation_are_the_textbooks() {
        let statistic = of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((statistic.count(), statistic.mean()), (8, Some(5.0)));
        assert!((statistic.deviation().unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!((of(&[]).mean(), of(&[3.0]).deviation()), (None, None));
    }

    #[test]
    fn parts_merge_to_the_whole() {
        let (mut left, right) = (of(&[2.0, 4.0, 4.0]), of(&[4.0, 5.0, 5.0, 7.0, 9.0]));
        left.merge(&right);
        left.merge(&Statistic::default());
        assert_eq!((left.count(), left.mean()), (8, Some(5.0)));
        assert!((left.deviation().unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
    }
}
