//! Adds up the gradients of a step's slots, whoever computed them, to the same bits on every worker.
//!
//! - `contract.rs`: the trait [`Collective`], and what every implementation of it promises;
//! - [`tree`]: the order in which slots are added;
//! - `local.rs`: one worker alone; `memory.rs`: what it and `staged.rs` need to know of a device's memory; `tcp.rs`: workers with direct connections, which `mesh.rs` makes; `exchange/` is what
//!   happens on them in one reduction, `wire.rs` what it asks of a connection, `frame.rs` what travels;
//! - `state.rs`: sends a joiner what the sums have made of the model;
//! - [`conformance`]: the tests that every implementation passes, also one of another crate.

pub mod conformance;
mod contract;
mod error;
mod exchange;
mod frame;
mod local;
mod memory;
mod mesh;
#[cfg(test)]
mod simulated;
mod staged;
mod state;
mod tcp;
pub mod tree;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use contract::{Collective, Reduction};
pub use error::{CollectiveError, LinkError};
pub use local::Local;
pub use memory::{HostMemory, Memory};
pub use mesh::Endpoint;
pub use staged::Staged;
pub use state::{StateCall, StateRequest, fetch_state};
pub use tcp::Tcp;

/// The members of a generation, as a worker sees them.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Name of the run; a peer of another run is refused.
    pub run_id: String,
    /// Number of the worker set.
    pub generation: u64,
    /// This worker's rank.
    pub rank: u32,
    /// Where each rank's [`Endpoint`] listens.
    pub addresses: Vec<String>,
    /// How long each wait may take.
    pub limits: Limits,
}

/// How long a worker waits for its peers.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To connect, and for each block once all ranks take part in a reduction.
    pub link: Duration,
    /// For the slowest rank to finish computing its slots. Far longer: a peer that is merely slow (kernels compiled on
    /// first use, a laptop among servers) must not be taken for dead. Dead processes close their connections, dead hosts
    /// fail the keep-alive, and the coordinator's leases find the rest.
    pub straggler: Duration,
}

impl Limits {
    /// Derives the limits from the run's collective timeout.
    pub fn new(collective_timeout: Duration) -> Self {
        Self { link: collective_timeout, straggler: Duration::from_secs(30 * 60).max(collective_timeout) }
    }
}

/// Forms the collective of a generation: [`Local`] for one worker, [`Tcp`] for more. Connecting goes on in the
/// background.
pub fn form(
    endpoint: &Endpoint,
    group: GroupConfig,
    runtime: &Handle,
    cancel: CancellationToken,
) -> Box<dyn Collective> {
    if group.addresses.len() == 1 {
        Box::new(Local::new(cancel))
    } else {
        Box::new(Tcp::form(endpoint, group, runtime, cancel))
    }
}
