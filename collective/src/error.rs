//! How a collective fails.

use std::io;
use std::time::Duration;

use thiserror::Error;

/// Why a reduction did not end with a sum.
#[derive(Debug, Error)]
pub enum CollectiveError {
    /// The generation has ended; nothing is wrong with this worker or its peers.
    #[error("the reduction was cancelled")]
    Cancelled,
    /// A connection to a peer could not be made.
    #[error("cannot connect to rank {rank} at {address}")]
    Connect {
        /// Rank of the peer.
        rank: u32,
        /// Where the peer said that it listens.
        address: String,
        /// What went wrong in the last attempt.
        #[source]
        source: LinkError,
    },
    /// A peer that was to connect to this worker did not.
    #[error("rank {rank} did not connect within {limit:?}")]
    Absent {
        /// Rank of the peer.
        rank: u32,
        /// How long this worker waited.
        limit: Duration,
    },
    /// A connection broke during a reduction.
    #[error("the link to rank {rank} broke while {doing}")]
    Link {
        /// Rank of the peer.
        rank: u32,
        /// What the link was used for.
        doing: &'static str,
        /// What broke it.
        #[source]
        source: LinkError,
    },
    /// A peer did not send the whole state.
    #[error("the connection to {address} broke while {doing}")]
    Source {
        /// Where the peer listens.
        address: String,
        /// What it was used for.
        doing: &'static str,
        /// What broke it.
        #[source]
        source: LinkError,
    },
    /// A library that moves the gradients (NCCL) failed.
    #[error("{library} failed while {doing}: {message} (code {code})")]
    Library {
        /// The library's name.
        library: &'static str,
        /// What it was asked to do.
        doing: &'static str,
        /// Its own number for what is wrong.
        code: i64,
        /// Its own words.
        message: String,
    },
    /// A library (NCCL) does not let go of a generation: only the end of the process frees what it holds of the device.
    #[error("{library} did not end a group within {limit:?}, and holds on to the device")]
    Wedged {
        /// The library's name.
        library: &'static str,
        /// How long this worker waited.
        limit: Duration,
    },
    /// An earlier reduction of the generation failed, so its links are gone.
    #[error("the collective of generation {generation} broke earlier")]
    Broken {
        /// The generation.
        generation: u64,
    },
}

impl CollectiveError {
    /// Returns the rank of the peer that the error is about, where it is about one.
    pub fn peer(&self) -> Option<u32> {
        match self {
            Self::Connect { rank, .. } | Self::Absent { rank, .. } | Self::Link { rank, .. } => Some(*rank),
            Self::Cancelled
            | Self::Source { .. }
            | Self::Library { .. }
            | Self::Wedged { .. }
            | Self::Broken { .. } => None,
        }
    }
}

/// What went wrong on one connection.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Nothing moved for too long.
    #[error("no progress for {limit:?}")]
    Silent {
        /// The time limit.
        limit: Duration,
    },
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// The operating system reports an error.
    #[error("input or output failed")]
    Io(#[source] io::Error),
    /// A frame came that does not belong here.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What came.
        got: String,
        /// What had to come.
        expected: String,
    },
    /// The payload was damaged on its way.
    #[error("a frame's checksum is wrong")]
    Checksum,
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Io(error),
        }
    }
}
