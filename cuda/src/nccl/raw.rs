//! The calls that the engine needs of NCCL and of the driver's stream and memory.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use thiserror::Error;

use super::Span;

/// Length of NCCL's unique id.
pub const UNIQUE_ID_BYTES: usize = 128;

/// What the members of one communicator share. It holds the address that its maker listens on: a secret of the run.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId(pub [u8; UNIQUE_ID_BYTES]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

/// A call that failed, as the library puts it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{call} failed: {text} (code {code})")]
pub struct RawError {
    /// The function.
    pub call: &'static str,
    /// Its result.
    pub code: i32,
    /// What the library says about it.
    pub text: String,
}

/// How far something has come that was started without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is going on.
    Running,
    /// It has ended well.
    Done,
}

/// One rank's NCCL, with a stream of its own and memory of its device. No call waits for a peer.
pub trait Raw {
    /// A communicator.
    type Comm;
    /// Values of `f32` in the device's memory, freed when dropped.
    type Buffer;

    /// Makes an id for a new communicator; rank 0 does, and the coordinator hands it to the others.
    ///
    /// # Errors
    /// When NCCL finds no network to listen on.
    fn make_id(&self) -> Result<UniqueId, RawError>;

    /// Starts to form a communicator.
    ///
    /// # Errors
    /// When the library refuses at once.
    fn start_comm(&self, id: &UniqueId, world_size: u32, rank: u32) -> Result<Self::Comm, RawError>;

    /// How far the communicator's last call has come; also where a failure of a peer shows.
    ///
    /// # Errors
    /// When it has failed.
    fn comm_progress(&self, comm: &Self::Comm) -> Result<Progress, RawError>;

    /// How far the stream's work has come.
    ///
    /// # Errors
    /// When it has failed.
    fn stream_progress(&self) -> Result<Progress, RawError>;

    /// Begins a group: the sends and receives up to its end act together.
    ///
    /// # Errors
    /// When the library refuses.
    fn start_group(&self) -> Result<(), RawError>;

    /// Ends a group, and starts it.
    ///
    /// # Errors
    /// When the library refuses.
    fn end_group(&self) -> Result<(), RawError>;

    /// Sends a part of a buffer.
    ///
    /// # Errors
    /// When the library refuses.
    fn send(&self, comm: &Self::Comm, from: &Self::Buffer, range: Range<usize>, peer: u32) -> Result<(), RawError>;

    /// Receives into a part of a buffer.
    ///
    /// # Errors
    /// When the library refuses.
    fn receive(&self, comm: &Self::Comm, to: &Self::Buffer, range: Range<usize>, peer: u32) -> Result<(), RawError>;

    /// Adds up a part of a buffer over all ranks, in place, in an order that the library chooses.
    ///
    /// # Errors
    /// When the library refuses.
    fn all_reduce(&self, comm: &Self::Comm, buffer: &Self::Buffer, range: Range<usize>) -> Result<(), RawError>;

    /// Ends a communicator, whatever it is doing. False when that did not end within the limit: the communicator is then
    /// lost, and only the end of the process frees what it holds.
    fn abort(&self, comm: Self::Comm, limit: Duration) -> bool;

    /// Allocates.
    ///
    /// # Errors
    /// When the device has no memory left.
    fn allocate(&self, elements: usize) -> Result<Self::Buffer, RawError>;

    /// Number of elements.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// Copies from the host into a buffer from element `start` on, and waits for it.
    ///
    /// # Errors
    /// When the copy fails.
    fn upload(&self, from: &[f32], to: &Self::Buffer, start: usize) -> Result<(), RawError>;

    /// Copies to the host, and waits for it and for all that was started before.
    ///
    /// # Errors
    /// When the copy, or what was started before, fails.
    fn download(&self, from: &Self::Buffer, start: usize, to: &mut [f32]) -> Result<(), RawError>;

    /// Starts `left[i] += right[i]`, each of `count` elements from its own start on; rounded once, to nearest.
    ///
    /// # Errors
    /// When the driver refuses.
    fn add(&self, left: (&Self::Buffer, usize), right: (&Self::Buffer, usize), count: usize) -> Result<(), RawError>;

    /// Starts `to[i] = from[i]`, each of `count` elements from its own start on. The places do not overlap.
    ///
    /// # Errors
    /// When the driver refuses.
    fn copy(&self, from: (&Self::Buffer, usize), to: (&Self::Buffer, usize), count: usize) -> Result<(), RawError>;

    /// Names memory that somebody else has allocated. None where memory has no addresses: a simulated device's.
    fn lent(&self, _: &Span) -> Option<Self::Buffer> {
        None
    }

    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// Lets a moment pass between two looks.
    fn pause(&self, moment: Duration);
}
