//! A simulated NCCL: ranks are threads of one process, memory is the host's, and faults come on demand.
//!
//! Like the real one it is silent about a peer that never comes, knows no deadlines, and wants a group's sends matched by
//! receives. Time is simulated: it passes when a rank pauses, so that a hang of half an hour takes no time to test.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Progress, Raw, RawError, UNIQUE_ID_BYTES, UniqueId};

/// What goes wrong, at which rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The call of this name fails.
    Call(&'static str),
    /// The rank's operations never end, and it does not notice.
    Hang,
    /// Forming the communicator never ends.
    NeverForms,
    /// Aborting never ends.
    WedgedAbort,
    /// The communicator reports an error of a peer once an operation runs.
    AsyncError(&'static str),
}

/// What all ranks share: the network between them.
#[derive(Debug, Clone, Default)]
pub struct FakeWorld(Arc<(Mutex<Shared>, Condvar)>, Option<Instant>);

#[derive(Debug, Default)]
struct Shared {
    /// Ids that were made.
    ids: u8,
    /// Ranks that have come, by id.
    joined: BTreeMap<u8, Vec<u32>>,
    /// Ranks that have aborted, by id.
    aborted: BTreeMap<u8, Vec<u32>>,
    /// Messages on their way, by id, sender and receiver.
    mail: BTreeMap<(u8, u32, u32), VecDeque<Vec<f32>>>,
    /// What ranks gave to all-reduces, by id and number.
    sums: BTreeMap<(u8, u64), BTreeMap<u32, Vec<f32>>>,
}

impl FakeWorld {
    /// A world in which time is real.
    pub fn in_real_time() -> Self {
        Self(Arc::default(), Some(Instant::now()))
    }

    /// Number of ranks' libraries and communicators' users that are still there.
    pub fn alive(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }

    /// Returns the library as one rank sees it.
    pub fn rank(&self, faults: Vec<Fault>) -> Fake {
        Fake(Arc::new(Inner { world: self.clone(), faults, time: Mutex::default(), pending: Mutex::default() }))
    }

    /// How many ids ranks have come together by.
    pub fn formed(&self) -> usize {
        self.lock().joined.len()
    }

    /// Ranks that have aborted the communicator of an id.
    pub fn aborted(&self, id: &UniqueId) -> Vec<u32> {
        self.lock().aborted.get(&id.0[0]).cloned().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0.0)
    }
}

/// One rank's simulated library.
#[derive(Debug, Clone)]
pub struct Fake(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    world: FakeWorld,
    faults: Vec<Fault>,
    time: Mutex<Duration>,
    pending: Mutex<Vec<Pending>>,
}

#[derive(Debug)]
enum Pending {
    Receive { to: FakeBuffer, range: Range<usize>, peer: u32, id: u8, rank: u32 },
    Sum { to: FakeBuffer, range: Range<usize>, number: u64, id: u8, world_size: u32 },
}

/// A simulated communicator.
#[derive(Debug)]
pub struct FakeComm {
    id: u8,
    rank: u32,
    world_size: u32,
    sums: AtomicU64,
}

/// Simulated memory of a device.
#[derive(Debug, Clone)]
pub struct FakeBuffer(Arc<Mutex<Vec<f32>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fake {
    fn call(&self, call: &'static str) -> Result<(), RawError> {
        if self.0.faults.contains(&Fault::Call(call)) {
            return Err(RawError { call, code: 3, text: "internal error (injected)".to_owned() });
        }
        Ok(())
    }

    fn has(&self, fault: &Fault) -> bool {
        self.0.faults.contains(fault)
    }

    /// Ends what can be ended of the operations that were started.
    fn advance(&self) {
        let mut shared = self.0.world.lock();
        lock(&self.0.pending).retain(|pending| match pending {
            Pending::Receive { to, range, peer, id, rank } => {
                let Some(values) = shared.mail.get_mut(&(*id, *peer, *rank)).and_then(VecDeque::pop_front) else {
                    return true;
                };
                assert_eq!(values.len(), range.len(), "sends and receives have one length");
                lock(&to.0)[range.clone()].copy_from_slice(&values);
                false
            }
            Pending::Sum { to, range, number, id, world_size } => {
                let given = shared.sums.get(&(*id, *number)).filter(|given| given.len() == *world_size as usize);
                let Some(given) = given else { return true };
                let mut to = lock(&to.0);
                // From the last rank to the first: another order than the tree's, as NCCL's may be.
                for (i, to) in to[range.clone()].iter_mut().enumerate() {
                    *to = given.values().rev().map(|values| values[i]).sum();
                }
                false
            }
        });
        self.0.world.0.1.notify_all();
    }
}

impl Raw for Fake {
    type Comm = FakeComm;
    type Buffer = FakeBuffer;

    fn make_id(&self) -> Result<UniqueId, RawError> {
        self.call("ncclGetUniqueId")?;
        let mut shared = self.0.world.lock();
        shared.ids += 1;
        Ok(UniqueId([shared.ids; UNIQUE_ID_BYTES]))
    }

    fn start_comm(&self, id: &UniqueId, world_size: u32, rank: u32) -> Result<FakeComm, RawError> {
        self.call("ncclCommInitRankConfig")?;
        if !self.has(&Fault::NeverForms) {
            self.0.world.lock().joined.entry(id.0[0]).or_default().push(rank);
        }
        Ok(FakeComm { id: id.0[0], rank, world_size, sums: AtomicU64::new(0) })
    }

    fn comm_progress(&self, comm: &FakeComm) -> Result<Progress, RawError> {
        self.call("ncclCommGetAsyncError")?;
        let joined = self.0.world.lock().joined.get(&comm.id).map_or(0, Vec::len);
        if joined < comm.world_size as usize {
            return Ok(Progress::Running);
        }
        // As with a real peer whose process has ended: what it has sent still arrives, what it has not never will.
        let shared = self.0.world.lock();
        let gone = lock(&self.0.pending).iter().find_map(|pending| match pending {
            Pending::Receive { peer, id, rank, .. } => {
                let has_left = shared.aborted.get(id).is_some_and(|aborted| aborted.contains(peer));
                let has_sent = shared.mail.get(&(*id, *peer, *rank)).is_some_and(|mail| !mail.is_empty());
                (has_left && !has_sent).then_some(*peer)
            }
            Pending::Sum { id, number, .. } => {
                let given = shared.sums.get(&(*id, *number));
                let mut left = shared.aborted.get(id).into_iter().flatten();
                left.find(|peer| given.is_none_or(|given| !given.contains_key(peer))).copied()
            }
        });
        drop(shared);
        if let Some(peer) = gone {
            let text = format!("remote process exited or there was a network error (rank {peer})");
            return Err(RawError { call: "ncclCommGetAsyncError", code: 6, text });
        }
        let failed = self.0.faults.iter().find_map(|fault| match fault {
            Fault::AsyncError(text) if !lock(&self.0.pending).is_empty() => Some(*text),
            _ => None,
        });
        let error = |text: &str| RawError { call: "ncclCommGetAsyncError", code: 6, text: text.to_owned() };
        failed.map_or(Ok(Progress::Done), |text| Err(error(text)))
    }

    fn stream_progress(&self) -> Result<Progress, RawError> {
        self.call("cuStreamQuery")?;
        if self.has(&Fault::Hang) {
            return Ok(Progress::Running);
        }
        self.advance();
        Ok(if lock(&self.0.pending).is_empty() { Progress::Done } else { Progress::Running })
    }

    fn start_group(&self) -> Result<(), RawError> {
        self.call("ncclGroupStart")
    }

    fn end_group(&self) -> Result<(), RawError> {
        self.call("ncclGroupEnd")
    }

    fn send(&self, comm: &FakeComm, from: &FakeBuffer, range: Range<usize>, peer: u32) -> Result<(), RawError> {
        self.call("ncclSend")?;
        if !self.has(&Fault::Hang) {
            let values = lock(&from.0)[range].to_vec();
            self.0.world.lock().mail.entry((comm.id, comm.rank, peer)).or_default().push_back(values);
        }
        Ok(())
    }

    fn receive(&self, comm: &FakeComm, to: &FakeBuffer, range: Range<usize>, peer: u32) -> Result<(), RawError> {
        self.call("ncclRecv")?;
        let pending = Pending::Receive { to: to.clone(), range, peer, id: comm.id, rank: comm.rank };
        lock(&self.0.pending).push(pending);
        Ok(())
    }

    fn all_reduce(&self, comm: &FakeComm, buffer: &FakeBuffer, range: Range<usize>) -> Result<(), RawError> {
        self.call("ncclAllReduce")?;
        let number = comm.sums.fetch_add(1, Ordering::Relaxed);
        if !self.has(&Fault::Hang) {
            let values = lock(&buffer.0)[range.clone()].to_vec();
            self.0.world.lock().sums.entry((comm.id, number)).or_default().insert(comm.rank, values);
        }
        let (id, world_size) = (comm.id, comm.world_size);
        lock(&self.0.pending).push(Pending::Sum { to: buffer.clone(), range, number, id, world_size });
        Ok(())
    }

    fn abort(&self, comm: FakeComm, limit: Duration) -> bool {
        if self.has(&Fault::WedgedAbort) {
            self.pause(limit);
            return false;
        }
        lock(&self.0.pending).retain(|pending| {
            let (Pending::Receive { id, .. } | Pending::Sum { id, .. }) = pending;
            *id != comm.id
        });
        self.0.world.lock().aborted.entry(comm.id).or_default().push(comm.rank);
        true
    }

    fn allocate(&self, elements: usize) -> Result<FakeBuffer, RawError> {
        self.call("cuMemAlloc")?;
        Ok(FakeBuffer(Arc::new(Mutex::new(vec![f32::NAN; elements]))))
    }

    fn len(&self, buffer: &FakeBuffer) -> usize {
        lock(&buffer.0).len()
    }

    fn upload(&self, from: &[f32], to: &FakeBuffer, start: usize) -> Result<(), RawError> {
        self.call("cuMemcpyHtoD")?;
        lock(&to.0)[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn download(&self, from: &FakeBuffer, start: usize, to: &mut [f32]) -> Result<(), RawError> {
        self.call("cuMemcpyDtoH")?;
        to.copy_from_slice(&lock(&from.0)[start..start + to.len()]);
        Ok(())
    }

    fn add(&self, left: (&FakeBuffer, usize), right: (&FakeBuffer, usize), count: usize) -> Result<(), RawError> {
        self.call("cuLaunchKernel")?;
        let right = lock(&right.0.0)[right.1..right.1 + count].to_vec();
        let mut values = lock(&left.0.0);
        values[left.1..left.1 + count].iter_mut().zip(right).for_each(|(left, right)| *left += right);
        Ok(())
    }

    fn copy(&self, from: (&FakeBuffer, usize), to: (&FakeBuffer, usize), count: usize) -> Result<(), RawError> {
        self.call("cuMemcpyDtoD")?;
        let values = lock(&from.0.0)[from.1..from.1 + count].to_vec();
        lock(&to.0.0)[to.1..to.1 + count].copy_from_slice(&values);
        Ok(())
    }

    fn now(&self) -> Duration {
        self.0.world.1.map_or_else(|| *lock(&self.0.time), |began| began.elapsed())
    }

    fn pause(&self, moment: Duration) {
        // Simulated time passes; the other threads get a real moment, which ends when any of them has done something.
        // A thousand times faster than real: a rank waits for a peer that runs, and reaches its limit soon otherwise.
        *lock(&self.0.time) += moment;
        let moment = if self.0.world.1.is_some() { moment } else { moment / 1000 };
        let shared = self.0.world.lock();
        let _ = self.0.world.0.1.wait_timeout(shared, moment);
    }
}
