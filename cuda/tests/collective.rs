//! NCCL's collective, exact and fast, passes the suite of all collectives, over the simulated library.

use std::sync::Mutex;

use ballast_collective::Limits;
use ballast_collective::conformance::{self, Implementation, Member};
use ballast_cuda::nccl::fake::FakeWorld;
use ballast_cuda::nccl::{NcclCollective, Order, UNIQUE_ID_BYTES, UniqueId};
use tokio_util::sync::CancellationToken;

struct OverFake {
    order: Order,
    worlds: Mutex<Vec<FakeWorld>>,
}

impl OverFake {
    fn new(order: Order) -> Self {
        Self { order, worlds: Mutex::default() }
    }
}

impl Implementation for OverFake {
    fn name(&self) -> &str {
        "NCCL (simulated)"
    }

    fn form(&self, generation: u64, world_size: usize, limits: Limits) -> Vec<Member> {
        let world = FakeWorld::in_real_time();
        self.worlds.lock().unwrap().push(world.clone());
        let id = UniqueId([(generation % 256) as u8; UNIQUE_ID_BYTES]);
        let member = |rank| {
            let cancel = CancellationToken::new();
            let place = (generation, rank, world_size as u32);
            let collective =
                NcclCollective::form(world.rank(vec![]), place, &id, self.order, limits, cancel.clone()).unwrap();
            Member { collective: Box::new(collective), cancel }
        };
        (0..world_size as u32).map(member).collect()
    }

    fn world_sizes(&self) -> Vec<usize> {
        vec![1, 2, 3, 4, 5, 8]
    }

    fn is_exact(&self) -> bool {
        self.order == Order::Exact
    }

    /// Libraries that are still there, and with them their communicators.
    fn remains(&self) -> usize {
        self.worlds.lock().unwrap().iter().map(FakeWorld::alive).sum()
    }
}

#[test]
fn exact_conforms() {
    conformance::check(&OverFake::new(Order::Exact));
}

#[test]
fn fast_conforms() {
    conformance::check(&OverFake::new(Order::Fast));
}
