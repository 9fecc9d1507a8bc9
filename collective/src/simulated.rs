//! Links in memory that break in every way that real ones do, at a frame of one's choice.
//!
//! The collective on them is the real one, so what it makes of a fault is what it makes of it on a network. A write is one
//! frame and arrives whole; where it goes wrong is said by a [`Fault`].

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::exchange::Link;
use crate::frame::{self, HEADER_BYTES, Header};
use crate::wire::Wire;
use crate::{GroupConfig, Limits, Tcp};

/// Bytes that may be on their way; a writer waits for room, as with a socket's buffers.
const ROOM: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(20);

/// What goes wrong on the way from one rank to another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Fault {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Count of frames that pass before: 0 is the sender's `Ready`.
    pub(crate) frame: usize,
    pub(crate) kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FaultKind {
    /// Arrives late.
    Delay(Duration),
    /// Does not arrive.
    Lose,
    /// Arrives twice.
    Repeat,
    /// As many bytes arrive, then the connection closes.
    Cut(usize),
    /// Neither this frame nor a later one arrives, and no side is told: a half-open connection.
    Stall,
    /// A bit, counted from the frame's first and round its end, arrives as its opposite.
    Flip(usize),
    /// Arrives as the same frame of the generation before: a member that has missed the new one.
    Older,
    /// A bit of the payload is another before the checksum is made: damage that no checksum sees.
    Forge(usize),
}

/// One direction of a link.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    state: Mutex<PipeState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PipeState {
    bytes: VecDeque<u8>,
    frames: usize,
    is_closed: bool,
    is_stalled: bool,
    faults: Vec<(usize, FaultKind)>,
    /// Faults that have happened.
    hits: usize,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn wait<'a>(&self, state: MutexGuard<'a, PipeState>) -> MutexGuard<'a, PipeState> {
        self.changed.wait_timeout(state, PATIENCE).expect("no holder of this lock panics").0
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn hits(&self) -> usize {
        self.lock().hits
    }
}

/// One end of a link.
#[derive(Debug)]
struct MemoryWire {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
}

impl Wire for MemoryWire {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.incoming.lock();
        if state.bytes.is_empty() && !state.is_closed {
            state = self.incoming.wait(state);
        }
        let count = buffer.len().min(state.bytes.len());
        if count == 0 && !state.is_closed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for (to, from) in buffer.iter_mut().zip(state.bytes.drain(..count)) {
            *to = from;
        }
        self.incoming.changed.notify_all();
        Ok(count)
    }

    fn peek(&self) -> io::Result<usize> {
        let mut state = self.incoming.lock();
        if state.bytes.is_empty() && !state.is_closed {
            state = self.incoming.wait(state);
        }
        match (state.bytes.is_empty(), state.is_closed) {
            (false, _) => Ok(1),
            (true, true) => Ok(0),
            (true, false) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.outgoing.lock();
        if state.bytes.len() >= ROOM && !state.is_closed {
            state = self.outgoing.wait(state);
        }
        if state.is_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.bytes.len() >= ROOM {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let frame: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        let index = state.frames;
        state.frames += 1;
        let fault = state.faults.iter().find(|(at, _)| *at == index).map(|(_, kind)| *kind);
        state.hits += usize::from(fault.is_some());
        if let Some(FaultKind::Delay(delay)) = fault {
            drop(state);
            std::thread::sleep(delay);
            state = self.outgoing.lock();
        }
        state.is_stalled |= fault == Some(FaultKind::Stall);
        if !state.is_stalled {
            state.bytes.extend(arriving(&frame, fault));
        }
        drop(state);
        self.outgoing.changed.notify_all();
        if let Some(FaultKind::Cut(_)) = fault {
            self.close();
        }
        Ok(frame.len())
    }

    fn close(&self) {
        self.incoming.close();
        self.outgoing.close();
    }
}

/// What arrives of a frame.
fn arriving(frame: &[u8], fault: Option<FaultKind>) -> Vec<u8> {
    let mut arriving = frame.to_vec();
    let header = || {
        let bytes = frame[..HEADER_BYTES - 4].try_into().expect("a write is a whole frame");
        Header::from_bytes(bytes).expect("a write begins with a header")
    };
    let reseal = |header: Header, payload: &[u8]| {
        let values: Vec<f32> = payload.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
        [&frame::seal(header, &values), frame::bytes_of(&values)].concat()
    };
    match fault {
        None | Some(FaultKind::Delay(_) | FaultKind::Stall) => {}
        Some(FaultKind::Lose) => arriving.clear(),
        Some(FaultKind::Repeat) => arriving.extend(frame),
        Some(FaultKind::Cut(bytes)) => arriving.truncate(bytes),
        Some(FaultKind::Flip(bit)) => arriving[bit / 8 % frame.len()] ^= 1 << (bit % 8),
        Some(FaultKind::Older) => {
            let header = header();
            arriving = reseal(Header { generation: header.generation - 1, ..header }, &frame[HEADER_BYTES..]);
        }
        Some(FaultKind::Forge(bit)) => {
            let payload = &mut arriving[HEADER_BYTES..];
            payload[bit / 8] ^= 1 << (bit % 8);
            arriving = reseal(header(), payload);
        }
    }
    arriving
}

/// The pipes of a generation's links.
pub(crate) struct Network {
    /// By sender and receiver.
    pipes: Vec<Vec<Arc<Pipe>>>,
}

impl Network {
    pub(crate) fn new(world_size: usize, faults: &[Fault]) -> Self {
        let row = || (0..world_size).map(|_| Arc::new(Pipe::default())).collect();
        let pipes: Vec<Vec<Arc<Pipe>>> = (0..world_size).map(|_| row()).collect();
        for fault in faults {
            pipes[fault.from as usize][fault.to as usize].lock().faults.push((fault.frame, fault.kind));
        }
        Self { pipes }
    }

    /// Forms the members of a generation on these links.
    pub(crate) fn form(&self, generation: u64, limits: Limits, runtime: &Handle) -> Vec<(Tcp, CancellationToken)> {
        let world_size = self.pipes.len();
        let member = |rank: usize| {
            let peers = (0..world_size).filter(|peer| *peer != rank);
            let link = |peer: usize| {
                let (incoming, outgoing) = (Arc::clone(&self.pipes[peer][rank]), Arc::clone(&self.pipes[rank][peer]));
                Link { rank: peer as u32, wire: Arc::new(MemoryWire { incoming, outgoing }) }
            };
            let links: Vec<Link> = peers.map(link).collect();
            let group = GroupConfig {
                run_id: "simulated".to_owned(),
                generation,
                rank: rank as u32,
                addresses: vec![String::new(); world_size],
                limits,
            };
            let cancel = CancellationToken::new();
            (Tcp::over(std::future::ready(Ok(links)), group, runtime, cancel.clone()), cancel)
        };
        (0..world_size).map(member).collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Pipe>> {
        self.pipes.iter().flatten()
    }

    /// Count of link ends that somebody still holds.
    pub(crate) fn held(&self) -> usize {
        self.all().map(|pipe| Arc::strong_count(pipe) - 1).sum()
    }
}
