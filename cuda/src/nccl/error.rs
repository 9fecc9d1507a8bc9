//! How the NCCL engine fails, and what helps.

use std::time::Duration;

use thiserror::Error;

use super::RawError;
use crate::LibraryError;

/// Why gradients could not be added up by NCCL.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NcclError {
    /// NCCL or the driver is not there, or lacks a function.
    #[error("NCCL cannot be used on this machine")]
    Library(#[from] LibraryError),
    /// NCCL is too old.
    #[error("{path} is NCCL {found}, and {needed} or newer is needed")]
    TooOld {
        /// The library.
        path: String,
        /// Its version.
        found: String,
        /// The oldest that has what is needed.
        needed: String,
    },
    /// A call failed, here or at a peer.
    #[error("NCCL failed while {doing}")]
    Failed {
        /// What it was used for.
        doing: &'static str,
        /// What the library says.
        #[source]
        source: RawError,
    },
    /// Nothing came of it in time.
    #[error("NCCL was not done within {limit:?} while {doing}")]
    TimedOut {
        /// What it was used for.
        doing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The caller wanted it to stop.
    #[error("NCCL was told to stop while {doing}")]
    Cancelled {
        /// What it was used for.
        doing: &'static str,
    },
    /// An earlier call failed or was cancelled; the communicator is gone.
    #[error("the communicator of generation {generation} has ended")]
    Ended {
        /// The generation.
        generation: u64,
    },
    /// A communicator could not be ended.
    #[error("NCCL did not end a communicator within {limit:?}")]
    Wedged {
        /// The limit.
        limit: Duration,
    },
}

impl NcclError {
    /// What helps, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Library(LibraryError::Missing { .. }) => Some(
                "install NCCL 2 (Debian and Ubuntu: libnccl2 from NVIDIA's repository; Python: pip install \
                 nvidia-nccl-cu12), and name its folder in BALLAST_LIBRARY_PATH if it is not found",
            ),
            Self::Library(LibraryError::NoSymbol { .. }) | Self::TooOld { .. } => Some("install a newer NCCL"),
            Self::Wedged { .. } => Some("end this worker: the others go on, and a new one may join"),
            Self::Failed { source, .. } => hint_of(&source.text),
            _ => None,
        }
    }
}

/// Texts of NCCL 2.18 to 2.30 that have a known remedy.
fn hint_of(text: &str) -> Option<&'static str> {
    const HINTS: [(&str, &str); 4] = [
        ("Duplicate GPU detected", ONE_GPU_EACH),
        ("Multiple Ranks are using the same GPU", ONE_GPU_EACH),
        ("socket", "check that the workers reach each other; NCCL_SOCKET_IFNAME names the network to use"),
        ("shared memory", "give the container more /dev/shm (docker: --shm-size=1g)"),
    ];
    HINTS.iter().find(|(part, _)| text.contains(part)).map(|(_, hint)| *hint)
}

const ONE_GPU_EACH: &str =
    "each worker needs a GPU of its own; for tests, NCCL 2.30 shares one with NCCL_MULTI_RANK_GPU_ENABLE=1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranks_on_one_gpu_get_a_hint_from_old_and_new_libraries() {
        for text in ["Duplicate GPU detected : rank 0", "Multiple Ranks are using the same GPU/Partition"] {
            let source = RawError { call: "ncclCommInitRankConfig", code: 5, text: text.to_owned() };
            let error = NcclError::Failed { doing: "forming the group", source };
            assert!(error.hint().unwrap().contains("a GPU of its own"));
        }
    }
}
