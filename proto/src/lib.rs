//! The gRPC protocol between coordinator and workers: generated messages and trace context.
//!
//! Carries bytes and shapes, never tensors, so that both sides can build without the other.

mod trace_context;

pub use trace_context::{current_traceparent, set_parent};

/// Version of the control protocol. A worker of another version is refused by name, not by accident.
pub const PROTOCOL_VERSION: u32 = 3;

/// Largest control message either side accepts. A plan of 4,096 occurrences with long captions stays below 2 MiB.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The generated messages and services of `ballast.v1`.
#[expect(missing_docs, clippy::all, reason = "generated from the .proto files, which carry the docs")]
pub mod v1 {
    tonic::include_proto!("ballast.v1");
}
