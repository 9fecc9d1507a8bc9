//! The checks of a value that its type alone does not make.

use std::fmt::Display;
use std::ops::RangeBounds;

use super::error::Problem;
use super::raw::RawConfig;

/// Collects what is wrong, and knows where each value was written.
pub(super) struct Check {
    raw: RawConfig,
    section: &'static str,
}

impl Check {
    pub(super) fn new(raw: RawConfig) -> Self {
        Self { raw, section: "" }
    }

    pub(super) fn section(&mut self, name: &'static str, check: impl FnOnce(&mut Self)) {
        self.section = name;
        check(self);
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.raw.into_problems()
    }

    /// Notes a problem unless the value is good. `allowed` completes "allowed: …".
    pub(super) fn that(&mut self, key: &str, found: impl Display, is_good: bool, allowed: &str) {
        if !is_good {
            let key = format!("{}.{key}", self.section);
            self.raw.note(&key, format!("is {found}; allowed: {allowed}"), None);
        }
    }

    /// Checks that a number lies in a range. NaN lies in none.
    pub(super) fn within<T>(&mut self, key: &str, found: T, range: impl RangeBounds<T>, allowed: &str)
    where
        T: Display + PartialOrd,
    {
        let is_good = range.contains(&found);
        self.that(key, found, is_good, allowed);
    }

    /// Checks that a number is a chance.
    pub(super) fn chance(&mut self, key: &str, found: f64) {
        self.within(key, found, 0.0..=1.0, "a number from 0 to 1");
    }

    /// Checks a key that may be none.
    pub(super) fn optional<T: Copy>(&mut self, found: Option<T>, check: impl FnOnce(&mut Self, T)) {
        if let Some(found) = found {
            check(self, found);
        }
    }
}
