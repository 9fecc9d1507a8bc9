//! The values that the small files and keys may have, each with its own complaint: what was found, and what is allowed.

use super::decimal::{Decimal, DecimalError};

/// The most that an image can be used per epoch.
const MAX_MULTIPLY: u64 = 10_000;

/// Names of batches are compared and shown, not read.
const MAX_BATCH_ID: usize = 255;

const MULTIPLY_ALLOWED: &str = "one number above 0 and up to 10000, with a decimal point, such as 2 or 0.25";
const NUMBER_ALLOWED: &str = "one number with a decimal point, such as 0.5";
const CHANCE_ALLOWED: &str = "one number from 0 to 1, with a decimal point, such as 0.1";
const WEIGHT_ALLOWED: &str = "one number, 0 or more, with a decimal point, such as 1.5";
const LENGTH_ALLOWED: &str = "one whole number of characters, 1 or more, such as 300";
const BATCH_ID_ALLOWED: &str = "one line of text, such as portraits";
const SWITCH_ALLOWED: &str = "true or false";

/// Reads how often an image is used per epoch.
pub(super) fn multiply(text: &str) -> Result<Decimal, String> {
    let reason = match Decimal::parse(text) {
        Ok(number) if number == Decimal::ZERO => {
            "0 is no use of an image (to leave a folder out, move it away or put a dot in front of its name)".to_owned()
        }
        Ok(number) if number > Decimal::from(MAX_MULTIPLY) => format!("over {MAX_MULTIPLY}"),
        Ok(number) => return Ok(number),
        Err(DecimalError::TooLarge) => format!("over {MAX_MULTIPLY}"),
        Err(DecimalError::NotANumber) => why_no_number(text),
        Err(error @ DecimalError::TooManyDecimals) => error.to_string(),
    };
    Err(format!("{reason}; allowed: {MULTIPLY_ALLOWED}"))
}

/// Reads the weight of a loss; any number that single precision can hold.
pub(super) fn loss_scale(text: &str) -> Result<f64, String> {
    number(text).ok_or_else(|| format!("{}; allowed: {NUMBER_ALLOWED}", why_no_number(text)))
}

/// Reads a rating.
pub(super) fn rating(text: &str) -> Result<f64, String> {
    loss_scale(text)
}

/// Reads a chance.
pub(super) fn chance(text: &str) -> Result<f64, String> {
    let reason = match number(text) {
        Some(chance) if (0.0..=1.0).contains(&chance) => return Ok(chance),
        Some(chance) if chance < 0.0 => "below 0".to_owned(),
        Some(_) => "over 1".to_owned(),
        None => why_no_number(text),
    };
    Err(format!("{reason}; allowed: {CHANCE_ALLOWED}"))
}

/// Reads the weight of a tag.
pub(super) fn tag_weight(text: &str) -> Result<f64, String> {
    let reason = match number(text) {
        Some(weight) if weight >= 0.0 => return Ok(weight),
        Some(_) => "below 0".to_owned(),
        None => why_no_number(text),
    };
    Err(format!("{reason}; allowed: {WEIGHT_ALLOWED}"))
}

/// Reads the most characters that a caption may have.
pub(super) fn max_caption_length(text: &str) -> Result<u32, String> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let reason = match text.parse::<u32>() {
        Ok(0) => "0 leaves no caption".to_owned(),
        Ok(length) if is_digits => return Ok(length),
        _ if is_digits => "too large".to_owned(),
        _ if number(text).is_some() => "not a whole number above 0".to_owned(),
        _ => why_no_number(text),
    };
    Err(format!("{reason}; allowed: {LENGTH_ALLOWED}"))
}

/// Reads the name of a batch.
pub(super) fn batch_id(text: &str) -> Result<String, String> {
    let reason = if text.is_empty() {
        "empty".to_owned()
    } else if text.lines().count() > 1 {
        "more than one line".to_owned()
    } else if text.chars().count() > MAX_BATCH_ID {
        format!("longer than {MAX_BATCH_ID} characters")
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("{reason}; allowed: {BATCH_ID_ALLOWED}"))
}

/// Reads yes or no, in all the words that YAML has had for them.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        "" => Err(format!("empty; allowed: {SWITCH_ALLOWED}")),
        _ => Err(format!("neither; allowed: {SWITCH_ALLOWED}")),
    }
}

/// Reads a number in the forms that [`Decimal`] knows, with a sign; not `inf`, `nan` or what `f32` cannot hold. No `-0`.
fn number(text: &str) -> Option<f64> {
    let is_number =
        matches!(Decimal::parse(text.strip_prefix('-').unwrap_or(text)), Err(DecimalError::TooManyDecimals) | Ok(_));
    let value = text.parse::<f64>().ok().filter(|value| is_number && (*value as f32).is_finite())?;
    Some(value + 0.0)
}

fn why_no_number(text: &str) -> String {
    let with_point = text.replace(',', ".");
    let is_number = |text: &str| Decimal::parse(text.trim_start_matches('-')).is_ok();
    if text.is_empty() {
        "empty".to_owned()
    } else if text.contains(',') && is_number(&with_point) {
        format!("a comma is no decimal point (write {with_point})")
    } else if text.starts_with('-') && is_number(text) {
        "below 0".to_owned()
    } else if text.lines().count() > 1 {
        "more than one line".to_owned()
    } else {
        "not a number".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_multipliers() {
        for (text, value) in [("2", "2"), ("+2.50", "2.5"), ("0.05", "0.05"), ("10000", "10000"), ("1e-6", "0.000001")]
        {
            assert_eq!(multiply(text).unwrap().to_string(), value);
        }
    }

    #[test]
    fn bad_multipliers_say_why_and_what_is_allowed() {
        let cases = [
            ("0", "0 is no use"),
            ("0.000", "0 is no use"),
            ("-1", "below 0"),
            ("-0.5", "below 0"),
            ("nan", "not a number"),
            ("NaN", "not a number"),
            ("inf", "not a number"),
            ("-inf", "not a number"),
            ("10000.0001", "over 10000"),
            ("1e300", "over 10000"),
            ("2,5", "write 2.5"),
            ("1,000.5", "not a number"),
            ("", "empty"),
            ("two", "not a number"),
            ("2 # often", "not a number"),
            ("2\n3", "more than one line"),
            ("0x10", "not a number"),
            ("1_000", "not a number"),
            ("50%", "not a number"),
            ("0.0000000000000000000000000001", "more than 27 decimals"),
        ];
        for (text, reason) in cases {
            let problem = multiply(text).expect_err(text);
            assert!(problem.contains(reason), "{text}: {problem}");
            assert!(
                problem
                    .ends_with("allowed: one number above 0 and up to 10000, with a decimal point, such as 2 or 0.25")
            );
        }
    }

    #[test]
    fn loss_scales() {
        for (text, value) in [("0.5", 0.5), ("+2", 2.0), ("-1", -1.0), ("0", 0.0), ("-.25", -0.25), ("1e-3", 0.001)] {
            assert_eq!(loss_scale(text), Ok(value));
        }
        assert_eq!(loss_scale("-0").map(f64::to_bits), Ok(0));
        for text in ["", "nan", "inf", "-inf", "infinity", "0,5", "half", "1 2", "1e39", "--1", "-+1"] {
            let problem = loss_scale(text).expect_err(text);
            assert!(problem.ends_with("allowed: one number with a decimal point, such as 0.5"), "{problem}");
        }
    }

    #[test]
    fn chances() {
        for (text, value) in [("0", 0.0), ("1", 1.0), ("+0.1234", 0.1234), ("1e-2", 0.01), ("1.000", 1.0)] {
            assert_eq!(chance(text), Ok(value));
        }
        let cases = [("1.01", "over 1"), ("-0.1", "below 0"), ("", "empty"), ("0,5", "write 0.5"), ("50%", "not a")];
        for (text, reason) in cases.into_iter().chain([("nan", "not a number"), ("0.5\n0.5", "more than one line")]) {
            let problem = chance(text).expect_err(text);
            assert!(problem.starts_with(reason) || problem.contains(reason), "{problem}");
            assert!(problem.ends_with("allowed: one number from 0 to 1, with a decimal point, such as 0.1"));
        }
    }

    #[test]
    fn other_values() {
        assert_eq!((max_caption_length("300"), tag_weight("1.5"), tag_weight("0")), (Ok(300), Ok(1.5), Ok(0.0)));
        for text in ["0", "-1", "1.5", "long", "", "99999999999", "+3"] {
            assert!(max_caption_length(text).expect_err(text).contains("allowed: one whole number"));
        }
        assert!(tag_weight("-1").unwrap_err().starts_with("below 0; allowed: "));
        assert_eq!(batch_id("faces, close").as_deref(), Ok("faces, close"));
        for text in ["", "a\nb", &"x".repeat(256)] {
            assert!(batch_id(text).expect_err(text).ends_with("allowed: one line of text, such as portraits"));
        }
        assert_eq!((switch("Yes"), switch("TRUE"), switch("off")), (Ok(true), Ok(true), Ok(false)));
        assert!(switch("maybe").is_err() && switch("1").is_err());
    }
}
