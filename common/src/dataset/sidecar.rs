//! What the files beside the images say: `multiply.txt` and `loss_scale.txt`, each for the images of its own folder only.

use std::path::Path;

use super::decimal::{Decimal, DecimalError};
use super::names::{LOSS_SCALE, MULTIPLY, NOT_YET};
use super::text::{quoted, read_text};
use super::walk::WalkedFolder;
use super::{AppliedFile, Dataset};

/// The most that an image can be used per epoch.
const MAX_MULTIPLY: u64 = 10_000;

const MULTIPLY_ALLOWED: &str = "one number above 0 and up to 10000, with a decimal point, such as 2 or 0.25";
const LOSS_SCALE_ALLOWED: &str = "one number with a decimal point, such as 0.5";

/// A folder's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settings {
    pub(super) multiply: Decimal,
    pub(super) loss_scale: f64,
}

/// What reading the folders' files brought to light.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) applied: Vec<AppliedFile>,
    pub(super) warnings: Vec<String>,
    pub(super) problems: Vec<String>,
}

/// Reads the settings of one folder. What is wrong is noted, so that all folders are read before anything is reported.
pub(super) fn read_settings(folder: &WalkedFolder, findings: &mut Findings) -> Settings {
    let multiply = read_value(folder, MULTIPLY, parse_multiply, findings).unwrap_or(Decimal::ONE);
    let loss_scale = read_value(folder, LOSS_SCALE, parse_loss_scale, findings).unwrap_or(1.0);
    if loss_scale <= 0.0 {
        let effect = match loss_scale {
            0.0 => "is 0: its images cost a step and teach nothing",
            _ => "IS NEGATIVE: training moves AWAY from its images",
        };
        findings.warnings.push(format!("{} {effect}", folder.file(LOSS_SCALE)));
    }
    for name in NOT_YET.iter().filter(|name| folder.has(name)) {
        findings.warnings.push(format!("{} is not applied: this version does not know {name} yet", folder.file(name)));
    }
    Settings { multiply, loss_scale }
}

fn read_value<T: ToString>(
    folder: &WalkedFolder,
    name: &str,
    parse: fn(&str) -> Result<T, String>,
    findings: &mut Findings,
) -> Option<T> {
    if !folder.has(name) {
        return None;
    }
    let path = folder.file(name);
    match read_number(&folder.directory.join(name), parse) {
        Ok(value) => {
            if folder.images.is_empty() {
                let reason = "there are no images beside it, and a folder's file does not reach the folders below";
                findings.warnings.push(format!("{path} has no effect: {reason}"));
            } else {
                findings.applied.push(AppliedFile { path, value: value.to_string() });
            }
            Some(value)
        }
        Err(problem) => {
            findings.problems.push(format!("{path}: {problem}"));
            None
        }
    }
}

fn read_number<T>(path: &Path, parse: fn(&str) -> Result<T, String>) -> Result<T, String> {
    let text = read_text(path).map_err(|error| format!("cannot be read: {error}"))?;
    let shown = quoted(&text.text);
    parse(text.text.trim()).map_err(|problem| format!("contains {shown}: {problem}"))
}

fn parse_multiply(text: &str) -> Result<Decimal, String> {
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

fn parse_loss_scale(text: &str) -> Result<f64, String> {
    let is_number =
        matches!(Decimal::parse(text.strip_prefix('-').unwrap_or(text)), Err(DecimalError::TooManyDecimals) | Ok(_));
    let value = text.parse::<f64>().ok().filter(|value| is_number && (*value as f32).is_finite());
    value.ok_or_else(|| format!("{}; allowed: {LOSS_SCALE_ALLOWED}", why_no_number(text)))
}

fn why_no_number(text: &str) -> String {
    let with_point = text.replace(',', ".");
    let is_number = |text: &str| Decimal::parse(text.trim_start_matches('-')).is_ok();
    if text.is_empty() {
        "the file is empty".to_owned()
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

/// Logs every applied file once, with folder and value.
pub(super) fn log_applied(dataset: &Dataset) {
    for file in &dataset.applied_files {
        let (folder, name) = file.path.rsplit_once('/').unwrap_or((".", &file.path));
        match name {
            MULTIPLY => tracing::info!(folder, value = file.value, "multiply.txt applied"),
            LOSS_SCALE => tracing::info!(folder, value = file.value, "loss_scale.txt applied"),
            _ => tracing::info!(folder, name, value = file.value, "file applied"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_multipliers() {
        for (text, value) in [("2", "2"), ("+2.50", "2.5"), ("0.05", "0.05"), ("10000", "10000"), ("1e-6", "0.000001")]
        {
            assert_eq!(parse_multiply(text).unwrap().to_string(), value);
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
            let problem = parse_multiply(text).expect_err(text);
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
            assert_eq!(parse_loss_scale(text), Ok(value));
        }
        for text in ["", "nan", "inf", "-inf", "infinity", "0,5", "half", "1 2", "1e39", "--1", "-+1"] {
            let problem = parse_loss_scale(text).expect_err(text);
            assert!(problem.ends_with("allowed: one number with a decimal point, such as 0.5"), "{problem}");
        }
    }
}
