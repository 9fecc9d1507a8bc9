//! NCCL's collective, exact and fast, passes the suite of all collectives, over the simulated library.

use std::sync::Mutex;

use ballast_collective::Limits;
use ballast_collective::conformance::{self, Implementation, Member};
use ballast_collective::tree::Partial;
use ballast_collective::{Collective, CollectiveError, Reduction};
use ballast_cuda::nccl::fake::{Fake, FakeWorld, Fault};
use ballast_cuda::nccl::{NcclCollective, Order, Raw, UNIQUE_ID_BYTES, UniqueId};
use tokio_util::sync::CancellationToken;

struct OverFake {
    order: Order,
    /// Whether gradients lie on the device already.
    in_place: bool,
    worlds: Mutex<Vec<FakeWorld>>,
}

impl OverFake {
    fn new(order: Order, in_place: bool) -> Self {
        Self { order, in_place, worlds: Mutex::default() }
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
            let raw = world.rank(vec![]);
            let collective = NcclCollective::form(raw.clone(), place, &id, self.order, limits, cancel.clone()).unwrap();
            let collective: Box<dyn Collective> =
                if self.in_place { Box::new(OnDevice { raw, collective }) } else { Box::new(collective) };
            Member { collective, cancel }
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

/// Gradients that lie on the device, seen from the host: what the suite gives is brought there first.
struct OnDevice {
    raw: Fake,
    collective: NcclCollective<Fake>,
}

impl Collective for OnDevice {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        let upload = |values: &[f32]| {
            let buffer = self.raw.allocate(values.len()).unwrap();
            self.raw.upload(values, &buffer, 0).unwrap();
            buffer
        };
        let own: Vec<_> = own.iter().map(|part| Partial { node: part.node, sum: upload(&part.sum) }).collect();
        let into = own.first().map_or_else(|| upload(&vec![0.0; reduction.elements]), |part| part.sum.clone());
        self.collective.reduce(reduction, &own, &into)?;
        let mut sum = vec![0.0; reduction.elements];
        self.raw.download(&into, 0, &mut sum).unwrap();
        Ok(sum)
    }
}

#[test]
fn exact_conforms() {
    conformance::check(&OverFake::new(Order::Exact, false));
}

#[test]
fn fast_conforms() {
    conformance::check(&OverFake::new(Order::Fast, false));
}

#[test]
fn exact_conforms_where_gradients_lie_on_the_device() {
    conformance::check(&OverFake::new(Order::Exact, true));
}

#[test]
fn fast_conforms_where_gradients_lie_on_the_device() {
    conformance::check(&OverFake::new(Order::Fast, true));
}

#[test]
fn what_cannot_be_ended_is_said_to_be_wedged() {
    let limit = std::time::Duration::from_millis(50);
    let limits = Limits { link: limit, straggler: limit };
    for (faults, is_wedged) in [(vec![], false), (vec![Fault::WedgedAbort], true), (vec![Fault::Hang], true)] {
        let (world, id) = (FakeWorld::default(), UniqueId([1; UNIQUE_ID_BYTES]));
        let raw = world.rank(faults.clone());
        let cancel = CancellationToken::new();
        // Of two ranks; the other never comes.
        let mut collective = NcclCollective::form(raw.clone(), (1, 0, 2), &id, Order::Fast, limits, cancel).unwrap();
        let buffer = raw.allocate(4).unwrap();
        let own = [Partial { node: ballast_collective::tree::Node::leaf(0), sum: buffer.clone() }];
        let reduction = Reduction { step: 1, slot_ranks: &[0, 1], elements: 4 };
        assert!(collective.reduce(reduction, &own, &buffer).is_err());
        assert_eq!(collective.is_wedged(), is_wedged, "{faults:?}");
    }
}
