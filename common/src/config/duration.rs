//! Lengths of time as people write them: `"250ms"`, `"3s"`, `"2m"`, `"1h"`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de::Error};

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
const ALLOWED: &str = "a whole number and its unit, as in \"250ms\", \"3s\", \"2m\" or \"1h\"";

pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    // Taken as any value, so that a bare `3` gets the same answer as `"3"`.
    let value = toml::Value::deserialize(deserializer)?;
    value.as_str().and_then(parse).ok_or_else(|| D::Error::custom(format!("expected {ALLOWED}")))
}

pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
    let number: u64 = number.parse().ok()?;
    Some(Duration::from_millis(number.checked_mul(*milliseconds)?))
}

/// Writes a duration in the largest unit that leaves no rest.
pub(super) fn format(duration: Duration) -> String {
    let total = duration.as_millis() as u64;
    let fitting = UNITS.iter().rev().find(|(_, milliseconds)| total > 0 && total.is_multiple_of(*milliseconds));
    let (unit, milliseconds) = fitting.unwrap_or(&UNITS[0]);
    format!("{}{unit}", total / milliseconds)
}
