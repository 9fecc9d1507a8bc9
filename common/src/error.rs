//! Errors that are the user's to mend, and what the command line does with them.

use crate::config::ConfigError;
use crate::dataset::DatasetError;

/// Something in the config, the arguments or the data root that has to change before anything can start.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// The config, the environment or `--set`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data root.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

impl UsageError {
    /// Returns the exit code of a command that ends with this error: wrong usage or config.
    pub fn exit_code(&self) -> u8 {
        2
    }

    /// Returns the text of the `hint:` line, where the remedy is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            UsageError::Config(error) => error.hint(),
            UsageError::Dataset(error) => error.hint(),
        }
    }
}

/// Writes an error with all its causes in one line: `cannot read a.txt: permission denied`.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
