//! What every part of ballast shares: the config, the dataset, the epoch's schedule and keyed randomness.
//!
//! Plain Rust: no tensors, no network. [`dataset::Dataset`] is what lies on the disk, [`config::RunConfig`] what the user
//! asked for, [`schedule::EpochSchedule`] what follows from the two; nothing else enters it.

pub mod checkpoint;
pub mod config;
pub mod dataset;
mod error;
pub mod rng;
pub mod schedule;
pub mod telemetry;
mod words;

pub use error::{UsageError, error_chain};
pub use words::grouped;
