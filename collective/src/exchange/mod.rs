//! One reduction over connections to all peers.
//!
//! The gradient is cut into one chunk per rank, and the slot tree of each chunk is rooted at its rank: every rank sends each
//! chunk's owner the sums of its largest subtrees, the owner finishes the tree in its fixed order and sends the result to
//! all. So every link carries as much as every other, in both directions at once, every rank adds as much as every other, and
//! where a rank's slots are one subtree it sends and receives `2·(world size − 1)/world size` gradients, the least that is
//! possible. The bits are those of the tree.
//!
//! **No copies.** Blocks of the sum are written over the first of the rank's own sums, where they lie: by the owner when it
//! adds, by the others when they receive. A block's memory goes from hand to hand, as a `&mut [f32]`: the sender sends it off
//! and hands it to the receiver, which waits for the total and reads it from the connection into that place. Only peers'
//! blocks that are still to be added need memory of their own, a few for each peer.
//!
//! **Nothing blocks for ever.** Nothing is sent before all ranks have said `Ready`: until then the others may compute for
//! long, afterwards everyone reads, so a stalled transfer means a broken peer. A thread per peer and direction keeps
//! reading while others write; the thread that called adds. The first failure closes all connections, which ends all threads.

mod sum;
mod threads;

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, mpsc};

use crate::frame::{BLOCK_ELEMENTS, HEADER_BYTES, Header, Kind, ROOT, run_hash};
use crate::tree::{Node, Partial, assert_own, subtrees_of_rank};
use crate::wire::Wire;
use crate::{CollectiveError, GroupConfig, LinkError, Reduction};

/// Blocks of a peer that may wait to be added, besides those in the tree: a few, so that reading goes on.
const BLOCKS_AHEAD: usize = 4;

/// A connection to a peer, confirmed by both sides.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) rank: u32,
    pub(crate) wire: Arc<dyn Wire>,
}

/// A block of this rank's chunk that is finished, and its header, for all peers.
type Total<'a> = ([u8; HEADER_BYTES], &'a [f32]);

/// Memory for peers' blocks, kept from one reduction to the next: as much as the links need at one time.
pub(crate) type Spares = Vec<Vec<f32>>;

/// Adds up the gradients of all ranks. `links` are those to all others.
///
/// # Errors
/// What broke first. All links are closed then.
pub(crate) fn all_reduce(
    group: &GroupConfig,
    links: &[Link],
    reduction: Reduction<'_>,
    own: Vec<Partial>,
    spares: &mut Spares,
) -> Result<Vec<f32>, CollectiveError> {
    assert_own(&reduction, group.rank, &own, Vec::len);
    let is_empty = own.is_empty();
    let mut own = own.into_iter();
    // What is left of this rank's slots, besides the sum that is overwritten. A rank without slots sends nothing.
    let mut total = own.next().map_or_else(|| vec![0.0; reduction.elements], |first| first.sum);
    let others: Vec<Partial> = own.collect();
    let exchange = Exchange::new(group, links, reduction, is_empty, &others);
    let is_summed = exchange.run(&mut total, spares);
    match exchange.lobby.into_inner().expect(UNPOISONED).failure {
        Some(error) => Err(error),
        None => {
            assert!(is_summed, "a sum is whole unless a link broke");
            Ok(total)
        }
    }
}

const RECEIVING: &str = "receiving does not panic";
const UNPOISONED: &str = "no holder of this lock panics";

/// What the threads of a reduction share.
struct Exchange<'a> {
    group: &'a GroupConfig,
    links: &'a [Link],
    /// See [`run_hash`].
    run: u64,
    step: u64,
    elements: usize,
    /// Filled slots of the step.
    slots: usize,
    /// Whether this rank owns no slot.
    is_empty: bool,
    /// The sums of this rank's subtrees, but for the first.
    others: &'a [Partial],
    /// Every rank's subtrees.
    subtrees: Vec<Vec<Node>>,
    lobby: Mutex<Lobby>,
    changed: Condvar,
}

/// Who is there, and whether it goes on.
#[derive(Default)]
struct Lobby {
    /// Peers that have said `Ready`.
    ready: usize,
    /// What broke first.
    failure: Option<CollectiveError>,
}

impl Lobby {
    /// Whether nothing is left to wait for: all peers are ready, or something broke.
    fn is_settled(&self, peers: usize) -> bool {
        self.ready == peers || self.failure.is_some()
    }
}

impl<'a> Exchange<'a> {
    fn new(
        group: &'a GroupConfig,
        links: &'a [Link],
        reduction: Reduction<'_>,
        is_empty: bool,
        others: &'a [Partial],
    ) -> Self {
        let world_size = group.addresses.len() as u32;
        Self {
            group,
            links,
            run: run_hash(&group.run_id),
            step: reduction.step,
            elements: reduction.elements,
            slots: reduction.slot_ranks.len(),
            is_empty,
            others,
            subtrees: (0..world_size).map(|rank| subtrees_of_rank(reduction.slot_ranks, rank)).collect(),
            lobby: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Makes the sum of all ranks out of `total`, this rank's first sum. False when a link broke.
    fn run(&self, total: &mut [f32], memory: &mut Spares) -> bool {
        let mut chunks = Vec::new();
        let mut rest = total;
        for rank in 0..self.subtrees.len() as u32 {
            let (chunk, behind) = rest.split_at_mut(self.chunk(rank).len());
            chunks.push(Some(chunk));
            rest = behind;
        }
        let mut chunk_of = |rank: u32| chunks[rank as usize].take().expect("each chunk has one owner");
        let own_chunk = chunk_of(self.group.rank);
        std::thread::scope(move |scope| {
            let (mut peers, mut receiving) = (Vec::new(), Vec::new());
            for link in self.links {
                let (total_sender, totals) = mpsc::channel();
                let (partial_sender, partials) = mpsc::channel();
                let (spare, spares) = mpsc::channel();
                let (sent, to_receive) = mpsc::channel();
                let chunk = chunk_of(link.rank);
                scope.spawn(move || self.report(link, self.send(link, chunk, &sent, &totals)));
                receiving.push(scope.spawn(move || {
                    self.report(link, self.receive(link, &spares, &partial_sender, &to_receive));
                    spares
                }));
                peers.push(sum::Peer { rank: link.rank, totals: total_sender, partials, spare });
            }
            for peer in &peers {
                let count = self.blocks_at_once(peer.rank);
                (0..count).for_each(|_| peer.spare.send(memory.pop().unwrap_or_default()).expect(RECEIVING));
            }
            let is_summed = self.sum_own_chunk(own_chunk, &peers).is_some();
            // This ends the threads. If it was not summed, one of them has told what broke.
            drop(peers);
            memory.extend(receiving.into_iter().flat_map(|thread| thread.join().expect(RECEIVING)));
            is_summed
        })
    }

    /// Blocks of a peer for which there is memory.
    ///
    /// As the tree is filled from the left, a sum for each level may wait for its sibling, each in a block of the same peer; the
    /// next block needs room beside them, or nothing would go on.
    fn blocks_at_once(&self, peer: u32) -> usize {
        let levels = self.slots.checked_ilog2().map_or(0, |log2| log2 as usize + 1);
        BLOCKS_AHEAD + levels.min(self.subtrees[peer as usize].len())
    }

    /// Keeps the first failure and ends the reduction, if it is one.
    fn report(&self, link: &Link, result: Result<(), Stop>) {
        if let Err(Stop::Broken(doing, source)) = result {
            let error = CollectiveError::Link { rank: link.rank, doing, source };
            self.lock().failure.get_or_insert(error);
            self.links.iter().for_each(|link| link.wire.close());
            self.changed.notify_all();
        }
    }

    /// Waits until all peers are ready; false when something broke before.
    fn all_are_ready(&self) -> bool {
        let lobby = self.changed.wait_while(self.lock(), |lobby| !lobby.is_settled(self.links.len()));
        lobby.expect(UNPOISONED).failure.is_none()
    }

    fn is_settled(&self) -> bool {
        self.lock().is_settled(self.links.len())
    }

    fn peer_is_ready(&self) {
        self.lock().ready += 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lobby> {
        self.lobby.lock().expect(UNPOISONED)
    }

    /// The elements whose sum a rank finishes.
    fn chunk(&self, rank: u32) -> Range<usize> {
        let world_size = self.subtrees.len() as u128;
        let start = |rank: u32| (u128::from(rank) * self.elements as u128 / world_size) as usize;
        start(rank)..start(rank + 1)
    }

    fn header(&self, kind: Kind, rank: u32, node: Node, block: &Range<usize>) -> Header {
        Header {
            kind,
            run: self.run,
            generation: self.group.generation,
            world_size: self.subtrees.len() as u32,
            rank,
            step: self.step,
            node,
            offset: block.start as u64,
            payload_bytes: block.len() as u32 * 4,
        }
    }

    fn ready(&self, rank: u32) -> Header {
        self.header(Kind::Ready, rank, ROOT, &(0..0))
    }
}

/// Why a thread ended before its work was done.
enum Stop {
    /// Its link broke, while it was used for this.
    Broken(&'static str, LinkError),
    /// Another thread's link did, which that one tells.
    Elsewhere,
}

fn broke(doing: &'static str) -> impl Fn(LinkError) -> Stop {
    move |source| Stop::Broken(doing, source)
}

impl<T> From<mpsc::SendError<T>> for Stop {
    fn from(_: mpsc::SendError<T>) -> Self {
        Self::Elsewhere
    }
}

impl From<mpsc::RecvError> for Stop {
    fn from(_: mpsc::RecvError) -> Self {
        Self::Elsewhere
    }
}

/// Cuts a range of elements into what travels in one frame.
pub(crate) fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK_ELEMENTS).map(move |start| start..(start + BLOCK_ELEMENTS).min(end))
}
