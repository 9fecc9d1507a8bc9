//! NCCL as a collective: gradients that lie on GPUs, or are copied there, added up over all ranks.
//!
//! *Exact* moves bytes by sends and receives and adds along the slot tree on the device: the same bits as over any other
//! collective. The gradient is cut into a part for each rank. First every rank sends each other one that one's part of its own
//! subtrees' sums, and adds up its own part; then the finished parts go round. Both in rounds of pairs, so that an error
//! names the peer. *Fast* lets NCCL add in an order of its own; all ranks have the same bits, and another world size has
//! others.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::time::Duration;

use ballast_collective::tree::{Node, Partial, SlotSums, subtrees_of_rank};
use ballast_collective::{Collective, CollectiveError, LinkError, Reduction};
use tokio_util::sync::CancellationToken;

use super::pairs::partners;
use super::{Group, GroupConfig, Limits, NcclError, Raw, RawError, Transfer, UniqueId};

/// Elements of each rank's part that are in work at a time in exact mode: what peers send then takes at most 16 MiB for
/// each of their subtrees.
const PIECE: usize = 4 << 20;

/// Elements of one call of the library in fast mode: 64 MiB.
const BUCKET: usize = 16 << 20;

/// After a failure, how long it is looked whether the generation was cancelled: then a peer was told a moment earlier.
const GRACE: Duration = Duration::from_millis(50);

/// In which order slots are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Along the slot tree.
    Exact,
    /// As NCCL likes.
    Fast,
}

/// One member of a generation that reduces over NCCL.
pub struct NcclCollective<R: Raw> {
    group: Option<Group<R>>,
    generation: u64,
    order: Order,
    limits: ballast_collective::Limits,
    cancel: CancellationToken,
}

impl<R: Raw> NcclCollective<R> {
    /// Starts to form a generation's group from the id that its rank 0 made; it is ready with the first reduction.
    ///
    /// # Errors
    /// When the library refuses at once.
    pub fn form(
        raw: R,
        (generation, rank, world_size): (u64, u32, u32),
        id: &UniqueId,
        order: Order,
        limits: ballast_collective::Limits,
        cancel: CancellationToken,
    ) -> Result<Self, NcclError> {
        let waits = Limits { form: limits.straggler, operation: limits.straggler, ..Limits::default() };
        let group = Group::form(raw, GroupConfig { generation, rank, world_size, limits: waits }, id)?;
        Ok(Self { group: Some(group), generation, order, limits, cancel })
    }
}

impl<R> Collective for NcclCollective<R>
where
    R: Raw + Send,
    R::Comm: Send,
    R::Buffer: Send,
{
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        if self.cancel.is_cancelled() {
            self.group = None;
            return Err(CollectiveError::Cancelled);
        }
        // Taken out, so that whatever goes wrong leaves nothing behind.
        let mut group = self.group.take().ok_or(CollectiveError::Broken { generation: self.generation })?;
        assert_own(&reduction, group.rank(), &own);
        let mut work = Work { group: &mut group, limits: self.limits, cancel: &self.cancel, is_first: true };
        let sum = match self.order {
            Order::Exact => work.exact(&reduction, own),
            Order::Fast => work.fast(&reduction, own),
        };
        match sum {
            Ok(sum) => {
                self.group = Some(group);
                Ok(sum)
            }
            Err(error) => {
                drop(group);
                Err(self.judged(error))
            }
        }
    }
}

impl<R: Raw> NcclCollective<R> {
    /// A peer that was told to stop a moment before this rank looks like one that has failed.
    fn judged(&self, error: CollectiveError) -> CollectiveError {
        let began = std::time::Instant::now();
        while !self.cancel.is_cancelled() && began.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.cancel.is_cancelled() { CollectiveError::Cancelled } else { error }
    }
}

fn assert_own(reduction: &Reduction<'_>, rank: u32, own: &[Partial]) {
    let nodes: Vec<Node> = own.iter().map(|part| part.node).collect();
    let asked = subtrees_of_rank(reduction.slot_ranks, rank);
    assert_eq!(nodes, asked, "a worker brings the sums of the slots that it was given");
    assert!(own.iter().all(|part| part.sum.len() == reduction.elements), "gradients of one model have one length");
}

/// One reduction.
struct Work<'a, R: Raw> {
    group: &'a mut Group<R>,
    limits: ballast_collective::Limits,
    cancel: &'a CancellationToken,
    /// Until everybody has met everybody, peers may still be computing.
    is_first: bool,
}

impl<R: Raw> Work<'_, R> {
    fn exact(&mut self, reduction: &Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        let Reduction { elements, slot_ranks, .. } = *reduction;
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        if slot_ranks.is_empty() {
            self.meet_all()?;
            return Ok(vec![0.0; elements]);
        }
        let own = own.into_iter().map(|part| Ok((part.node, self.uploaded(part.sum)?)));
        let own = own.collect::<Result<Vec<_>, CollectiveError>>()?;
        let total = self.allocate(elements)?;
        let mut sum = vec![0.0; elements];
        let step = PIECE.saturating_mul(world_size as usize);
        for start in (0..elements).step_by(step) {
            let piece = start..(start + step).min(elements);
            let parts = Parts { piece: piece.clone(), world_size };
            let mine = parts.of(rank);
            self.gather(slot_ranks, &own, &parts, &total)?;
            for partner in partners(rank, world_size).into_iter().flatten() {
                let theirs = parts.of(partner);
                let transfers = [
                    Transfer::Send { from: &total, range: mine.clone(), peer: partner },
                    Transfer::Receive { to: &total, range: theirs, peer: partner },
                ];
                self.meet(partner, &transfers)?;
            }
            self.raw(|raw| raw.download(&total, piece.start, &mut sum[piece.clone()]))?;
            self.is_first = false;
        }
        Ok(sum)
    }

    /// Brings this rank's part of every subtree here, and leaves its sum along the tree in `total`.
    fn gather(
        &mut self,
        slot_ranks: &[u32],
        own: &[(Node, R::Buffer)],
        parts: &Parts,
        total: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        let mine = parts.of(rank);
        let mut all: Vec<(Node, Held<'_, R::Buffer>)> =
            own.iter().map(|(node, buffer)| (*node, Held::Own(buffer, mine.start))).collect();
        for partner in partners(rank, world_size).into_iter().flatten() {
            let theirs = subtrees_of_rank(slot_ranks, partner);
            let received = theirs.iter().map(|node| Ok((*node, self.allocate(mine.len())?)));
            let received = received.collect::<Result<Vec<_>, CollectiveError>>()?;
            let send =
                own.iter().map(|(_, buffer)| Transfer::Send { from: buffer, range: parts.of(partner), peer: partner });
            let receive = received.iter().map(|(_, buffer)| Transfer::Receive {
                to: buffer,
                range: 0..mine.len(),
                peer: partner,
            });
            let transfers: Vec<_> = send.chain(receive).collect();
            self.meet(partner, &transfers)?;
            all.extend(received.into_iter().map(|(node, buffer)| (node, Held::Received(buffer))));
        }
        all.sort_by_key(|(node, _)| node.first_slot());
        let failed = RefCell::new(Ok(()));
        let raw = self.group.raw();
        let mut sums = SlotSums::default();
        for (node, held) in all {
            sums.push(node, held, |left, right| added(raw, left, right, mine.len(), &failed));
        }
        let sum = sums.into_total(|left, right| added(raw, left, right, mine.len(), &failed));
        let sum = sum.expect("at least one slot is filled");
        failed.into_inner().map_err(|source| library("adding gradients", source))?;
        // Over the host, since the interface has no copy on the device; 16 MiB at most.
        let mut values = vec![0.0; mine.len()];
        let (buffer, start) = sum.place();
        self.raw(|raw| raw.download(buffer, start, &mut values))?;
        self.raw(|raw| raw.upload(&values, total, mine.start))
    }

    fn fast(&mut self, reduction: &Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        self.meet_all()?;
        let mut parts = own.into_iter().map(|part| part.sum);
        let mut sum = parts.next().unwrap_or_else(|| vec![0.0; reduction.elements]);
        parts.for_each(|part| sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += value));
        let buffer = self.uploaded(sum)?;
        let stop = || self.cancel.is_cancelled();
        self.group.all_reduce(&buffer, 0..reduction.elements, BUCKET, &stop).map_err(|error| named(error, None))?;
        let mut sum = vec![0.0; reduction.elements];
        self.raw(|raw| raw.download(&buffer, 0, &mut sum))?;
        Ok(sum)
    }

    /// Meets every rank once, so that one that is missing is known by its number.
    fn meet_all(&mut self) -> Result<(), CollectiveError> {
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        let greeting = self.allocate(2)?;
        for partner in partners(rank, world_size).into_iter().flatten() {
            let transfers = [
                Transfer::Send { from: &greeting, range: 0..1, peer: partner },
                Transfer::Receive { to: &greeting, range: 1..2, peer: partner },
            ];
            self.meet(partner, &transfers)?;
        }
        Ok(())
    }

    /// Exchanges with one peer.
    fn meet(&mut self, partner: u32, transfers: &[Transfer<'_, R::Buffer>]) -> Result<(), CollectiveError> {
        let stop = || self.cancel.is_cancelled();
        // An empty part is not sent: neither side has one where the other does not.
        let is_empty = |transfer: &Transfer<'_, R::Buffer>| match transfer {
            Transfer::Send { range, .. } | Transfer::Receive { range, .. } => range.is_empty(),
        };
        if transfers.iter().all(is_empty) {
            return Ok(());
        }
        let limit = if self.is_first { self.limits.straggler } else { self.limits.link };
        self.group.exchange(transfers, limit, &stop).map_err(|error| named(error, Some(partner)))
    }

    fn uploaded(&self, values: Vec<f32>) -> Result<R::Buffer, CollectiveError> {
        let buffer = self.allocate(values.len())?;
        self.raw(|raw| raw.upload(&values, &buffer, 0))?;
        Ok(buffer)
    }

    fn allocate(&self, elements: usize) -> Result<R::Buffer, CollectiveError> {
        self.group.raw().allocate(elements).map_err(|source| library("allocating memory", source))
    }

    fn raw(&self, call: impl FnOnce(&R) -> Result<(), RawError>) -> Result<(), CollectiveError> {
        call(self.group.raw()).map_err(|source| library("copying gradients", source))
    }
}

/// The parts of a piece of the gradient, one for each rank.
struct Parts {
    piece: Range<usize>,
    world_size: u32,
}

impl Parts {
    fn of(&self, rank: u32) -> Range<usize> {
        let length = self.piece.len();
        let at = |rank: u32| self.piece.start + length * rank as usize / self.world_size as usize;
        at(rank)..at(rank + 1)
    }
}

/// This rank's part of a subtree's sum.
enum Held<'a, B> {
    /// In the worker's own buffer, from an element on.
    Own(&'a B, usize),
    /// As it came.
    Received(B),
}

impl<B> Held<'_, B> {
    fn place(&self) -> (&B, usize) {
        match self {
            Self::Own(buffer, start) => (buffer, *start),
            Self::Received(buffer) => (buffer, 0),
        }
    }
}

/// Adds `right` to `left` on the device; the first failure is kept.
fn added<'a, R: Raw>(
    raw: &R,
    left: Held<'a, R::Buffer>,
    right: Held<'a, R::Buffer>,
    count: usize,
    failed: &RefCell<Result<(), RawError>>,
) -> Held<'a, R::Buffer> {
    if failed.borrow().is_ok() {
        *failed.borrow_mut() = raw.add(left.place(), right.place(), count);
    }
    left
}

/// Says which peer it was about, where one is known.
fn named(error: NcclError, partner: Option<u32>) -> CollectiveError {
    match (error, partner) {
        (NcclError::Cancelled { .. }, _) => CollectiveError::Cancelled,
        (NcclError::Ended { generation }, _) => CollectiveError::Broken { generation },
        (NcclError::TimedOut { limit, .. }, Some(rank)) => CollectiveError::Absent { rank, limit },
        (NcclError::Failed { doing, source }, Some(rank)) => {
            CollectiveError::Link { rank, doing, source: LinkError::Io(io::Error::other(source)) }
        }
        (NcclError::Failed { doing, source }, None) => library(doing, source),
        (error, _) => {
            CollectiveError::Library { library: "NCCL", doing: "reducing", code: -1, message: error.to_string() }
        }
    }
}

fn library(doing: &'static str, source: RawError) -> CollectiveError {
    let RawError { code, .. } = source;
    CollectiveError::Library { library: "NCCL", doing, code: code.into(), message: source.to_string() }
}
