//! The worst error of each group, and whether it is allowed.

use crate::fixtures::support::numbers::relative_to_peak;
use std::io::Write;

/// Scheduler tables, as f32 holds them.
pub(crate) const TABLE: f64 = 1e-6;
/// Forward passes: fifty times the noise of f32 in these models.
pub(crate) const FORWARD: f64 = 1e-4;
/// Gradients, parameter by parameter.
pub(crate) const GRADIENT: f64 = 1e-3;

/// What was compared.
#[derive(Default)]
pub(crate) struct Report {
    groups: Vec<Group>,
    exact: Vec<(String, bool)>,
    /// Names for which there is nothing to compare with.
    pub(crate) without_counterpart: Vec<String>,
}

struct Group {
    name: &'static str,
    allowed: f64,
    count: usize,
    worst: f64,
    at: String,
}

impl Report {
    /// Notes an error; `allowed` is that of the group.
    pub(crate) fn note(&mut self, group: &'static str, allowed: f64, at: &str, error: f64) {
        let place = self.groups.iter().position(|other| other.name == group).unwrap_or_else(|| {
            self.groups.push(Group { name: group, allowed, count: 0, worst: 0.0, at: at.to_owned() });
            self.groups.len() - 1
        });
        let group = &mut self.groups[place];
        group.count += 1;
        if error > group.worst || error.is_nan() {
            (group.worst, group.at) = (error, at.to_owned());
        }
    }

    /// Notes two single numbers.
    pub(crate) fn note_number(&mut self, group: &'static str, allowed: f64, at: &str, actual: f64, expected: f64) {
        self.note(group, allowed, at, relative_to_peak(&[actual], &[expected]));
    }

    /// Notes something that has to be equal to the last bit.
    pub(crate) fn note_equal(&mut self, what: &str, is_equal: bool) {
        self.exact.push((what.to_owned(), is_equal));
    }

    /// Writes one line per group.
    pub(crate) fn write(&self, case: &str, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "{case}")?;
        let equal = self.exact.iter().filter(|(_, is_equal)| *is_equal).count();
        writeln!(out, "  {:24} {equal} of {} equal", "token ids", self.exact.len())?;
        for Group { name, allowed, count, worst, at } in &self.groups {
            writeln!(out, "  {name:24} {worst:.1e} (allowed {allowed:.0e}), the worst of {count}: {at}")?;
        }
        let mut prefixes: Vec<String> = self.without_counterpart.iter().map(|name| prefix(name)).collect();
        prefixes.dedup();
        writeln!(out, "  without a counterpart here, not compared: {}", prefixes.join(", "))
    }

    /// What is not as it should be.
    pub(crate) fn failures(&self) -> Vec<String> {
        let exact = self.exact.iter().filter(|(_, is_equal)| !is_equal).map(|(what, _)| format!("{what} differ"));
        // Not `worst > allowed`: NaN is a failure too.
        let beyond = self.groups.iter().filter(|group| group.worst.is_nan() || group.worst > group.allowed);
        let beyond = beyond.map(|Group { name, allowed, worst, at, .. }| {
            format!("{name}: {at} is off by {worst:.1e} of the largest, {allowed:.0e} allowed")
        });
        exact.chain(beyond).collect()
    }
}

/// `train.ema_warm.unet.conv_in.weight` → `train.ema_warm.*`
fn prefix(name: &str) -> String {
    let parts: Vec<&str> = name.splitn(3, '.').collect();
    match parts.as_slice() {
        ["train" | "sched", group, _] => format!("{}.{group}.*", parts[0]),
        _ => name.to_owned(),
    }
}
