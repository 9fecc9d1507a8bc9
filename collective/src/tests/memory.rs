//! Gradients in a memory that is not the host's: [`Local`] within it, and a collective of the host made one for it.

use tokio_util::sync::CancellationToken;

use crate::conformance::{self, Implementation, Member};
use crate::tree::Partial;
use crate::{Collective, CollectiveError, Limits, Local, Memory, Reduction, Staged};

/// Values far away: their order is the opposite, so that whoever takes them for the host's is noticed.
struct Far(Vec<f32>);

struct FarMemory;

impl Memory<Far> for FarMemory {
    fn len(&self, values: &Far) -> usize {
        values.0.len()
    }

    fn zeros(&self, elements: usize) -> Far {
        Far(vec![0.0; elements])
    }

    fn add(&self, left: Far, right: Far) -> Far {
        Far(left.0.into_iter().zip(right.0).map(|(left, right)| left + right).collect())
    }

    fn download(&self, values: Far) -> Vec<f32> {
        values.0.into_iter().rev().collect()
    }

    fn upload(&self, values: Vec<f32>) -> Far {
        Far(values.into_iter().rev().collect())
    }
}

/// A collective of far values, seen from the host.
struct FromHost<C>(C);

impl<C: Collective<Far>> Collective for FromHost<C> {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        let up = |Partial { node, sum }| Partial { node, sum: FarMemory.upload(sum) };
        let own = own.into_iter().map(up).collect();
        self.0.all_reduce(reduction, own).map(|sum| FarMemory.download(sum))
    }
}

struct Alone {
    is_staged: bool,
}

impl Implementation for Alone {
    fn name(&self) -> &str {
        if self.is_staged { "staged" } else { "local within another memory" }
    }

    fn world_sizes(&self) -> Vec<usize> {
        vec![1]
    }

    fn form(&self, _: u64, _: usize, _: Limits) -> Vec<Member> {
        let cancel = CancellationToken::new();
        let collective: Box<dyn Collective> = if self.is_staged {
            Box::new(FromHost(Staged::new(Box::new(Local::new(cancel.clone())), FarMemory)))
        } else {
            Box::new(FromHost(Local::within(FarMemory, cancel.clone())))
        };
        vec![Member { collective, cancel }]
    }
}

#[test]
fn local_conforms_within_any_memory() {
    conformance::check(&Alone { is_staged: false });
}

#[test]
fn a_staged_collective_conforms() {
    conformance::check(&Alone { is_staged: true });
}
