//! NCCL as a collective: gradients that lie on GPUs, or are copied there, added up over all ranks.
//!
//! Gradients that lie on the GPU stay there: the sum is made in the memory of the first of them
//! ([`NcclCollective::reduce`]), and nothing comes to the host. Gradients of the host's memory are brought there and back.
//!
//! *Exact* moves bytes by sends and receives and adds along the slot tree on the device: the same bits as over any other
//! collective. The gradient is cut into a part for each rank. First every rank sends each other one that one's part of its own
//! subtrees' sums, and adds up its own part; then the finished parts go round. Both in rounds of pairs, so that an error
//! names the peer. *Fast* lets NCCL add in an order of its own; all ranks have the same bits, and another world size has
//! others.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::time::Duration;

use ballast_collective::tree::{Node, Partial, SlotSums, assert_own, subtrees_of_rank};
use ballast_collective::{Collective, CollectiveError, LinkError, Reduction};
use tokio_util::sync::CancellationToken;

use super::pairs::partners;
use super::{Group, GroupConfig, Limits, NcclError, Progress, Raw, RawError, Transfer, UniqueId};

/// Elements of each rank's part that are in work at a time in exact mode: what peers send then takes at most 16 MiB for
/// each of their subtrees.
const PIECE: usize = 4 << 20;

/// Elements of one call of the library in fast mode: 64 MiB.
const BUCKET: usize = 16 << 20;

/// After a failure, how long it is looked whether the generation was cancelled: then a peer was told a moment earlier.
const GRACE: Duration = Duration::from_millis(50);

/// How long sums and copies may take that no peer has a part in, after a failure.
const SETTLING: Duration = Duration::from_secs(1);

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
    /// Whether work on buffers may still be going on after a failure.
    is_wedged: bool,
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
        // All ranks form as soon as they have the id, whatever they are computing.
        let form = limits.straggler.min(Limits::default().form.max(limits.link));
        let waits = Limits { form, operation: limits.straggler, ..Limits::default() };
        let group = Group::form(raw, GroupConfig { generation, rank, world_size, limits: waits }, id)?;
        Ok(Self { group: Some(group), generation, order, limits, cancel, is_wedged: false })
    }
}

impl<R> Collective for NcclCollective<R>
where
    R: Raw + Send,
    R::Comm: Send,
    R::Buffer: Send,
{
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        self.guarded(|work| {
            assert_own(&reduction, work.group.rank(), &own, Vec::len);
            // One after the other: each is gone from the host before the next is on the device.
            let own = own.into_iter().map(|part| Ok((part.node, work.uploaded(part.sum)?)));
            let own = own.collect::<Result<Vec<_>, CollectiveError>>()?;
            let spare = match own.is_empty() {
                true => Some(work.uploaded(vec![0.0; reduction.elements])?),
                false => None,
            };
            let into = own.first().map(|(_, buffer)| buffer).or(spare.as_ref()).expect("one of the two is there");
            work.reduce(&reduction, &own, into)?;
            let mut sum = vec![0.0; reduction.elements];
            work.raw(|raw| raw.download(into, 0, &mut sum))?;
            Ok(sum)
        })
    }
}

impl<R: Raw> NcclCollective<R> {
    /// Adds up gradients that lie on the device, as [`Collective::all_reduce`] does, and leaves the sum in `into`: the first
    /// of `own`, or zeros on a rank that owns no slot. The others of `own` are overwritten. Whatever wrote to these buffers
    /// has ended before, and what reads them may begin when this returns.
    ///
    /// # Errors
    /// As [`Collective::all_reduce`]. What the buffers hold is then of no use, and they may be given up, unless
    /// [`is_wedged`](Self::is_wedged) says otherwise.
    ///
    /// # Panics
    /// When `own` are not the subtrees that `reduction` says.
    pub fn reduce(
        &mut self,
        reduction: Reduction<'_>,
        own: &[Partial<R::Buffer>],
        into: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        self.guarded(|work| {
            let raw = work.group.raw();
            assert_own(&reduction, work.group.rank(), own, |buffer| raw.len(buffer));
            assert_eq!(raw.len(into), reduction.elements, "the sum has as many elements");
            let own: Vec<_> = own.iter().map(|part| (part.node, &part.sum)).collect();
            work.reduce(&reduction, &own, into)
        })
    }

    /// Whether the library has not ended what a failed reduction began: its buffers may still be written to, and only the end
    /// of the process helps.
    pub fn is_wedged(&self) -> bool {
        self.is_wedged
    }

    /// The library, until a failure has ended the group.
    pub(super) fn raw(&self) -> Option<&R> {
        self.group.as_ref().map(Group::raw)
    }

    /// Says why there is no group any more.
    pub(super) fn ended(&self) -> CollectiveError {
        if self.cancel.is_cancelled() {
            return CollectiveError::Cancelled;
        }
        CollectiveError::Broken { generation: self.generation }
    }

    /// Runs a reduction, and ends the group where that fails.
    fn guarded<T>(
        &mut self,
        run: impl FnOnce(&mut Work<'_, R>) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        if self.cancel.is_cancelled() {
            self.group = None;
            return Err(CollectiveError::Cancelled);
        }
        // Taken out, so that whatever goes wrong leaves nothing behind.
        let mut group = self.group.take().ok_or_else(|| self.ended())?;
        let mut work =
            Work { group: &mut group, order: self.order, limits: self.limits, cancel: &self.cancel, is_first: true };
        match run(&mut work) {
            Ok(result) => {
                self.group = Some(group);
                Ok(result)
            }
            Err(error) => {
                let _ = group.abort(); // most failures have done so
                self.is_wedged = group.is_wedged() || !has_settled(group.raw());
                drop(group);
                match self.is_wedged {
                    // Whatever it was at first, and also where the generation was cancelled: the process has to end.
                    true => Err(CollectiveError::Wedged { library: "NCCL", limit: Limits::default().abort }),
                    false => Err(self.judged(error)),
                }
            }
        }
    }

    /// A peer that was told to stop a moment before this rank looks like one that has failed.
    fn judged(&self, error: CollectiveError) -> CollectiveError {
        let began = std::time::Instant::now();
        while !self.cancel.is_cancelled() && began.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.cancel.is_cancelled() { CollectiveError::Cancelled } else { error }
    }
}

/// Waits for what a reduction has started by itself, sums and copies, which need no peer. False when that does not end.
fn has_settled<R: Raw>(raw: &R) -> bool {
    let deadline = raw.now() + SETTLING;
    loop {
        match raw.stream_progress() {
            Ok(Progress::Running) if raw.now() < deadline => raw.pause(Duration::from_millis(1)),
            Ok(Progress::Running) => return false,
            // What a stream reports after an abort is the abort.
            Ok(Progress::Done) | Err(_) => return true,
        }
    }
}

/// One reduction.
struct Work<'a, R: Raw> {
    group: &'a mut Group<R>,
    order: Order,
    limits: ballast_collective::Limits,
    cancel: &'a CancellationToken,
    /// Until everybody has met everybody, peers may still be computing.
    is_first: bool,
}

impl<R: Raw> Work<'_, R> {
    fn reduce<B: Borrow<R::Buffer>>(
        &mut self,
        reduction: &Reduction<'_>,
        own: &[(Node, B)],
        into: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        match self.order {
            _ if reduction.slot_ranks.is_empty() => self.meet_all()?,
            Order::Exact => self.exact(reduction, own, into)?,
            Order::Fast => self.fast(reduction, own, into)?,
        }
        let stop = || self.cancel.is_cancelled();
        self.group.wait(self.limits.link, &stop).map_err(|error| named(error, None))
    }

    fn exact<B: Borrow<R::Buffer>>(
        &mut self,
        reduction: &Reduction<'_>,
        own: &[(Node, B)],
        into: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        let Reduction { elements, slot_ranks, .. } = *reduction;
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        let step = PIECE.saturating_mul(world_size as usize);
        for start in (0..elements).step_by(step) {
            let parts = Parts { piece: start..(start + step).min(elements), world_size };
            let mine = parts.of(rank);
            // What others need of this rank's sums leaves before the total comes to lie over the first of them.
            self.gather(slot_ranks, own, &parts, into)?;
            for partner in partners(rank, world_size).into_iter().flatten() {
                let theirs = parts.of(partner);
                let transfers = [
                    Transfer::Send { from: into, range: mine.clone(), peer: partner },
                    Transfer::Receive { to: into, range: theirs, peer: partner },
                ];
                self.meet(partner, &transfers)?;
            }
            self.is_first = false;
        }
        Ok(())
    }

    /// Brings this rank's part of every subtree here, and leaves its sum along the tree in `into`.
    fn gather<B: Borrow<R::Buffer>>(
        &mut self,
        slot_ranks: &[u32],
        own: &[(Node, B)],
        parts: &Parts,
        into: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        let (rank, world_size) = (self.group.rank(), self.group.world_size());
        let mine = parts.of(rank);
        let mut all: Vec<(Node, Held<'_, R::Buffer>)> = (own.iter().enumerate())
            .map(|(index, (node, buffer))| (*node, Held::Own { buffer: buffer.borrow(), start: mine.start, index }))
            .collect();
        for partner in partners(rank, world_size).into_iter().flatten() {
            let theirs = subtrees_of_rank(slot_ranks, partner);
            let received = theirs.iter().map(|node| Ok((*node, self.allocate(mine.len())?)));
            let received = received.collect::<Result<Vec<_>, CollectiveError>>()?;
            let send = own.iter().map(|(_, buffer)| Transfer::Send {
                from: buffer.borrow(),
                range: parts.of(partner),
                peer: partner,
            });
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
        if matches!(sum, Held::Own { index: 0, .. }) || mine.is_empty() {
            return Ok(()); // it lies there
        }
        self.raw(|raw| raw.copy(sum.place(), (into, mine.start), mine.len()))?;
        // What was received is given up when this returns, so the copy has to be done.
        let stop = || self.cancel.is_cancelled();
        self.group.wait(self.limits.link, &stop).map_err(|error| named(error, None))
    }

    fn fast<B: Borrow<R::Buffer>>(
        &mut self,
        reduction: &Reduction<'_>,
        own: &[(Node, B)],
        into: &R::Buffer,
    ) -> Result<(), CollectiveError> {
        self.meet_all()?;
        let elements = reduction.elements;
        for (_, buffer) in own.iter().skip(1) {
            self.raw(|raw| raw.add((into, 0), (buffer.borrow(), 0), elements))?;
        }
        let stop = || self.cancel.is_cancelled();
        self.group.all_reduce(into, 0..elements, BUCKET, &stop).map_err(|error| named(error, None))
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
    /// In one of the worker's own buffers, from an element on.
    Own { buffer: &'a B, start: usize, index: usize },
    /// As it came.
    Received(B),
}

impl<B> Held<'_, B> {
    fn place(&self) -> (&B, usize) {
        match self {
            Self::Own { buffer, start, .. } => (buffer, *start),
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
        (NcclError::Wedged { limit }, _) => CollectiveError::Wedged { library: "NCCL", limit },
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
