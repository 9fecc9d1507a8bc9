//! Why a worker ends without having been told to.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ballast_common::{checkpoint, config};
use thiserror::Error;

use crate::collective::CollectiveError;
use crate::connect::StreamError;
use crate::devices::DeviceError;
use crate::save::SaveError;

/// Why a worker ends without having been told to.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The collective's address cannot be used.
    #[error("cannot listen for other workers at {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// The coordinator's address is not one.
    #[error("`{url}` is no address of a coordinator")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The coordinator did not answer in time.
    #[error("cannot reach the coordinator at {url}")]
    Connect {
        /// Its address.
        url: String,
        /// What the last attempt said.
        #[source]
        source: StreamError,
    },
    /// The coordinator went away and did not come back.
    #[error("no coordinator at {url} for {waited:?}{}", saved_words(saved))]
    Abandoned {
        /// Its address.
        url: String,
        /// How long this worker waited.
        waited: Duration,
        /// Where the state was saved; none when there was none.
        saved: Option<PathBuf>,
        /// What the last attempt said.
        #[source]
        source: StreamError,
    },
    /// The connection broke before the run was over.
    #[error("lost the coordinator at {url}")]
    Lost {
        /// Its address.
        url: String,
        /// What the connection said; none when it was closed without a word.
        #[source]
        source: Option<StreamError>,
    },
    /// The coordinator does not want this worker, or no longer.
    #[error("the coordinator refused this worker: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// The coordinator said something that does not belong here.
    #[error("the coordinator broke the protocol: {problem}")]
    Protocol {
        /// What it did.
        problem: String,
    },
    /// The coordinator's config cannot be used.
    #[error("cannot use the coordinator's config")]
    Config(#[from] config::ConfigError),
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The config trains neither the UNet nor the text encoder.
    #[error("there is nothing to train: model.train_unet and model.train_text_encoder are both false")]
    NothingToTrain,
    /// The config's clip skip is too much for the model.
    #[error("model.clip_skip does not fit the model")]
    ClipSkip(#[from] ballast_model::ClipSkipError),
    /// The model cannot be read.
    #[error("cannot load the model from {path}")]
    Model {
        /// The model folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<ballast_model::CheckpointError>,
    },
    /// A checkpoint's files are not what was written.
    #[error("cannot resume from the checkpoint {path}")]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: checkpoint::CheckpointError,
    },
    /// A checkpoint's files are as they were written and do not fit this run.
    #[error("the checkpoint {path} does not fit: {problem}")]
    CheckpointContent {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The run's model is another one.
    #[error("this worker's model trains {found} parameters, the run's {expected}: it is another model")]
    OtherModel {
        /// Parameters of the model here.
        found: u64,
        /// Parameters of the peers' model.
        expected: u64,
    },
    /// The model produced infinity or no number.
    #[error("the {what} of step {step}, slot {slot} is not finite; its pictures: {}", paths.join(", "))]
    NonFinite {
        /// Loss or gradient.
        what: &'static str,
        /// The step.
        step: u64,
        /// The slot.
        slot: u32,
        /// Pictures of the micro-batch.
        paths: Vec<String>,
    },
    /// The slots' gradients are finite and their sum is not.
    #[error("the gradient of step {step} is beyond the range of 32-bit floats")]
    Overflow {
        /// The step.
        step: u64,
    },
    /// The committed gradient is not the one that this worker holds.
    #[error("step {step} was committed with gradient {committed}, this worker holds {held}")]
    CommitMismatch {
        /// The step.
        step: u64,
        /// Hash in the commit.
        committed: String,
        /// Hash of what was reduced here.
        held: String,
    },
    /// The data root cannot be read here.
    #[error("cannot look through the data")]
    Data(#[from] ballast_common::dataset::DatasetError),
    /// A checkpoint or the final model cannot be written.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// There is not enough memory on the device.
    #[error("`{device}` has no room for {}", room_words(*bytes))]
    OutOfMemory {
        /// As it was asked for.
        device: String,
        /// Bytes of the allocation that failed, where known.
        bytes: Option<u64>,
    },
    /// What moves the gradients can only be ended with this process.
    #[error("this worker has to end")]
    Collective(#[source] CollectiveError),
    /// The thread that owns the device died: a bug.
    #[error("the device thread panicked: {message}")]
    Panicked {
        /// The panic's words.
        message: String,
    },
}

impl WorkerError {
    /// Returns what the user can do about it, where known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connect { .. } => "check that the coordinator runs and that this host may connect to it",
            Self::Lost { .. } => "look at the coordinator's own messages",
            Self::Abandoned { .. } => {
                "start the coordinator again with --resume: the run goes on from the newest checkpoint, and workers may join"
            }
            Self::Listen { .. } => "choose a free port, and an address of this machine",
            Self::Url { .. } => "write http://HOST:PORT, as the coordinator prints it",
            Self::Device(error) => &error.hint,
            Self::NothingToTrain => "set one of them to true",
            Self::ClipSkip(_) => "set model.clip_skip to 1 for the last layer",
            Self::Model { .. } | Self::OtherModel { .. } => {
                "the same model has to lie at the same path on every worker's host"
            }
            Self::Checkpoint { .. } => "delete the damaged checkpoint; --resume then takes the one before it",
            Self::NonFinite { .. } | Self::Overflow { .. } => {
                "lower optimizer.lr, or look at these pictures and at loss_scale.txt"
            }
            Self::OutOfMemory { .. } => {
                "lower step.micro_batch_size and raise step.slots by as much, set model.gradient_checkpointing to true, \
                 leave precision.compute at bf16, or lower data.resolution; `ballast plan --memory` says what each of them needs"
            }
            Self::Collective(_) => "the others go on; start this worker again, and it joins anew",
            Self::Data(_) => "the same data has to lie at the same path on every worker's host",
            Self::Config(error) => return error.hint(),
            Self::Save(error) => return error.hint(),
            Self::Refused { .. }
            | Self::Protocol { .. }
            | Self::CheckpointContent { .. }
            | Self::CommitMismatch { .. }
            | Self::Panicked { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

fn room_words(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("{:.2} GiB more", bytes as f64 / f64::from(1 << 30)),
        None => "what a step needs".to_owned(),
    }
}

fn saved_words(saved: &Option<PathBuf>) -> String {
    saved.as_ref().map_or_else(String::new, |path| format!("; the state is saved in {}", path.display()))
}
