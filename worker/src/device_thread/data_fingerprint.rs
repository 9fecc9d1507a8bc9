//! The data as this machine sees it, looked through while the model is loaded, for the coordinator to compare.

use std::thread::JoinHandle;

use ballast_common::config::DataConfig;
use ballast_common::dataset::{Dataset, DatasetError};

use crate::error::WorkerError;

/// A fingerprint that is being computed, if it is wanted.
pub(super) struct DataFingerprint(Option<JoinHandle<Result<String, DatasetError>>>);

impl DataFingerprint {
    /// Starts to look through the data.
    pub(super) fn start(config: Option<DataConfig>) -> Self {
        let scan = |config: DataConfig| {
            let thread = std::thread::Builder::new().name("data-scan".to_owned());
            let work = move || Dataset::scan(&config).map(|dataset| dataset.fingerprint);
            thread.spawn(work).expect("the system has a thread to spare")
        };
        Self(config.map(scan))
    }

    /// Waits for the fingerprint; empty when none was wanted.
    pub(super) fn finish(&mut self) -> Result<String, WorkerError> {
        match self.0.take().map(JoinHandle::join) {
            None => Ok(String::new()),
            Some(Ok(fingerprint)) => Ok(fingerprint?),
            Some(Err(_)) => Err(WorkerError::Panicked { message: "looking through the data panicked".to_owned() }),
        }
    }
}
