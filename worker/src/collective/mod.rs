//! Adds up the gradients of a step's slots, whoever computed them, to the same bits on every worker.
//!
//! [`state`] sends a joiner what the sums have made of the model.
//!
//! [`tree`] says in which order, [`local`] does it alone, [`tcp`] together with peers. All pass the tests in
//! `conformance.rs`.

mod error;
mod frame;
mod local;
mod mesh;
mod state;
mod tcp;
pub(crate) mod tree;

#[cfg(test)]
mod conformance;

use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub(crate) use error::{CollectiveError, LinkError};
pub(crate) use local::Local;
pub(crate) use mesh::Endpoint;
pub(crate) use state::{StateCall, StateRequest, fetch_state};
pub(crate) use tcp::Tcp;

use tree::Partial;

/// Which slots a reduction adds up, and whose they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reduction<'a> {
    /// Step the gradients belong to.
    pub(crate) step: u64,
    /// Owner of each filled slot, by slot number.
    pub(crate) slot_ranks: &'a [u32],
    /// Length of the flat gradient.
    pub(crate) elements: usize,
}

/// Adds up slot gradients along the slot tree.
pub(crate) trait Collective: Send {
    /// Returns the sum over all filled slots, the same bits on every rank. Blocks until then, until a peer breaks, or
    /// until the generation is cancelled.
    ///
    /// `own` are the largest complete subtrees of this worker's slots ([`tree::SlotSums::into_parts`]).
    ///
    /// # Errors
    /// After an error the generation's collective is of no further use.
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError>;
}

/// The members of a generation, as a worker sees them.
#[derive(Debug, Clone)]
pub(crate) struct GroupConfig {
    /// Name of the run; a peer of another run is refused.
    pub(crate) run_id: String,
    /// Number of the worker set.
    pub(crate) generation: u64,
    /// This worker's rank.
    pub(crate) rank: u32,
    /// Where each rank's [`Endpoint`] listens.
    pub(crate) addresses: Vec<String>,
    /// How long each wait may take.
    pub(crate) limits: Limits,
}

/// How long a worker waits for its peers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// To connect, and for each block once all ranks take part in a reduction.
    pub(crate) link: Duration,
    /// For the slowest rank to finish computing its slots. Far longer: a peer that is merely slow (kernels compiled on
    /// first use, a laptop among servers) must not be taken for dead. Dead processes close their connections, dead hosts
    /// fail the keep-alive, and the coordinator's leases find the rest.
    pub(crate) straggler: Duration,
}

impl Limits {
    /// Derives the limits from the run's collective timeout.
    pub(crate) fn new(collective_timeout: Duration) -> Self {
        Self { link: collective_timeout, straggler: Duration::from_secs(30 * 60).max(collective_timeout) }
    }
}

/// Forms the collective of a generation: [`Local`] for one worker, [`Tcp`] for more. Connecting goes on in the
/// background.
pub(crate) fn form(
    endpoint: &Endpoint,
    group: GroupConfig,
    runtime: &Handle,
    cancel: CancellationToken,
) -> Box<dyn Collective> {
    if group.addresses.len() == 1 { Box::new(Local) } else { Box::new(Tcp::form(endpoint, group, runtime, cancel)) }
}
