//! What a collective is, whatever moves the bytes.

use crate::error::CollectiveError;
use crate::tree::Partial;

/// Which slots a reduction adds up, and whose they are. Equal on all ranks.
#[derive(Debug, Clone, Copy)]
pub struct Reduction<'a> {
    /// Step the gradients belong to.
    pub step: u64,
    /// Owner of each filled slot, by slot number. A rank may own none, and a rank's slots need not be neighbours.
    pub slot_ranks: &'a [u32],
    /// Length of the flat gradient.
    pub elements: usize,
}

/// Adds up slot gradients, together with the other members of a generation.
///
/// `S` is what holds a flat gradient: the host's memory, or a device's. An implementation is for one of them; for any
/// other there is [`Staged`](crate::Staged).
///
/// An object is one member of one generation: it is formed with the generation's members, a `CancellationToken` that ends
/// it, and [`Limits`](crate::Limits), and it never sees another generation. One thread at a time uses it. How it is formed
/// is the implementation's own affair; connecting may go on in the background until the first reduction.
///
/// # What an implementation promises
///
/// [`conformance::check`](crate::conformance::check) tests all of this.
///
/// 1. **The bits.** The sum is that of the slot tree ([`tree`](crate::tree)), so it depends on the filled slots alone and
///    on nothing else: not on the world size, on who owns which slot, on timing. An implementation that adds in another order
///    says so ([`Implementation::is_exact`](crate::conformance::Implementation::is_exact)); all its ranks still end with the
///    same bits.
/// 2. **All or an error.** `Ok` means: every slot was added once. What arrives late, twice, damaged, cut off, from another
///    run, generation, step or rank is refused. It is never part of a sum.
/// 3. **Every rank takes part** in every reduction, in the same order, also one that owns no slot.
/// 4. **Bounded waits.** No wait for a peer exceeds the limits, and a peer that goes away is noticed at once by those who
///    wait for it. The error names the peer's rank.
/// 5. **Cancelled at once.** When the token is cancelled (before, while or between calls; the coordinator has ended the
///    generation) `all_reduce` returns [`CollectiveError::Cancelled`], within a tenth of a second and whatever
///    the peers do, unless its sum was complete already.
/// 6. **Once broken, broken.** After an error every later call fails at once; peers that still wait for this member see
///    it leave.
/// 7. **Nothing stays behind.** Cancelled or dropped, it gives up its tasks, threads, connections and device memory, soon and
///    without being waited for; meanwhile, the next generation can be formed in the same process and work.
/// 8. **Bounded memory**: what it is given, one gradient more at most, and a few blocks for each peer.
pub trait Collective<S = Vec<f32>>: Send {
    /// Returns the sum over all filled slots, the same bits on every rank. Blocks until then, until a peer breaks, or
    /// until the generation is cancelled.
    ///
    /// `own` are the sums over the largest complete subtrees of this worker's slots, from left to right
    /// ([`SlotSums::into_parts`](crate::tree::SlotSums::into_parts)), each of `reduction.elements` elements. They are given
    /// away, so that the sum can be made where they lie. No filled slot at all makes a sum of zeros.
    ///
    /// # Errors
    /// After an error the generation's collective is of no further use.
    ///
    /// # Panics
    /// When `own` are not the subtrees that `reduction` says: the caller's mistake, before anything is sent.
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial<S>>) -> Result<S, CollectiveError>;
}
