//! The state machine of a generation's communicator.
//!
//! Forming → ready → ended. Nothing here waits without a limit, nothing goes on after a failure: whatever went wrong,
//! the communicator is aborted at once, so that no peer waits for this rank either, and the next generation forms a new
//! one with a new id.

use std::ops::Range;
use std::time::Duration;

use super::{NcclError, Progress, Raw, RawError, UniqueId};

/// Who forms a group, and how long each wait may take.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Number of the worker set.
    pub generation: u64,
    /// This worker's rank.
    pub rank: u32,
    /// Number of ranks.
    pub world_size: u32,
    /// The waits.
    pub limits: Limits,
}

/// How long a group waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For all ranks to form the communicator.
    pub form: Duration,
    /// For one sum by the library: the slowest rank's computing counts.
    pub operation: Duration,
    /// For the library to end a communicator.
    pub abort: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { form: Duration::from_secs(120), operation: Duration::from_secs(30 * 60), abort: Duration::from_secs(10) }
    }
}

/// One send or receive of a group of them.
#[derive(Debug)]
pub enum Transfer<'a, B> {
    /// To a peer.
    Send {
        /// The values.
        from: &'a B,
        /// Which of them.
        range: Range<usize>,
        /// To whom.
        peer: u32,
    },
    /// From a peer.
    Receive {
        /// Where they go.
        to: &'a B,
        /// Which place.
        range: Range<usize>,
        /// From whom.
        peer: u32,
    },
}

/// A generation's communicator.
#[derive(Debug)]
pub struct Group<R: Raw> {
    raw: R,
    comm: Option<R::Comm>,
    is_ready: bool,
    is_wedged: bool,
    started: Duration,
    config: GroupConfig,
}

const FORMING: &str = "forming the group";
/// Between two looks: the first are close together, a collective of small tensors takes that long.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(1)];
const CLOSE_LOOKS: u32 = 50;

impl<R: Raw> Group<R> {
    /// Starts to form the communicator of a generation; [`wait_ready`](Self::wait_ready) ends it.
    ///
    /// # Errors
    /// When the library refuses at once.
    pub fn form(raw: R, config: GroupConfig, id: &UniqueId) -> Result<Self, NcclError> {
        let started = raw.now();
        let comm = raw
            .start_comm(id, config.world_size, config.rank)
            .map_err(|source| NcclError::Failed { doing: FORMING, source })?;
        Ok(Self { raw, comm: Some(comm), is_ready: false, is_wedged: false, started, config })
    }

    /// The library, for memory and sums of the caller's own.
    pub fn raw(&self) -> &R {
        &self.raw
    }

    /// This worker's rank.
    pub fn rank(&self) -> u32 {
        self.config.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> u32 {
        self.config.world_size
    }

    /// Waits until all ranks have come; returns at once from the second time on. `stop` is asked between looks.
    ///
    /// # Errors
    /// When a rank is missing at the limit, the library fails, or `stop` says so. The communicator is then aborted.
    pub fn wait_ready(&mut self, stop: &dyn Fn() -> bool) -> Result<(), NcclError> {
        if self.is_ready {
            return Ok(());
        }
        let limit = self.config.limits.form;
        let deadline = self.started + limit;
        self.watch(FORMING, limit, deadline, stop, |raw, comm| raw.comm_progress(comm))?;
        self.is_ready = true;
        Ok(())
    }

    /// Adds up a part of a buffer over all ranks in place (`fast`: the library chooses the order), in buckets of at most
    /// `bucket` elements, and waits for it.
    ///
    /// # Errors
    /// As [`wait_ready`](Self::wait_ready).
    ///
    /// # Panics
    /// When `bucket` is 0.
    pub fn all_reduce(
        &mut self,
        buffer: &R::Buffer,
        range: Range<usize>,
        bucket: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), NcclError> {
        const DOING: &str = "adding up gradients";
        self.wait_ready(stop)?;
        let limit = self.config.limits.operation;
        for start in range.clone().step_by(bucket) {
            let part = start..(start + bucket).min(range.end);
            self.submit(DOING, limit, stop, |raw, comm| raw.all_reduce(comm, buffer, part))?;
        }
        self.finish(DOING, limit, stop)
    }

    /// Sends and receives all at once, and waits until all have arrived, at most as long as `limit`.
    ///
    /// # Errors
    /// As [`wait_ready`](Self::wait_ready).
    pub fn exchange(
        &mut self,
        transfers: &[Transfer<'_, R::Buffer>],
        limit: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), NcclError> {
        const DOING: &str = "exchanging gradients";
        self.wait_ready(stop)?;
        if transfers.is_empty() {
            return Ok(());
        }
        self.submit(DOING, limit, stop, |raw, comm| {
            raw.start_group()?;
            // A group that was begun has to be ended, whatever one of its calls said.
            let all = transfers.iter().try_for_each(|transfer| match transfer {
                Transfer::Send { from, range, peer } => raw.send(comm, from, range.clone(), *peer),
                Transfer::Receive { to, range, peer } => raw.receive(comm, to, range.clone(), *peer),
            });
            let ended = raw.end_group();
            all.and(ended)
        })?;
        self.finish(DOING, limit, stop)
    }

    /// Waits until all that was started has ended, also what the caller started on the stream by itself.
    ///
    /// # Errors
    /// As [`wait_ready`](Self::wait_ready).
    pub fn wait(&mut self, limit: Duration, stop: &dyn Fn() -> bool) -> Result<(), NcclError> {
        self.wait_ready(stop)?;
        self.finish("adding up gradients", limit, stop)
    }

    /// Ends the communicator, as a peer's loss or the coordinator's word asks for. Further calls fail.
    ///
    /// # Errors
    /// When the library does not end it in time: then only the end of the process does.
    pub fn abort(&mut self) -> Result<(), NcclError> {
        let limit = self.config.limits.abort;
        let has_ended = self.comm.take().is_none_or(|comm| self.raw.abort(comm, limit));
        self.is_wedged |= !has_ended;
        if has_ended { Ok(()) } else { Err(NcclError::Wedged { limit }) }
    }

    /// Whether a communicator was given up that the library did not end.
    pub fn is_wedged(&self) -> bool {
        self.is_wedged
    }

    /// Makes a call, and waits until the library has taken it in: until then no other may be made.
    fn submit(
        &mut self,
        doing: &'static str,
        limit: Duration,
        stop: &dyn Fn() -> bool,
        call: impl FnOnce(&R, &R::Comm) -> Result<(), RawError>,
    ) -> Result<(), NcclError> {
        let comm = self.comm.as_ref().ok_or(NcclError::Ended { generation: self.config.generation })?;
        if let Err(source) = call(&self.raw, comm) {
            return Err(self.end_after(NcclError::Failed { doing, source }));
        }
        self.watch(doing, limit, self.raw.now() + limit, stop, |raw, comm| raw.comm_progress(comm))
    }

    /// Waits for the stream; a peer's failure shows at the communicator, and the stream would never end.
    fn finish(&mut self, doing: &'static str, limit: Duration, stop: &dyn Fn() -> bool) -> Result<(), NcclError> {
        self.watch(doing, limit, self.raw.now() + limit, stop, |raw, comm| {
            raw.comm_progress(comm)?;
            raw.stream_progress()
        })
    }

    fn watch(
        &mut self,
        doing: &'static str,
        limit: Duration,
        deadline: Duration,
        stop: &dyn Fn() -> bool,
        look: impl Fn(&R, &R::Comm) -> Result<Progress, RawError>,
    ) -> Result<(), NcclError> {
        let comm = self.comm.as_ref().ok_or(NcclError::Ended { generation: self.config.generation })?;
        let mut looks = 0;
        let error = loop {
            match look(&self.raw, comm) {
                Ok(Progress::Done) => return Ok(()),
                Ok(Progress::Running) if stop() => break NcclError::Cancelled { doing },
                Ok(Progress::Running) if self.raw.now() >= deadline => break NcclError::TimedOut { doing, limit },
                Ok(Progress::Running) => self.raw.pause(PAUSES[usize::from(looks >= CLOSE_LOOKS)]),
                Err(source) => break NcclError::Failed { doing, source },
            }
            looks += 1;
        };
        Err(self.end_after(error))
    }

    /// Aborts after a failure. That the library is wedged matters more than why.
    fn end_after(&mut self, error: NcclError) -> NcclError {
        self.abort().err().unwrap_or(error)
    }
}

impl<R: Raw> Drop for Group<R> {
    fn drop(&mut self) {
        // Nothing can be done about a library that is wedged, and the process may be ending.
        let _ = self.abort();
    }
}
