//! What a run tells whoever watches it: the terminal today, a page tomorrow.

use std::path::PathBuf;
use std::time::Duration;

/// Something worth showing.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// A worker has connected.
    WorkerJoined {
        /// Number of the worker within the run.
        worker_id: u64,
        /// Host it runs on.
        host: String,
        /// Device it trains on.
        device: String,
        /// Its process id on that host.
        process_id: u32,
    },
    /// A worker is gone.
    WorkerLost {
        /// Number of the worker within the run.
        worker_id: u64,
        /// Its rank, when it had one.
        rank: Option<u32>,
        /// Why.
        reason: String,
    },
    /// The run waits for somebody.
    Waiting {
        /// For whom, for how long, and what then.
        message: String,
    },
    /// Something that a person should know, and that changes nothing.
    Notice {
        /// What it is.
        message: String,
    },
    /// Steps were taken back, with a record in the ledger.
    RolledBack {
        /// Steps that were done.
        from_step: u64,
        /// Steps that are done now.
        to_step: u64,
        /// Why.
        reason: String,
    },
    /// A set of workers begins to compute; the first time, or after a loss.
    Started {
        /// Number of the worker set.
        generation: u64,
        /// How many workers share the steps.
        world_size: u32,
        /// Steps done so far.
        next_step: u64,
        /// Steps at which the run stops.
        stop_step: u64,
    },
    /// A step is committed.
    Stepped {
        /// The step, 0-based over the run.
        step: u64,
        /// Steps at which the run stops.
        stop_step: u64,
        /// Its epoch, 0-based.
        epoch: u64,
        /// Epochs of the run.
        epochs: u64,
        /// The step within its epoch, 0-based.
        step_in_epoch: u64,
        /// Steps of this epoch.
        steps_in_epoch: u64,
        /// Mean loss of the step's pictures, unweighted.
        loss: f64,
        /// Pictures of the step.
        images: u64,
        /// Learning rate of the UNet.
        unet_lr: f64,
        /// Global norm of the gradient before clipping.
        gradient_norm: f64,
        /// Time since the step before.
        duration: Duration,
    },
    /// A picture could not be used; named once.
    Skipped {
        /// Path relative to the data root.
        path: String,
        /// Why.
        reason: String,
    },
    /// A checkpoint is complete on disk.
    CheckpointSaved {
        /// Steps done.
        next_step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// Samples were drawn.
    SamplesDrawn {
        /// Steps done.
        next_step: u64,
        /// The pictures.
        paths: Vec<PathBuf>,
        /// What went wrong with those that are missing.
        error: Option<String>,
    },
    /// The run is over, well or not: workers that leave now are not missed.
    Over,
    /// The final model is complete on disk.
    FinalSaved {
        /// Diffusers layout.
        folder: PathBuf,
        /// Single file.
        file: PathBuf,
    },
}

/// How a run ended well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done and the final model is saved.
    Finished {
        /// Steps done.
        next_step: u64,
    },
    /// Somebody asked to stop; the state is saved.
    Interrupted {
        /// Steps done.
        next_step: u64,
        /// Where it can be resumed; none when nothing was computed.
        checkpoint: Option<PathBuf>,
    },
}
