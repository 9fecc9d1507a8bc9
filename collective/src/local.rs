//! The collective of a single worker: everything is here already.

use tokio_util::sync::CancellationToken;

use crate::tree::{Partial, SlotSums, add, assert_own};
use crate::{Collective, CollectiveError, Reduction};

/// Adds up the slots of a worker that owns all of them.
#[derive(Debug, Clone)]
pub struct Local {
    cancel: CancellationToken,
}

impl Local {
    /// Forms a generation of one worker, which `cancel` ends.
    pub fn new(cancel: CancellationToken) -> Self {
        Self { cancel }
    }
}

impl Collective for Local {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        assert_own(&reduction, 0, &own);
        if self.cancel.is_cancelled() {
            return Err(CollectiveError::Cancelled);
        }
        let mut sums = SlotSums::default();
        for part in own {
            sums.push(part.node, part.sum, add);
        }
        Ok(sums.into_total(add).unwrap_or_else(|| vec![0.0; reduction.elements]))
    }
}
