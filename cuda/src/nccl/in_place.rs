//! Gradients in memory of the device that somebody else has allocated, named by its address.

#![expect(unsafe_code, reason = "whoever names memory by an address answers for it")]

use ballast_collective::tree::Partial;
use ballast_collective::{CollectiveError, Reduction};

use super::{NcclCollective, Raw};

/// `f32` values in a device's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Span {
    address: u64,
    elements: usize,
}

impl Span {
    /// Names memory.
    ///
    /// # Safety
    /// It holds `elements` values of `f32` at a multiple of four bytes, on the device whose collective is given the span, stays
    /// where it is as long as the span lives, and nobody else writes to it meanwhile.
    pub unsafe fn new(address: u64, elements: usize) -> Self {
        Self { address, elements }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.elements
    }
}

/// A collective of gradients that stay where they lie, in a device's memory.
pub trait ReduceInPlace: Send {
    /// Adds up, as [`NcclCollective::reduce`] does.
    ///
    /// # Errors
    /// As there.
    fn reduce(&mut self, reduction: Reduction<'_>, own: &[Partial<Span>], into: &Span) -> Result<(), CollectiveError>;

    /// Whether memory that was given may still be written to: [`NcclCollective::is_wedged`].
    fn is_wedged(&self) -> bool;
}

impl<R> ReduceInPlace for NcclCollective<R>
where
    R: Raw + Send,
    R::Comm: Send,
    R::Buffer: Send,
{
    /// # Panics
    /// When the library is a simulated one, whose memory has no addresses.
    fn reduce(&mut self, reduction: Reduction<'_>, own: &[Partial<Span>], into: &Span) -> Result<(), CollectiveError> {
        let Some(raw) = self.raw() else { return Err(self.ended()) };
        let lent = |span| raw.lent(span).expect("the library's memory has addresses");
        let own: Vec<_> = own.iter().map(|part| Partial { node: part.node, sum: lent(&part.sum) }).collect();
        let into = lent(into);
        Self::reduce(self, reduction, &own, &into)
    }

    fn is_wedged(&self) -> bool {
        Self::is_wedged(self)
    }
}
