//! NCCL that cannot be ended, over the simulated library.

use std::time::Duration;

use ballast_collective::{Collective, CollectiveError, Limits, Reduction};
use ballast_cuda::nccl::fake::{FakeWorld, Fault};
use ballast_cuda::nccl::{NcclCollective, Order, UNIQUE_ID_BYTES, UniqueId};
use tokio_util::sync::CancellationToken;

/// The caller has to end its process then, which is another matter than a group that broke.
#[test]
fn a_library_that_does_not_let_go_is_told_apart_also_when_the_generation_was_cancelled() {
    for is_cancelled in [false, true] {
        let world = FakeWorld::default();
        let faults = vec![Fault::WedgedAbort, Fault::Call("ncclCommGetAsyncError")];
        let limits = Limits::new(Duration::from_secs(30));
        let (id, cancel) = (UniqueId([1; UNIQUE_ID_BYTES]), CancellationToken::new());
        let mut member =
            NcclCollective::form(world.rank(faults), (1, 0, 2), &id, Order::Fast, limits, cancel.clone()).unwrap();
        let reduction = Reduction { step: 0, slot_ranks: &[1, 1], elements: 4 };
        let canceller = is_cancelled.then(|| std::thread::spawn(move || cancel.cancel()));
        let error = member.all_reduce(reduction, vec![]).unwrap_err();
        if let Some(thread) = canceller {
            thread.join().unwrap();
        }
        let is_early = is_cancelled && matches!(error, CollectiveError::Cancelled);
        assert!(is_early || matches!(error, CollectiveError::Wedged { library: "NCCL", .. }), "{error:?}");
    }
}
