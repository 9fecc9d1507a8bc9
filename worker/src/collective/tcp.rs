//! The embedded collective: direct connections between workers.
//!
//! The gradient is cut into one chunk per rank. Every rank sends each chunk's owner the sums of its largest subtrees; the
//! owner finishes the tree in its fixed order and sends the result to all. So every link is used in both directions, each
//! rank sends and receives about twice the gradient whatever the world size, and the bits are those of the tree.
//!
//! Nothing is sent before all ranks have said `Ready`: until then the others may compute for long, afterwards everyone
//! reads, so a stalled transfer means a broken peer. One task per direction and peer keeps reading while others write, hence
//! two ranks that send much to each other cannot block each other.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::frame::{self, BLOCK_ELEMENTS, Header, Kind, run_hash};
use super::mesh::{self, Endpoint, Link};
use super::tree::{Node, Partial, SlotSums, add, subtrees_of_rank};
use super::{Collective, CollectiveError, GroupConfig, LinkError, Reduction};

/// Blocks that may wait per peer for the owner's sum: one being added, a few on their way, so that reading goes on.
const BLOCKS_AHEAD: usize = 4;

/// The members of one generation, connected with each other.
#[derive(Debug)]
pub(crate) struct Tcp {
    group: Arc<GroupConfig>,
    runtime: Handle,
    cancel: CancellationToken,
    links: Links,
    _cancel_on_drop: DropGuard,
}

#[derive(Debug)]
enum Links {
    Connecting(JoinHandle<Result<Vec<Link>, CollectiveError>>),
    Up(Vec<Link>),
    Broken,
}

impl Tcp {
    /// Begins to connect to the peers of a generation.
    pub(crate) fn form(endpoint: &Endpoint, group: GroupConfig, runtime: &Handle, cancel: CancellationToken) -> Self {
        let room = endpoint.room();
        let cancel = cancel.child_token();
        let connecting = {
            let (group, cancel) = (group.clone(), cancel.clone());
            runtime.spawn(async move {
                cancel.run_until_cancelled(mesh::connect(room, group)).await.unwrap_or(Err(CollectiveError::Cancelled))
            })
        };
        let links = Links::Connecting(connecting);
        let _cancel_on_drop = cancel.clone().drop_guard();
        Self { group: Arc::new(group), runtime: runtime.clone(), cancel, links, _cancel_on_drop }
    }
}

impl Collective for Tcp {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        let runtime = self.runtime.clone();
        let links = std::mem::replace(&mut self.links, Links::Broken);
        let exchange = async {
            let links = match links {
                Links::Up(links) => links,
                Links::Connecting(connecting) => connecting.await.expect("connecting does not panic")?,
                Links::Broken => return Err(CollectiveError::Broken { generation: self.group.generation }),
            };
            Exchange::new(Arc::clone(&self.group), reduction, own).run(links).await
        };
        // When this is dropped, so are its tasks and the halves of the links: cancelling closes every connection.
        let result = runtime.block_on(self.cancel.run_until_cancelled(exchange));
        let (total, links) = result.unwrap_or(Err(CollectiveError::Cancelled))?;
        self.links = Links::Up(links);
        Ok(total)
    }
}

/// One reduction.
struct Exchange {
    group: Arc<GroupConfig>,
    step: u64,
    elements: usize,
    /// The sums of this rank's subtrees, over all elements.
    own: Arc<Vec<Partial>>,
    /// Every rank's subtrees.
    subtrees: Vec<Vec<Node>>,
}

/// What a task brings back when it is done.
enum Done {
    Sent(u32, OwnedWriteHalf),
    Received(u32, OwnedReadHalf, Vec<f32>),
}

impl Exchange {
    fn new(group: Arc<GroupConfig>, reduction: Reduction<'_>, own: Vec<Partial>) -> Self {
        let subtrees: Vec<Vec<Node>> =
            (0..group.addresses.len() as u32).map(|rank| subtrees_of_rank(reduction.slot_ranks, rank)).collect();
        let nodes: Vec<Node> = own.iter().map(|part| part.node).collect();
        assert_eq!(nodes, subtrees[group.rank as usize], "a worker computes the slots that it was given");
        Self { group, step: reduction.step, elements: reduction.elements, own: Arc::new(own), subtrees }
    }

    async fn run(self, links: Vec<Link>) -> Result<(Vec<f32>, Vec<Link>), CollectiveError> {
        let links = self.meet(links).await?;
        let this = Arc::new(self);
        let world_size = this.group.addresses.len();
        let mut tasks = JoinSet::new();
        let (mut partials, mut outboxes) = (HashMap::new(), Vec::new());
        for Link { rank, reader, writer } in links {
            let (partial_sender, partial_receiver) = mpsc::channel(BLOCKS_AHEAD);
            partials.insert(rank, partial_receiver);
            // Holds at most this rank's finished chunk, which lies in memory anyway; frames are shared by all peers.
            let (total_sender, total_receiver) = mpsc::unbounded_channel();
            outboxes.push(total_sender);
            tasks.spawn(Arc::clone(&this).send(rank, writer, total_receiver));
            tasks.spawn(Arc::clone(&this).receive(rank, reader, partial_sender));
        }
        let mut summing = pin!(this.sum_own_chunk(partials, outboxes));
        let mut chunks: Vec<Option<Vec<f32>>> = vec![None; world_size];
        let (mut readers, mut writers) = (HashMap::new(), HashMap::new());
        let mut summed = false;
        while !(summed && tasks.is_empty()) {
            tokio::select! {
                Some(done) = tasks.join_next() => match done.expect("links do not panic")? {
                    Done::Sent(rank, writer) => { writers.insert(rank, writer); }
                    Done::Received(rank, reader, chunk) => {
                        chunks[rank as usize] = Some(chunk);
                        readers.insert(rank, reader);
                    }
                },
                chunk = &mut summing, if !summed => {
                    summed = true;
                    // None when a link broke; its task says how.
                    chunks[this.group.rank as usize] = chunk;
                }
            }
        }
        let total = chunks.into_iter().flatten().flatten().collect::<Vec<f32>>();
        assert_eq!(total.len(), this.elements, "all chunks have arrived");
        let link = |(rank, reader)| {
            let writer = writers.remove(&rank).expect("both directions of a link end");
            Link { rank, reader, writer }
        };
        let mut links: Vec<Link> = readers.into_iter().map(link).collect();
        links.sort_by_key(|link| link.rank);
        Ok((total, links))
    }

    /// Waits until all ranks have computed their slots.
    async fn meet(&self, mut links: Vec<Link>) -> Result<Vec<Link>, CollectiveError> {
        let limits = self.group.limits;
        let ready = frame::encode(self.header(Kind::Ready, self.group.rank, ROOT, 0..0), &[]);
        for link in &mut links {
            frame::write(&mut link.writer, &ready, limits.link).await.map_err(broke(link.rank, "saying ready"))?;
        }
        let mut waiting = JoinSet::new();
        for mut link in links {
            let expected = self.header(Kind::Ready, link.rank, ROOT, 0..0);
            waiting.spawn(async move {
                let ready = frame::read(&mut link.reader, expected, limits.straggler).await;
                ready.map_err(broke(link.rank, "waiting for it to finish its slots")).map(|_| link)
            });
        }
        let mut links = Vec::new();
        while let Some(link) = waiting.join_next().await {
            links.push(link.expect("waiting does not panic")?);
        }
        Ok(links)
    }

    /// Sends a peer this rank's share of the peer's chunk, then this rank's finished chunk.
    async fn send(
        self: Arc<Self>,
        peer: u32,
        mut writer: OwnedWriteHalf,
        mut totals: mpsc::UnboundedReceiver<Arc<Vec<u8>>>,
    ) -> Result<Done, CollectiveError> {
        let limit = self.group.limits.link;
        for block in blocks(self.chunk(peer)) {
            for part in self.own.iter() {
                let header = self.header(Kind::Partial, self.group.rank, part.node, block.clone());
                let frame = frame::encode(header, &part.sum[block.clone()]);
                frame::write(&mut writer, &frame, limit).await.map_err(broke(peer, "sending slot sums"))?;
            }
        }
        while let Some(frame) = totals.recv().await {
            frame::write(&mut writer, &frame, limit).await.map_err(broke(peer, "sending totals"))?;
        }
        Ok(Done::Sent(peer, writer))
    }

    /// Receives a peer's share of this rank's chunk, then the peer's finished chunk.
    async fn receive(
        self: Arc<Self>,
        peer: u32,
        mut reader: OwnedReadHalf,
        partials: mpsc::Sender<Vec<f32>>,
    ) -> Result<Done, CollectiveError> {
        let limit = self.group.limits.link;
        for block in blocks(self.chunk(self.group.rank)) {
            for node in &self.subtrees[peer as usize] {
                let expected = self.header(Kind::Partial, peer, *node, block.clone());
                let values = frame::read(&mut reader, expected, limit).await;
                let values = values.map_err(broke(peer, "receiving slot sums"))?;
                if partials.send(values).await.is_err() {
                    // The sum was given up because another link broke; that one's error is told.
                    std::future::pending::<()>().await;
                }
            }
        }
        let mut chunk = Vec::with_capacity(self.chunk(peer).len());
        for block in blocks(self.chunk(peer)) {
            let expected = self.header(Kind::Total, peer, ROOT, block);
            let values = frame::read(&mut reader, expected, limit).await;
            chunk.extend(values.map_err(broke(peer, "receiving totals"))?);
        }
        Ok(Done::Received(peer, reader, chunk))
    }

    /// Finishes the tree over this rank's chunk, block by block, and passes each block on. None when a link broke.
    async fn sum_own_chunk(
        &self,
        mut partials: HashMap<u32, mpsc::Receiver<Vec<f32>>>,
        outboxes: Vec<mpsc::UnboundedSender<Arc<Vec<u8>>>>,
    ) -> Option<Vec<f32>> {
        // Ranks may own slots in any pattern; the tree is fed from the left.
        let mut parts: Vec<(Node, u32, usize)> = Vec::new();
        for (rank, nodes) in (0_u32..).zip(&self.subtrees) {
            parts.extend(nodes.iter().enumerate().map(|(index, node)| (*node, rank, index)));
        }
        parts.sort_by_key(|(node, ..)| node.first_slot());
        let mut chunk = Vec::with_capacity(self.chunk(self.group.rank).len());
        for block in blocks(self.chunk(self.group.rank)) {
            let mut sums = SlotSums::default();
            for (node, rank, index) in &parts {
                let values = match partials.get_mut(rank) {
                    Some(peer) => peer.recv().await?,
                    None => self.own[*index].sum[block.clone()].to_vec(),
                };
                sums.push(*node, values, add);
            }
            let total = sums.into_total(add).unwrap_or_else(|| vec![0.0; block.len()]);
            let header = self.header(Kind::Total, self.group.rank, ROOT, block);
            let frame = Arc::new(frame::encode(header, &total));
            for outbox in &outboxes {
                outbox.send(Arc::clone(&frame)).ok()?;
            }
            chunk.extend(total);
        }
        Some(chunk)
    }

    /// The elements that a rank finishes.
    fn chunk(&self, rank: u32) -> Range<usize> {
        let world_size = self.group.addresses.len() as u128;
        let start = |rank: u32| (u128::from(rank) * self.elements as u128 / world_size) as usize;
        start(rank)..start(rank + 1)
    }

    fn header(&self, kind: Kind, rank: u32, node: Node, block: Range<usize>) -> Header {
        Header {
            kind,
            run: run_hash(&self.group.run_id),
            generation: self.group.generation,
            world_size: self.group.addresses.len() as u32,
            rank,
            step: self.step,
            node,
            offset: block.start as u64,
            payload_bytes: block.len() as u32 * 4,
        }
    }
}

/// Stands for the whole tree in frames that are not about a subtree.
pub(super) const ROOT: Node = Node { level: u32::MAX, index: 0 };

fn blocks(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(BLOCK_ELEMENTS).map(move |start| start..(start + BLOCK_ELEMENTS).min(end))
}

fn broke(rank: u32, doing: &'static str) -> impl Fn(LinkError) -> CollectiveError {
    move |source| CollectiveError::Link { rank, doing, source }
}
