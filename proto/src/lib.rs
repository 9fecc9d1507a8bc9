//! The gRPC protocol between coordinator and workers: generated messages and trace context.
//!
//! Carries bytes and shapes, never tensors, so that both sides can build without the other.

use std::fmt;

mod trace_context;

pub use trace_context::{current_traceparent, set_parent};

/// Version of the control protocol. A worker of another version is refused by name, not by accident.
pub const PROTOCOL_VERSION: u32 = 4;

/// Largest control message either side accepts. A plan of 4,096 occurrences with long captions stays below 2 MiB.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The generated messages and services of `ballast.v1`.
#[expect(missing_docs, clippy::all, reason = "generated from the .proto files, which carry the docs")]
pub mod v1 {
    tonic::include_proto!("ballast.v1");
}

impl fmt::Debug for v1::NcclId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NcclId").field("generation", &self.generation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn the_id_of_a_communicator_is_not_printed_with_its_message() {
        let id = v1::NcclId { generation: 7, id: vec![171; 128] };
        let message = v1::SessionRequest { message: Some(v1::session_request::Message::NcclId(id)) };
        let text = format!("{message:?}");
        assert!(text.contains("generation: 7") && !text.contains("171"), "{text}");
    }
}
