//! A worker: joins a coordinator, loads pictures, trains the model on its device, and adds up gradients with its peers.
//!
//! Start at [`run`]. `session.rs` talks to the coordinator, `device_thread.rs` owns the model and does what it is told in
//! order, `trainer.rs` is the arithmetic of a step, `save/` what is left on disk. `devices.rs` finds what to compute on,
//! `forming.rs` what gradients travel over.

mod connect;
mod device_thread;
mod device_watch;
mod devices;
mod draws;
mod engine;
mod error;
mod forming;
mod hash;
mod images;
mod kernel_cache;
mod latents;
mod nccl;
mod optimizer;
mod out_of_memory;
mod plan;
mod precision;
mod prefetch;
mod resume;
mod samples;
mod save;
mod session;
mod trainer;

use std::net::SocketAddr;

use ballast_collective as collective;

pub use connect::StreamError;
pub use devices::{DeviceError, Gpus, HAS_CUDA, cuda_device_count};
pub use error::WorkerError;
pub use nccl::{NcclAbility, NcclLibrary, NcclMember, NcclOnDevice};
pub use save::SaveError;
pub use session::run;

/// How a worker is started. Everything about the training itself comes from the coordinator.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// Where the coordinator listens: `http://127.0.0.1:4600`.
    pub coordinator_url: String,
    /// What to compute on: `cpu` or `cuda:N`.
    pub device: String,
    /// Where the other workers reach this one's collective; port 0 takes any free one.
    pub collective_listen: SocketAddr,
    /// Threads for pictures and, on the CPU, for the model. None: one per core.
    pub threads: Option<usize>,
    /// What can be done with NCCL, in place of what the device's own can: a simulated one, which needs no GPU. None: the
    /// device's own.
    pub nccl: Option<NcclAbility>,
}

/// How a worker ended, when nothing went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerOutcome {
    /// The coordinator has said that the run is over.
    Finished {
        /// In its words.
        reason: String,
    },
    /// It was asked to stop.
    Stopped,
}
