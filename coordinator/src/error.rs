//! Why a run could not start or had to end.

use std::io;
use std::path::PathBuf;

use ballast_common::dataset::DataRoots;

use crate::ledger::LedgerError;

/// Why a run could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The config lacks what training cannot do without.
    #[error(transparent)]
    Config(#[from] ballast_common::config::ConfigError),
    /// The multipliers and epochs of the config leave nothing to do.
    #[error("the schedule has no steps: no folder comes up in {epochs} epoch(s)")]
    NoSteps {
        /// Epochs of the config.
        epochs: u64,
    },
    /// There is no model where the config says.
    #[error("no model in {path}: {missing} is missing")]
    NoModel {
        /// The folder of the config.
        path: PathBuf,
        /// The file that makes a folder a model.
        missing: &'static str,
    },
    /// The run folder belongs to another run.
    #[error("{path} holds a run already")]
    RunExists {
        /// The run folder.
        path: PathBuf,
    },
    /// Another coordinator has the run in hand.
    #[error("the run folder {path} is in use by another coordinator: {holder}")]
    InUse {
        /// The run folder.
        path: PathBuf,
        /// In its own words.
        holder: String,
    },
    /// There is nothing to resume.
    #[error("{path} holds no run: {missing} is missing")]
    NoRun {
        /// The run folder.
        path: PathBuf,
        /// The file that makes a folder a run.
        missing: &'static str,
    },
    /// The data has changed since the run began.
    #[error("the data in {roots} is not the data the run began with (fingerprint {found}, the run's is {expected})")]
    DataChanged {
        /// The data roots.
        roots: DataRoots,
        /// Fingerprint of the data as it is.
        found: String,
        /// Fingerprint in the ledger.
        expected: String,
    },
    /// The config differs from the run's in what is learned.
    #[error("the config differs from the run's in {}", keys.join(", "))]
    ConfigChanged {
        /// The keys, each with the two values.
        keys: Vec<String>,
    },
    /// A file of the run folder could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A checkpoint that the ledger names cannot be used.
    #[error("no checkpoint of {path} can be used: {reason}")]
    Checkpoint {
        /// The run folder.
        path: PathBuf,
        /// What is wrong with each.
        reason: String,
    },
    /// The run ended without its goal.
    #[error("{reason}")]
    Failed {
        /// What happened.
        reason: String,
        /// What can be done about it, where known.
        hint: Option<String>,
    },
    /// The gRPC server ended.
    #[error("the coordinator's server failed")]
    Server(#[source] tonic::transport::Error),
}

impl RunError {
    /// Returns what the user can do about it, where known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::NoSteps { .. } => Some("raise multiply.txt, or run.epochs".to_owned()),
            Self::NoModel { .. } => Some(
                "model.path names a diffusers folder or a single file; `ballast init-model` makes one with random weights"
                    .to_owned(),
            ),
            Self::RunExists { .. } => Some("continue it with --resume, or choose another --name".to_owned()),
            Self::InUse { .. } => Some(
                "a run has one coordinator; end that one first, or let it go on (a process that is stopped holds the run too)"
                    .to_owned(),
            ),
            Self::Ledger(LedgerError::Superseded { .. }) => {
                Some("this process has done no harm: what it computed since then does not count".to_owned())
            }
            Self::NoRun { .. } => Some("a run's folder is one that a run without --resume has made".to_owned()),
            Self::DataChanged { .. } => Some("start a new run, or restore the data".to_owned()),
            Self::ConfigChanged { .. } => Some("start a new run with another --name, or restore these keys".to_owned()),
            Self::File { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Some("free some space; the run can be resumed".to_owned()),
                io::ErrorKind::PermissionDenied => Some("check the permissions of the folder".to_owned()),
                _ => None,
            },
            Self::Ledger(LedgerError::Sqlite { source, .. })
                if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) =>
            {
                Some("free some space; the run can be resumed".to_owned())
            }
            Self::Failed { hint, .. } => hint.clone(),
            Self::Ledger(_) | Self::Checkpoint { .. } | Self::Server(_) => None,
        }
    }

    /// Returns the exit code of a command that ends with this error: 2 for what the user asked wrongly, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::NoSteps { .. }
            | Self::NoModel { .. }
            | Self::RunExists { .. }
            | Self::NoRun { .. }
            | Self::DataChanged { .. }
            | Self::ConfigChanged { .. } => 2,
            Self::File { .. }
            | Self::InUse { .. }
            | Self::Ledger(_)
            | Self::Checkpoint { .. }
            | Self::Failed { .. }
            | Self::Server(_) => 1,
        }
    }
}
