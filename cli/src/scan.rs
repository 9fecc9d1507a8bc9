//! Reads the data root for a command.

use ballast_common::UsageError;
use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;

use crate::failure::Failure;

/// Reads all that lies under the config's data root.
pub(crate) fn scan(config: &RunConfig) -> Result<Dataset, Failure> {
    Ok(Dataset::scan(&config.data).map_err(UsageError::from)?)
}
