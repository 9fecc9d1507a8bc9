//! The state machine of a communicator against the simulated library: what goes right, and everything that can go wrong.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use ballast_cuda::nccl::fake::{Fake, FakeBuffer, FakeWorld, Fault};
use ballast_cuda::nccl::{Group, GroupConfig, Limits, NcclError, Raw, Transfer, UNIQUE_ID_BYTES, UniqueId};

/// Long enough, in simulated time, for threads of a busy machine; what is to run into a limit gets a short one.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_secs(1);

fn id(number: u8) -> UniqueId {
    UniqueId([number; UNIQUE_ID_BYTES])
}

fn config(rank: u32, world_size: u32, operation: Duration) -> GroupConfig {
    GroupConfig { generation: 7, rank, world_size, limits: Limits { form: LONG, operation, abort: SHORT } }
}

fn never() -> bool {
    false
}

fn filled(raw: &Fake, values: &[f32]) -> FakeBuffer {
    let buffer = raw.allocate(values.len()).unwrap();
    raw.upload(values, &buffer, 0).unwrap();
    buffer
}

fn values(raw: &Fake, buffer: &FakeBuffer) -> Vec<f32> {
    let mut values = vec![0.0; raw.len(buffer)];
    raw.download(buffer, 0, &mut values).unwrap();
    values
}

/// Runs `work` on every rank, each on a thread of its own, and returns what they return.
fn on_ranks<T: Send>(world_size: u32, work: impl Fn(u32) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn({
                    let work = &work;
                    move || work(rank)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_get_the_sum_bucket_by_bucket() {
    let world = FakeWorld::default();
    let sums = on_ranks(3, |rank| {
        let mut group = Group::form(world.rank(vec![]), config(rank, 3, LONG), &id(1)).unwrap();
        let raw = group.raw().clone();
        let buffer = filled(&raw, &[rank as f32, 10.0, 1.0, 2.0, -1.0]);
        group.all_reduce(&buffer, 0..4, 3, &never).unwrap();
        values(&raw, &buffer)
    });
    assert!(sums.iter().all(|sum| *sum == [3.0, 30.0, 3.0, 6.0, -1.0]), "{sums:?}");
}

#[test]
fn an_exchange_brings_each_rank_what_it_was_sent() {
    let world = FakeWorld::default();
    let received = on_ranks(2, |rank| {
        let mut group = Group::form(world.rank(vec![]), config(rank, 2, LONG), &id(1)).unwrap();
        let raw = group.raw().clone();
        let (own, other) = (filled(&raw, &[rank as f32, 5.0]), filled(&raw, &[9.0; 3]));
        let peer = 1 - rank;
        let transfers =
            [Transfer::Send { from: &own, range: 0..2, peer }, Transfer::Receive { to: &other, range: 1..3, peer }];
        group.exchange(&transfers, LONG, &never).unwrap();
        values(&raw, &other)
    });
    assert_eq!(received, [[9.0, 1.0, 5.0], [9.0, 0.0, 5.0]]);
}

/// One rank works without faults, the other with those given; returns how each fared.
fn fare(faults: Vec<Fault>, limit: Duration) -> (Result<(), NcclError>, Result<(), NcclError>, FakeWorld) {
    let world = FakeWorld::default();
    let ends = on_ranks(2, |rank| {
        let faults = if rank == 1 { faults.clone() } else { vec![] };
        let raw = world.rank(faults);
        let mut group = Group::form(raw, config(rank, 2, limit), &id(1))?;
        let buffer = group.raw().allocate(4).unwrap();
        group.all_reduce(&buffer, 0..4, 4, &never)?;
        Ok(())
    });
    let [well, ill] = <[_; 2]>::try_from(ends).unwrap();
    (well, ill, world)
}

#[test]
fn a_peer_that_hangs_is_left_at_the_limit_by_both() {
    let (well, ill, world) = fare(vec![Fault::Hang], SHORT);
    // Whoever reaches the limit first ends its communicator, which the other may see before it reaches its own.
    let late = NcclError::TimedOut { doing: "adding up gradients", limit: SHORT };
    let ends = [well.unwrap_err(), ill.unwrap_err()];
    assert!(ends.contains(&late), "{ends:?}");
    assert!(ends.iter().all(|end| *end == late || matches!(end, NcclError::Failed { .. })), "{ends:?}");
    assert_eq!(world.aborted(&id(1)).len(), 2, "both have ended their communicators");
}

#[test]
fn a_peer_that_never_comes_is_noticed_while_forming() {
    let world = FakeWorld::default();
    let limits = Limits { form: SHORT, operation: LONG, abort: SHORT };
    let mut group = Group::form(world.rank(vec![]), GroupConfig { limits, ..config(0, 2, LONG) }, &id(1)).unwrap();
    let end = group.wait_ready(&never);
    assert_eq!(end, Err(NcclError::TimedOut { doing: "forming the group", limit: SHORT }));
    assert_eq!(world.aborted(&id(1)), [0]);
    assert_eq!(group.wait_ready(&never), Err(NcclError::Ended { generation: 7 }));
}

#[test]
fn every_call_that_fails_is_an_error_of_its_name_and_ends_the_communicator() {
    for call in ["ncclCommGetAsyncError", "ncclAllReduce", "cuStreamQuery"] {
        let (_, ill, world) = fare(vec![Fault::Call(call)], SHORT);
        let Err(NcclError::Failed { source, .. }) = ill else { panic!("{call}: {ill:?}") };
        assert_eq!(source.call, call);
        assert!(world.aborted(&id(1)).contains(&1), "{call}");
    }
    let (_, ill, _) = fare(vec![Fault::AsyncError("unhandled system error: socket closed")], SHORT);
    assert!(ill.unwrap_err().hint().unwrap().contains("NCCL_SOCKET_IFNAME"));
    let raw = FakeWorld::default().rank(vec![Fault::Call("ncclCommInitRankConfig")]);
    assert!(matches!(Group::form(raw, config(0, 2, SHORT), &id(1)), Err(NcclError::Failed { .. })));
}

#[test]
fn a_group_that_was_begun_is_ended_though_a_send_failed() {
    for call in ["ncclGroupStart", "ncclSend", "ncclRecv", "ncclGroupEnd"] {
        let raw = FakeWorld::default().rank(vec![Fault::Call(call)]);
        let mut group = Group::form(raw, config(0, 1, SHORT), &id(1)).unwrap();
        let buffer = group.raw().allocate(1).unwrap();
        let transfers = [
            Transfer::Send { from: &buffer, range: 0..1, peer: 0 },
            Transfer::Receive { to: &buffer, range: 0..1, peer: 0 },
        ];
        let Err(NcclError::Failed { source, .. }) = group.exchange(&transfers, LONG, &never) else { panic!("{call}") };
        assert_eq!(source.call, call);
    }
}

#[test]
fn the_coordinators_word_ends_a_wait() {
    let world = FakeWorld::default();
    let raw = world.rank(vec![]);
    let mut group = Group::form(raw, config(0, 2, LONG), &id(1)).unwrap();
    let asked = AtomicU32::new(0);
    let stop = || asked.fetch_add(1, Ordering::Relaxed) >= 100;
    assert_eq!(group.wait_ready(&stop), Err(NcclError::Cancelled { doing: "forming the group" }));
    assert_eq!(world.aborted(&id(1)), [0]);
}

#[test]
fn a_library_that_does_not_abort_is_told_apart() {
    let raw = FakeWorld::default().rank(vec![Fault::WedgedAbort]);
    let mut group = Group::form(raw, config(0, 2, LONG), &id(1)).unwrap();
    let error = group.abort().unwrap_err();
    assert_eq!(error, NcclError::Wedged { limit: SHORT });
    assert!(error.hint().unwrap().contains("end this worker"));
    assert_eq!(group.abort(), Ok(()), "there is nothing left to end");
}

#[test]
fn after_an_abort_the_next_generation_forms_with_a_new_id() {
    let world = FakeWorld::default();
    let sums = on_ranks(2, |rank| {
        let raw = world.rank(vec![]);
        let mut old = Group::form(raw.clone(), config(rank, 2, LONG), &id(1)).unwrap();
        old.wait_ready(&never).unwrap();
        old.abort().unwrap();
        let mut group = Group::form(raw.clone(), config(rank, 2, LONG), &id(2)).unwrap();
        let buffer = filled(&raw, &[1.0, 2.0]);
        group.all_reduce(&buffer, 0..2, 1, &never).unwrap();
        values(&raw, &buffer)
    });
    assert_eq!(sums, [[2.0, 4.0]; 2]);
}

/// A rank that fails does not wait for others to end either: dropping a group aborts it.
#[test]
fn a_dropped_group_is_aborted() {
    let world = FakeWorld::default();
    drop(Group::form(world.rank(vec![]), config(0, 2, LONG), &id(1)).unwrap());
    assert_eq!(world.aborted(&id(1)), [0]);
}
