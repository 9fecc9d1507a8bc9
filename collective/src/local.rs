//! The collective of a single worker: everything is here already.

use tokio_util::sync::CancellationToken;

use crate::memory::{HostMemory, Memory};
use crate::tree::{Partial, SlotSums, assert_own};
use crate::{Collective, CollectiveError, Reduction};

/// Adds up the slots of a worker that owns all of them, in the memory that they lie in.
#[derive(Debug, Clone)]
pub struct Local<M = HostMemory> {
    cancel: CancellationToken,
    memory: M,
}

impl Local {
    /// Forms a generation of one worker, which `cancel` ends.
    pub fn new(cancel: CancellationToken) -> Self {
        Self::within(HostMemory, cancel)
    }
}

impl<M> Local<M> {
    /// As [`Local::new`], for gradients that lie in `memory`.
    pub fn within(memory: M, cancel: CancellationToken) -> Self {
        Self { cancel, memory }
    }
}

impl<S, M: Memory<S>> Collective<S> for Local<M> {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial<S>>) -> Result<S, CollectiveError> {
        assert_own(&reduction, 0, &own, |sum| self.memory.len(sum));
        if self.cancel.is_cancelled() {
            return Err(CollectiveError::Cancelled);
        }
        let add = |left, right| self.memory.add(left, right);
        let mut sums = SlotSums::default();
        for part in own {
            sums.push(part.node, part.sum, add);
        }
        Ok(sums.into_total(add).unwrap_or_else(|| self.memory.zeros(reduction.elements)))
    }
}
