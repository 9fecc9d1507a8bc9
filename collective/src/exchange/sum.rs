//! Finishes the slot tree over this rank's chunk.

use std::sync::mpsc::{Receiver, Sender};

use super::{Exchange, Total, blocks};
use crate::frame::{self, BLOCK_ELEMENTS, Kind, ROOT};
use crate::tree::{Node, SlotSums};

/// A peer, as the thread that adds sees it.
pub(super) struct Peer<'a> {
    pub(super) rank: u32,
    /// Takes finished blocks, to be sent to the peer.
    pub(super) totals: Sender<Total<'a>>,
    /// Gives the peer's blocks, in the order in which they are to be added.
    pub(super) partials: Receiver<Vec<f32>>,
    /// Takes back the memory of a block.
    pub(super) spare: Sender<Vec<f32>>,
}

/// One side of an addition.
enum Block<'a, 'o> {
    /// A block of this rank's first sum; the total comes to lie here.
    Own(&'a mut [f32]),
    /// A block of another sum of this rank's.
    Other(&'o [f32]),
    /// A block of a peer's, by the peer's index; none: made here.
    Peer(Option<usize>, Vec<f32>),
}

impl Block<'_, '_> {
    fn values(&self) -> &[f32] {
        match self {
            Self::Own(values) => values,
            Self::Other(values) => values,
            Self::Peer(_, values) => values,
        }
    }
}

impl Exchange<'_> {
    /// Adds block by block and passes each on. None when a link broke.
    pub(super) fn sum_own_chunk<'a>(&self, chunk: &'a mut [f32], peers: &[Peer<'a>]) -> Option<()> {
        let own_chunk = self.chunk(self.group.rank);
        let parts = self.parts(peers);
        for (range, place) in blocks(own_chunk).zip(chunk.chunks_mut(BLOCK_ELEMENTS)) {
            let mut place = Some(place);
            let mut sums = SlotSums::default();
            for (node, owner, index) in &parts {
                let block = match (owner, index) {
                    (Some(peer), _) => Block::Peer(Some(*peer), peers[*peer].partials.recv().ok()?),
                    (None, 0) => Block::Own(place.take().expect("a rank has one first sum")),
                    (None, index) => Block::Other(&self.others[index - 1].sum[range.clone()]),
                };
                sums.push(*node, block, |left, right| add(peers, left, right));
            }
            let place: &'a [f32] = match (sums.into_total(|left, right| add(peers, left, right)), place) {
                (Some(Block::Own(total)), _) => total,
                (Some(total), Some(place)) => {
                    place.copy_from_slice(total.values());
                    release(peers, total);
                    place
                }
                (None, Some(place)) => place, // zeros: the step has no slots
                (_, None) => unreachable!("an own sum takes part, so the total lies in its place"),
            };
            let sealed = frame::seal(self.header(Kind::Total, self.group.rank, ROOT, &range), place);
            peers.iter().try_for_each(|peer| peer.totals.send((sealed, place))).ok()?;
        }
        Some(())
    }

    /// All subtrees from left to right (ranks may own slots in any pattern), each with the index of the peer that sends it,
    /// if one does, and its place among its owner's.
    fn parts(&self, peers: &[Peer<'_>]) -> Vec<(Node, Option<usize>, usize)> {
        let mut parts = Vec::new();
        for (rank, nodes) in (0_u32..).zip(&self.subtrees) {
            let peer = peers.iter().position(|peer| peer.rank == rank);
            parts.extend(nodes.iter().enumerate().map(|(index, node)| (*node, peer, index)));
        }
        parts.sort_by_key(|(node, ..)| node.first_slot());
        parts
    }
}

/// Adds two blocks where one of them lies: where the total belongs, if that is one of them. Left and right keep their sides,
/// whichever is overwritten.
fn add<'a, 'o>(peers: &[Peer<'_>], left: Block<'a, 'o>, right: Block<'a, 'o>) -> Block<'a, 'o> {
    let (sum, added) = match (left, right) {
        (Block::Own(sum), right) => {
            add_to_left(sum, right.values());
            (Block::Own(sum), right)
        }
        (left, Block::Own(sum)) => {
            add_to_right(left.values(), sum);
            (Block::Own(sum), left)
        }
        (Block::Peer(peer, mut sum), right) => {
            add_to_left(&mut sum, right.values());
            (Block::Peer(peer, sum), right)
        }
        (left, Block::Peer(peer, mut sum)) => {
            add_to_right(left.values(), &mut sum);
            (Block::Peer(peer, sum), left)
        }
        (Block::Other(left), Block::Other(right)) => {
            let mut sum = left.to_vec();
            add_to_left(&mut sum, right);
            (Block::Peer(None, sum), Block::Other(right))
        }
    };
    release(peers, added);
    sum
}

fn add_to_left(left: &mut [f32], right: &[f32]) {
    assert_eq!(left.len(), right.len(), "blocks of one range have one length");
    left.iter_mut().zip(right).for_each(|(left, right)| *left += *right);
}

fn add_to_right(left: &[f32], right: &mut [f32]) {
    assert_eq!(left.len(), right.len(), "blocks of one range have one length");
    right.iter_mut().zip(left).for_each(|(right, left)| *right += *left);
}

/// Gives a peer's memory back to its receiver.
fn release(peers: &[Peer<'_>], block: Block<'_, '_>) {
    if let Block::Peer(Some(peer), values) = block {
        let _ = peers[peer].spare.send(values); // it may need no more
    }
}
