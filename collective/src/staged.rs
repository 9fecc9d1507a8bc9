//! A collective of the host for gradients that lie in a device's memory.

use crate::memory::Memory;
use crate::tree::Partial;
use crate::{Collective, CollectiveError, Reduction};

/// Brings gradients to the host, has them added up there, and brings the sum back.
pub struct Staged<M> {
    host: Box<dyn Collective>,
    memory: M,
}

impl<M> Staged<M> {
    /// Makes a collective of the host one for gradients in `memory`.
    pub fn new(host: Box<dyn Collective>, memory: M) -> Self {
        Self { host, memory }
    }
}

impl<S, M: Memory<S>> Collective<S> for Staged<M> {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial<S>>) -> Result<S, CollectiveError> {
        // One after the other: each is gone from the device before the next is on the host.
        let down = |Partial { node, sum }| Partial { node, sum: self.memory.download(sum) };
        let own = own.into_iter().map(down).collect();
        let sum = self.host.all_reduce(reduction, own)?;
        Ok(self.memory.upload(sum))
    }
}
