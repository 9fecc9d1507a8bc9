//! Exact decimals: a multiplier's digits are kept as written, so that no count ever depends on how a float rounds.

use std::cmp::Ordering;
use std::fmt;

use serde::{Serialize, Serializer};

/// A number of at most [`Decimal::MAX_DECIMALS`] decimals, 0 or more, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decimal {
    whole: u64,
    /// The fraction is `numerator / 10^decimals`, without zeros at its end: equal numbers are equal values.
    numerator: u128,
    decimals: u32,
}

impl Decimal {
    /// Zero.
    pub const ZERO: Decimal = Decimal { whole: 0, numerator: 0, decimals: 0 };

    /// One, the multiplier of a folder without a file.
    pub const ONE: Decimal = Decimal { whole: 1, numerator: 0, decimals: 0 };

    /// How many decimals are kept: as many as a double writes for numbers down to 1e-10, and so few that
    /// [`Decimal::fraction_of`] stays within 128 bits.
    pub const MAX_DECIMALS: u32 = 27;

    /// Reads a number such as `2`, `+2.50`, `.5` or `1e-3`.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, DecimalError> {
        let unsigned = text.strip_prefix('+').unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, parse_exponent(exponent)?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(DecimalError::NotANumber);
        }
        let point = whole.len() as i64 + exponent;
        Self::from_digits(&digits, point)
    }

    /// Reads `digits` with the decimal point before the digit at `point`, which may lie outside them.
    fn from_digits(digits: &str, point: i64) -> Result<Self, DecimalError> {
        let leading = digits.len() - digits.trim_start_matches('0').len();
        let digits = digits[leading..].trim_end_matches('0');
        let point = point - leading as i64;
        if digits.is_empty() {
            return Ok(Self { whole: 0, numerator: 0, decimals: 0 });
        }
        if point > 18 {
            return Err(DecimalError::TooLarge);
        }
        let decimals = (digits.len() as i64 - point).max(0);
        if decimals > i64::from(Self::MAX_DECIMALS) {
            return Err(DecimalError::TooManyDecimals);
        }
        let cut = point.clamp(0, digits.len() as i64) as usize;
        let number = |digits: &str| digits.bytes().fold(0u128, |number, digit| number * 10 + u128::from(digit - b'0'));
        let zeros = (point - digits.len() as i64).max(0) as u32;
        Ok(Self {
            whole: number(&digits[..cut]) as u64 * 10u64.pow(zeros),
            numerator: number(&digits[cut..]),
            decimals: decimals as u32,
        })
    }

    /// Returns the whole part.
    pub fn whole(self) -> u64 {
        self.whole
    }

    /// Says whether there is nothing after the point.
    pub fn is_whole(self) -> bool {
        self.numerator == 0
    }

    /// Says whether the fraction is above one half.
    pub fn fraction_is_above_half(self) -> bool {
        self.numerator * 2 > self.denominator()
    }

    /// Returns `count` times the fractional part, rounded half up, exactly.
    ///
    /// The product may have 200 bits, so `count` goes in by 32 bits at a time, as in long division.
    pub fn fraction_of(self, count: u128) -> u128 {
        let denominator = self.denominator();
        let (mut quotient, mut rest) = (0u128, 0u128);
        for shift in [96, 64, 32, 0] {
            let chunk = (count >> shift) & 0xffff_ffff;
            let carried = (rest << 32) + chunk * self.numerator; // below 2^32 · 10^27 + 2^32 · 10^27 < 2^123
            quotient = (quotient << 32) + carried / denominator;
            rest = carried % denominator;
        }
        quotient + u128::from(rest * 2 >= denominator)
    }

    /// Returns the nearest double, for reports only.
    pub fn to_f64(self) -> f64 {
        self.to_string().parse().expect("digits and a point are a float")
    }

    fn denominator(self) -> u128 {
        10u128.pow(self.decimals)
    }
}

impl From<u64> for Decimal {
    fn from(whole: u64) -> Self {
        Self { whole, ..Self::ZERO }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let scaled = |decimal: &Self| decimal.numerator * 10u128.pow(Self::MAX_DECIMALS - decimal.decimals);
        self.whole.cmp(&other.whole).then(scaled(self).cmp(&scaled(other)))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text is no decimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    /// Something other than digits and one point.
    #[error("not a number")]
    NotANumber,
    /// More digits after the point than are kept.
    #[error("more than {} decimals", Decimal::MAX_DECIMALS)]
    TooManyDecimals,
    /// More digits before the point than are kept.
    #[error("too large")]
    TooLarge,
}

fn parse_exponent(text: &str) -> Result<i64, DecimalError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(DecimalError::NotANumber);
    }
    let size = digits.parse::<i64>().unwrap_or(i64::MAX).min(1_000_000); // beyond any digit that is kept
    Ok(if text.starts_with('-') { -size } else { size })
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decimals {
            0 => write!(f, "{}", self.whole),
            decimals => write!(f, "{}.{:0width$}", self.whole, self.numerator, width = decimals as usize),
        }
    }
}

/// As a number: whole numbers without a point, others as the nearest double.
impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_whole() { serializer.serialize_u64(self.whole) } else { serializer.serialize_f64(self.to_f64()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        Decimal::parse(text).map_or_else(|error| error.to_string(), |decimal| decimal.to_string())
    }

    #[test]
    fn forms_of_one_number_are_equal() {
        for text in ["2.5", "+2.5", "2.50", "02.500", "25e-1", "0.25e1", "2.5E+0", ".25e1"] {
            assert_eq!(Decimal::parse(text), Decimal::parse("2.5"), "{text}");
        }
        assert_eq!(shown("1e4"), "10000");
        assert_eq!(shown("0.000001"), "0.000001");
        assert_eq!(shown("1e-6"), "0.000001");
        assert_eq!(shown("3.3333333333333335e-05"), "0.000033333333333333335");
        assert_eq!(shown("0e99999999999999999999"), "0");
        assert_eq!(shown("5."), "5");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "+", ".", "-1", "2,5", "1 2", "0x2", "1_0", "nan", "inf", "e5", "1e", "1e+", "--1", "+-1", "½", "٣"]
        {
            assert_eq!(Decimal::parse(text), Err(DecimalError::NotANumber), "{text}");
        }
        assert_eq!(Decimal::parse("1e99999999999999999999"), Err(DecimalError::TooLarge));
        assert_eq!(Decimal::parse(&format!("0.{}1", "0".repeat(27))), Err(DecimalError::TooManyDecimals));
        assert!(Decimal::parse(&format!("0.{}1", "0".repeat(26))).is_ok());
    }

    #[test]
    fn fractions_round_half_up() {
        let of = |text: &str, count| Decimal::parse(text).unwrap().fraction_of(count);
        assert_eq!((of("2.5", 100), of("0.05", 1000), of("0.1", 10)), (50, 50, 1));
        assert_eq!((of("0.5", 1), of("0.5", 3), of("0.49", 1)), (1, 2, 0));
        let most = "9".repeat(27);
        assert_eq!(of(&format!("0.{most}"), 1 << 64), 1 << 64);
    }

    proptest! {
        #[test]
        fn fraction_of_agrees_with_whole_number_arithmetic(numerator in 0u64..1_000_000_000, count in 0u128..1 << 90) {
            let decimal = Decimal::parse(&format!("7.{numerator:09}")).unwrap();
            let expected = (count * u128::from(numerator) * 2 + 1_000_000_000) / 2_000_000_000;
            prop_assert_eq!(decimal.fraction_of(count), expected);
        }

        #[test]
        fn display_reads_back(whole in 0u64..=10_000, fraction in "[0-9]{1,27}") {
            let decimal = Decimal::parse(&format!("{whole}.{fraction}")).unwrap();
            prop_assert_eq!(Decimal::parse(&decimal.to_string()), Ok(decimal));
        }
    }
}
