//! How a command fails: an error chain for stderr, a hint where the remedy is known, and an exit code.

use std::fmt::Display;
use std::process::ExitCode;

/// Something went wrong while the command ran.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Wrong usage, config or data: nothing was started.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Interrupted, after a clean checkpoint.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// A command that did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    hint: Option<String>,
    exit_code: u8,
}

impl Failure {
    /// Makes a failure whose cause lies with the arguments, the config or the data.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, exit_code: EXIT_USAGE }
    }

    /// Makes a failure of the work itself.
    pub(crate) fn failed(message: impl Display) -> Self {
        Self { error: anyhow::anyhow!("{message}"), hint: None, exit_code: EXIT_FAILED }
    }

    /// Adds what the person can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Blames the arguments, the config or the data.
    pub(crate) fn blaming_usage(mut self) -> Self {
        self.exit_code = EXIT_USAGE;
        self
    }

    /// Prints the failure to stderr and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        crate::output::say(self.text().trim_end());
        ExitCode::from(self.exit_code)
    }

    fn text(&self) -> String {
        let mut text = format!("error: {}\n", self.error);
        for cause in self.error.chain().skip(1) {
            text += &format!("  because: {cause}\n");
        }
        if let Some(hint) = &self.hint {
            text += &format!("hint: {hint}\n");
        }
        text
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { error, hint: None, exit_code: EXIT_FAILED }
    }
}

impl From<ballast_common::UsageError> for Failure {
    fn from(error: ballast_common::UsageError) -> Self {
        Self { hint: error.hint(), exit_code: error.exit_code(), error: error.into() }
    }
}

impl From<ballast_common::config::ConfigError> for Failure {
    fn from(error: ballast_common::config::ConfigError) -> Self {
        ballast_common::UsageError::from(error).into()
    }
}

impl From<ballast_coordinator::RunError> for Failure {
    fn from(error: ballast_coordinator::RunError) -> Self {
        Self { hint: error.hint(), exit_code: error.exit_code(), error: error.into() }
    }
}

impl From<ballast_worker::WorkerError> for Failure {
    fn from(error: ballast_worker::WorkerError) -> Self {
        let is_usage = matches!(error, ballast_worker::WorkerError::Device(_));
        let exit_code = if is_usage { EXIT_USAGE } else { EXIT_FAILED };
        Self { hint: error.hint(), exit_code, error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_report_shows_the_chain_and_the_hint() {
        let cause = anyhow::anyhow!("no space left on device");
        let failure = Failure::from(Err::<(), _>(cause).context("cannot write runs/a/final").unwrap_err());
        assert_eq!(
            failure.hint("free some space").text(),
            "error: cannot write runs/a/final\n  because: no space left on device\nhint: free some space\n"
        );
    }
}
