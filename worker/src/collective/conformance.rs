//! What every collective must do, run over each of them.

use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::frame::{self, BLOCK_ELEMENTS, Header, Kind, run_hash};
use super::mesh::{self, Endpoint, Link};
use super::tcp::ROOT;
use super::tree::{Node, Partial, SlotSums, add};
use super::{Collective, CollectiveError, GroupConfig, Limits, LinkError, Reduction, form};

const LIMIT: Duration = Duration::from_secs(20);

/// Endpoints on loopback and the groups that they form.
struct Cluster {
    runtime: Runtime,
    endpoints: Vec<Endpoint>,
    cancels: Vec<CancellationToken>,
}

impl Cluster {
    fn new(world_size: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bind = || runtime.block_on(Endpoint::bind("127.0.0.1:0".parse().unwrap())).unwrap();
        let endpoints: Vec<Endpoint> = (0..world_size).map(|_| bind()).collect();
        let cancels = vec![CancellationToken::new(); world_size];
        Self { runtime, endpoints, cancels }
    }

    fn group(&self, generation: u64, rank: usize, link: Duration) -> GroupConfig {
        GroupConfig {
            run_id: "conformance".to_owned(),
            generation,
            rank: rank as u32,
            addresses: self.endpoints.iter().map(|endpoint| endpoint.address().to_string()).collect(),
            limits: Limits { link, straggler: link },
        }
    }

    fn member(&self, generation: u64, rank: usize, link: Duration) -> Box<dyn Collective> {
        let group = self.group(generation, rank, link);
        form(&self.endpoints[rank], group, self.runtime.handle(), self.cancels[rank].clone())
    }

    /// Links of a member that the test itself speaks for.
    fn puppet(&self, rank: usize) -> Vec<Link> {
        let connecting = mesh::connect(self.endpoints[rank].room(), self.group(1, rank, LIMIT));
        self.runtime.block_on(connecting).unwrap()
    }
}

/// A gradient whose sum depends on the order of additions.
fn gradient(slot: u32, elements: usize) -> Vec<f32> {
    let mut state = u64::from(slot) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / 16_777_216.0 - 0.5) * 10_f32.powi((state >> 32) as i32 % 5)
    };
    (0..elements).map(|_| next()).collect()
}

/// The definition of the sum.
fn recursive_sum(lo: u32, hi: u32, elements: usize) -> Vec<f32> {
    match hi - lo {
        0 => vec![0.0; elements],
        1 => gradient(lo, elements),
        length => {
            let middle = lo + length.next_power_of_two() / 2;
            let (left, right) = (recursive_sum(lo, middle, elements), recursive_sum(middle, hi, elements));
            left.iter().zip(&right).map(|(left, right)| left + right).collect()
        }
    }
}

fn own_parts(slot_ranks: &[u32], rank: usize, elements: usize) -> Vec<Partial> {
    let mut sums = SlotSums::default();
    for slot in (0..slot_ranks.len()).filter(|slot| slot_ranks[*slot] as usize == rank) {
        sums.push(Node::leaf(slot as u32), gradient(slot as u32, elements), add);
    }
    sums.into_parts()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Deals the filled slots as the coordinator does, by all slots of the step.
fn deal(slots: u32, filled: u32, world_size: usize) -> Vec<u32> {
    (0..filled).map(|slot| slot * world_size as u32 / slots).collect()
}

fn conforms(world_size: usize) {
    let cluster = Cluster::new(world_size);
    let mut cases: Vec<(Vec<u32>, usize)> = Vec::new();
    for slots in 1..=9 {
        for filled in 1..=slots {
            cases.push((deal(slots, filled, world_size), 37 + slots as usize));
        }
    }
    // Sizes smaller than the world, and several blocks per chunk with a rest; ranks in no order.
    for elements in [1, 5, 65_536, 700_001] {
        cases.push((deal(9, 8, world_size), elements));
        cases.push(((0..7).map(|slot| (slot * 5 + 3) % world_size as u32).collect(), elements));
    }
    std::thread::scope(|scope| {
        for rank in 0..world_size {
            let (cases, mut collective) = (&cases, cluster.member(1, rank, LIMIT));
            scope.spawn(move || {
                for (step, (slot_ranks, elements)) in cases.iter().enumerate() {
                    let reduction = Reduction { step: step as u64, slot_ranks, elements: *elements };
                    let sum = collective.all_reduce(reduction, own_parts(slot_ranks, rank, *elements)).unwrap();
                    let expected = recursive_sum(0, slot_ranks.len() as u32, *elements);
                    assert_eq!(bits(&sum), bits(&expected), "{slot_ranks:?}, {elements} elements, rank {rank}");
                }
            });
        }
    });
}

#[test]
fn one_worker_adds_along_the_tree() {
    conforms(1);
}

#[test]
fn two_workers_add_along_the_tree() {
    conforms(2);
}

#[test]
fn three_workers_add_along_the_tree() {
    conforms(3);
}

#[test]
fn four_and_five_workers_add_along_the_tree() {
    conforms(4);
    conforms(5);
}

#[test]
fn eight_workers_add_along_the_tree() {
    conforms(8);
}

const SLOT_RANKS: [u32; 3] = [0, 1, 2];

fn reduce(collective: &mut dyn Collective, rank: usize, elements: usize) -> Result<Vec<f32>, CollectiveError> {
    let reduction = Reduction { step: 0, slot_ranks: &SLOT_RANKS, elements };
    collective.all_reduce(reduction, own_parts(&SLOT_RANKS, rank, elements))
}

/// Runs ranks 0 and 1 of three against a rank 2 that does what the test says; returns their errors.
fn errors_beside(puppet: impl FnOnce(&Cluster, Vec<Link>), link: Duration) -> Vec<CollectiveError> {
    let cluster = Cluster::new(3);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2)
            .map(|rank| {
                let mut collective = cluster.member(1, rank, link);
                scope.spawn(move || reduce(collective.as_mut(), rank, 3_000_000).unwrap_err())
            })
            .collect();
        puppet(&cluster, cluster.puppet(2));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

fn assert_names_rank_2(errors: &[CollectiveError], matches: impl Fn(&LinkError) -> bool) {
    // The first to notice leaves, so the other may see that one leave.
    let named =
        |error: &CollectiveError| matches!(error, CollectiveError::Link { rank: 2, source, .. } if matches(source));
    assert!(errors.iter().any(named), "{errors:?}");
}

#[test]
fn a_peer_that_leaves_ends_the_reduction_at_once() {
    let start = Instant::now();
    let errors = errors_beside(|_, links| drop(links), LIMIT);
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Closed));
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

#[test]
fn a_peer_that_leaves_half_way_ends_the_reduction_at_once() {
    let start = Instant::now();
    let errors = errors_beside(
        |cluster, mut links| {
            // Says that it is ready and sends one block of its slot's sum, of the many that belong there.
            let header = |kind, node, payload_bytes| Header {
                kind,
                run: run_hash("conformance"),
                generation: 1,
                world_size: 3,
                rank: 2,
                step: 0,
                node,
                offset: 0,
                payload_bytes,
            };
            let ready = frame::encode(header(Kind::Ready, ROOT, 0), &[]);
            let bytes = BLOCK_ELEMENTS as u32 * 4;
            let partial = frame::encode(header(Kind::Partial, Node::leaf(2), bytes), &[0.0; BLOCK_ELEMENTS]);
            cluster.runtime.block_on(async {
                frame::write(&mut links[0].writer, &ready, LIMIT).await.unwrap();
                frame::write(&mut links[1].writer, &ready, LIMIT).await.unwrap();
                frame::write(&mut links[0].writer, &partial, LIMIT).await.unwrap();
            });
        },
        LIMIT,
    );
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Closed));
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

#[test]
fn a_peer_that_falls_silent_ends_the_reduction_at_the_deadline() {
    let limit = Duration::from_millis(300);
    let start = Instant::now();
    let mut kept = Vec::new();
    let errors = errors_beside(|_, links| kept = links, limit);
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Silent { .. }));
    assert!(start.elapsed() >= limit && start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn cancelling_ends_a_wait_at_once() {
    let cluster = Cluster::new(3);
    let _silent = (cluster.member(1, 1, LIMIT), cluster.member(1, 2, LIMIT));
    let mut collective = cluster.member(1, 0, LIMIT);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| reduce(collective.as_mut(), 0, 100).unwrap_err());
        cluster.cancels[0].cancel();
        assert!(matches!(run.join().unwrap(), CollectiveError::Cancelled));
    });
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

#[test]
fn a_peer_of_an_earlier_generation_is_not_let_in() {
    let cluster = Cluster::new(3);
    let limit = Duration::from_millis(300);
    let _stale = [cluster.member(1, 1, LIMIT), cluster.member(1, 2, LIMIT)];
    let error = reduce(cluster.member(2, 0, limit).as_mut(), 0, 100).unwrap_err();
    assert!(matches!(error, CollectiveError::Absent { .. }), "{error:?}");
}

#[test]
fn a_new_generation_works_after_an_aborted_one() {
    let cluster = Cluster::new(3);
    drop((0..3).map(|rank| cluster.member(1, rank, LIMIT)).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let mut collective = cluster.member(2, rank, LIMIT);
            scope.spawn(move || {
                let sum = reduce(collective.as_mut(), rank, 1000).unwrap();
                assert_eq!(bits(&sum), bits(&recursive_sum(0, 3, 1000)));
            });
        }
    });
}
