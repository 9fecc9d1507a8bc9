//! The collective of a single worker: everything is here already.

use super::tree::{Partial, SlotSums, add};
use super::{Collective, CollectiveError, Reduction};

/// Adds up the slots of a worker that owns all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Local;

impl Collective for Local {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        let mut sums = SlotSums::default();
        for part in own {
            sums.push(part.node, part.sum, add);
        }
        Ok(sums.into_total(add).unwrap_or_else(|| vec![0.0; reduction.elements]))
    }
}
