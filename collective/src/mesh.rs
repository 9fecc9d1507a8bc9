//! Connections between the workers of a generation: one per pair, made by the higher rank.
//!
//! A worker listens at one address for as long as it lives. A peer may hear of a new generation first and connect before
//! this worker knows of it, so callers wait in a small room until their generation is formed here.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::exchange::Link;
use crate::frame::{self, Header, Kind, run_hash};
use crate::state::StateCall;
use crate::tree::Node;
use crate::wire::TcpWire;
use crate::{CollectiveError, GroupConfig, LinkError};

/// How long a caller may take to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Callers that may be saying who they are at one time; more wait in the kernel's queue.
const GREETING_MAX: usize = 64;
/// Callers that may wait for their generation: a rank has fewer peers than this, and strangers push out the oldest.
const WAITING_MAX: usize = 256;
/// Joiners that may wait to be answered; the coordinator sends a worker one or two at a time.
const STATE_CALLS_MAX: usize = 16;
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Where peers reach this worker's collectives, for all generations.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    room: Arc<Room>,
    state_calls: Option<mpsc::Receiver<StateCall>>,
    _accepting: DropGuard,
}

impl Endpoint {
    /// Listens at an address; port 0 takes any free one.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let room = Arc::new(Room::default());
        let closed = CancellationToken::new();
        let (joiners, state_calls) = mpsc::channel(STATE_CALLS_MAX);
        tokio::spawn(closed.clone().run_until_cancelled_owned(accept(listener, Arc::clone(&room), joiners)));
        Ok(Self { address, room, state_calls: Some(state_calls), _accepting: closed.drop_guard() })
    }

    /// Returns the calls of joiners that want the state. None the second time.
    pub fn take_state_calls(&mut self) -> Option<mpsc::Receiver<StateCall>> {
        self.state_calls.take()
    }

    /// Returns the address with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }
}

/// Callers whose generation is not formed yet.
#[derive(Debug, Default)]
pub(crate) struct Room {
    callers: Mutex<Callers>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Callers {
    waiting: Vec<(Header, TcpStream)>,
    /// The last generation that has ended here, and its run.
    ended: Option<(u64, u64)>,
}

impl Callers {
    fn come_too_late(&self, hello: &Header) -> bool {
        self.ended.is_some_and(|(generation, run)| run == hello.run && hello.generation <= generation)
    }
}

impl Room {
    fn enter(&self, hello: Header, stream: TcpStream) {
        let mut callers = self.callers.lock().expect("no holder of this lock panics");
        if callers.come_too_late(&hello) {
            return;
        }
        if callers.waiting.len() == WAITING_MAX {
            callers.waiting.remove(0);
        }
        callers.waiting.push((hello, stream));
        drop(callers);
        self.arrived.notify_waiters();
    }

    /// Sends away whoever calls, or is still to call, for a generation that has ended here.
    pub(crate) fn end(&self, group: &GroupConfig) {
        let mut callers = self.callers.lock().expect("no holder of this lock panics");
        let run = run_hash(&group.run_id);
        let last = callers.ended.filter(|(_, other)| *other == run).map_or(0, |(generation, _)| generation);
        let last = last.max(group.generation);
        callers.ended = Some((last, run));
        callers.waiting.retain(|(hello, _)| hello.run != run || hello.generation > last);
    }

    /// Waits for the caller with this hello. Callers of earlier generations are sent away.
    async fn called_by(&self, hello: Header) -> TcpStream {
        loop {
            let arrived = self.arrived.notified();
            {
                let waiting = &mut self.callers.lock().expect("no holder of this lock panics").waiting;
                waiting.retain(|(other, _)| other.run == hello.run && other.generation >= hello.generation);
                // The newest of equals: a caller that retried has given up its earlier connection.
                if let Some(index) = waiting.iter().rposition(|(other, _)| *other == hello) {
                    return waiting.swap_remove(index).1;
                }
            }
            arrived.await;
        }
    }
}

async fn accept(listener: TcpListener, room: Arc<Room>, joiners: mpsc::Sender<StateCall>) {
    let mut greetings = JoinSet::new();
    let places = Arc::new(Semaphore::new(GREETING_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        while greetings.try_join_next().is_some() {}
        let Ok((mut stream, caller)) = listener.accept().await else {
            // Out of file descriptors, most likely: others may close some.
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        };
        let (room, joiners) = (Arc::clone(&room), joiners.clone());
        greetings.spawn(async move {
            match frame::read_hello(&mut stream, HELLO_LIMIT).await {
                // Dropped when too many wait or nobody answers; the joiner then turns to another peer.
                Ok(hello) if hello.kind == Kind::Fetch => drop(joiners.try_send(StateCall::new(hello, stream))),
                Ok(hello) => room.enter(hello, stream),
                Err(error) => tracing::debug!(%caller, %error, "refused a connection to the collective"),
            }
            drop(place);
        });
    }
}

/// Connects to all peers of a generation, both ways confirmed. Links are in the order of their ranks.
pub(crate) async fn connect(room: Arc<Room>, group: GroupConfig) -> Result<Vec<Link>, CollectiveError> {
    let mut joining = JoinSet::new();
    for rank in (0..group.addresses.len() as u32).filter(|rank| *rank != group.rank) {
        let (room, group) = (Arc::clone(&room), group.clone());
        joining.spawn(async move {
            if rank < group.rank { call(&group, rank).await } else { answer(&room, &group, rank).await }
        });
    }
    let mut links = Vec::new();
    while let Some(link) = joining.join_next().await {
        links.push(link.expect("connecting does not panic")?);
    }
    links.sort_by_key(|link| link.rank);
    Ok(links)
}

/// The hello of a rank.
fn hello(group: &GroupConfig, rank: u32) -> Header {
    Header {
        kind: Kind::Hello,
        run: run_hash(&group.run_id),
        generation: group.generation,
        world_size: group.addresses.len() as u32,
        rank,
        step: 0,
        node: Node::leaf(0),
        offset: 0,
        payload_bytes: 0,
    }
}

async fn call(group: &GroupConfig, rank: u32) -> Result<Link, CollectiveError> {
    let address = &group.addresses[rank as usize];
    let deadline = Instant::now() + group.limits.link;
    let failed = |source| CollectiveError::Connect { rank, address: address.clone(), source };
    loop {
        match try_call(group, rank, address).await {
            Ok(stream) => return link(rank, stream, group.limits.link).map_err(failed),
            // It was there, and has ended this generation.
            Err(error @ LinkError::Closed) => return Err(failed(error)),
            Err(error) if Instant::now() + RETRY_INTERVAL >= deadline => return Err(failed(error)),
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

async fn try_call(group: &GroupConfig, rank: u32, address: &str) -> Result<TcpStream, LinkError> {
    let limit = group.limits.link;
    let connected = tokio::time::timeout(limit, TcpStream::connect(address)).await;
    let mut stream = connected.map_err(|_| LinkError::Silent { limit })?.map_err(LinkError::Io)?;
    frame::write(&mut stream, hello(group, group.rank), &[], limit).await?;
    frame::read(&mut stream, hello(group, rank), limit).await?;
    Ok(stream)
}

async fn answer(room: &Room, group: &GroupConfig, rank: u32) -> Result<Link, CollectiveError> {
    let limit = group.limits.link;
    let failed = |source| CollectiveError::Link { rank, doing: "connecting", source };
    let called = tokio::time::timeout(limit, room.called_by(hello(group, rank))).await;
    let mut stream = called.map_err(|_| CollectiveError::Absent { rank, limit })?;
    frame::write(&mut stream, hello(group, group.rank), &[], limit).await.map_err(failed)?;
    link(rank, stream, limit).map_err(failed)
}

fn link(rank: u32, stream: TcpStream, limit: Duration) -> Result<Link, LinkError> {
    set_options(&stream, limit)?;
    let wire = stream.into_std().and_then(TcpWire::new).map_err(LinkError::Io)?;
    Ok(Link { rank, wire: Arc::new(wire) })
}

/// Sets the options of a link: small frames leave at once, and the kernel finds a host that is gone, also while
/// nothing is sent.
pub(crate) fn set_options(stream: &TcpStream, limit: Duration) -> Result<(), LinkError> {
    let probe_interval = (limit / 4).max(Duration::from_secs(1));
    let keepalive = TcpKeepalive::new().with_time(probe_interval).with_interval(probe_interval).with_retries(3);
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)).map_err(LinkError::Io)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(limit)).map_err(LinkError::Io)?;
    Ok(())
}
