//! NCCL: gradients added up from GPU to GPU.
//!
//! [`Group`] is the state machine: it forms a communicator without blocking, watches every wait against a deadline and the
//! caller's word to stop, and aborts. It knows the library only as [`Raw`], a handful of calls: [`Nccl`]
//! is the real one, [`fake`] a simulated one with as many ranks as wanted and faults on demand. [`NcclCollective`] makes of it
//! what all collectives are, also where sums have a fixed order.

mod collective;
mod error;
pub mod fake;
mod group;
mod in_place;
mod pairs;
mod raw;
mod real;

pub use collective::{NcclCollective, Order};
pub use error::NcclError;
pub use group::{Group, GroupConfig, Limits, Transfer};
pub use in_place::{ReduceInPlace, Span};
pub use raw::{Progress, Raw, RawError, UNIQUE_ID_BYTES, UniqueId};
pub use real::{MIN_VERSION, Nccl, check_library};
