//! What a reduction asks of a connection: read, write, close, and never wait for long.
//!
//! Blocking calls on threads rather than tasks: a block goes from the gradient to the kernel and from the kernel into the
//! gradient, without a buffer in between, and a thread that waits for one peer holds no other up.

use std::fmt::Debug;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::error::LinkError;

/// How long a call on a wire waits at most. Deadlines are looked at in between, so they are kept to within this.
const PATIENCE: Duration = Duration::from_millis(100);

/// Both directions of a connection to a peer. One thread reads, one writes, any may close it.
pub(crate) trait Wire: Debug + Send + Sync {
    /// Reads some bytes: 0 when the peer has closed, `WouldBlock` or `TimedOut` when nothing came for a while.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Says what [`read`](Self::read) would, with a byte at most, and takes nothing.
    fn peek(&self) -> io::Result<usize>;

    /// Writes some bytes, from the first buffers on.
    fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends both directions: whoever reads or writes returns at once, here and at the peer.
    fn close(&self);
}

/// A wire over TCP.
#[derive(Debug)]
pub(crate) struct TcpWire(TcpStream);

impl TcpWire {
    /// Takes over a connection whose options are set.
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }
}

impl Wire for TcpWire {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn peek(&self) -> io::Result<usize> {
        self.0.peek(&mut [0])
    }

    fn write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(buffers)
    }

    fn close(&self) {
        // Fails when the connection is gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// When a wait that begins now has lasted too long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    limit: Duration,
    end: Instant,
}

impl Deadline {
    /// The wait may take this long.
    pub(crate) fn after(limit: Duration) -> Self {
        Self { limit, end: Instant::now() + limit }
    }

    /// Says what becomes of a call that moved nothing, or only a part.
    fn judge(self, moved: io::Result<usize>) -> Result<usize, LinkError> {
        let moved = match moved {
            Ok(0) => return Err(LinkError::Closed),
            Ok(moved) => moved,
            Err(error) if is_patience_over(&error) => 0,
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= self.end { Err(LinkError::Silent { limit: self.limit }) } else { Ok(moved) }
    }
}

/// Whether a call on a wire only says that it can be made again.
pub(crate) fn is_patience_over(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Fills a buffer before the deadline.
pub(crate) fn read_exact(wire: &dyn Wire, mut buffer: &mut [u8], deadline: Deadline) -> Result<(), LinkError> {
    while !buffer.is_empty() {
        let moved = wire.read(buffer);
        let is_all = matches!(moved, Ok(moved) if moved == buffer.len());
        if is_all {
            break; // in time or not: it is here
        }
        buffer = &mut buffer[deadline.judge(moved)?..];
    }
    Ok(())
}

/// Writes two buffers, one behind the other, before the deadline.
pub(crate) fn write_all(wire: &dyn Wire, head: &[u8], body: &[u8], deadline: Deadline) -> Result<(), LinkError> {
    let slices = &mut [IoSlice::new(head), IoSlice::new(body)];
    let mut slices = if body.is_empty() { &mut slices[..1] } else { &mut slices[..] };
    while !slices.is_empty() {
        let moved = deadline.judge(wire.write(slices))?;
        IoSlice::advance_slices(&mut slices, moved);
    }
    Ok(())
}
