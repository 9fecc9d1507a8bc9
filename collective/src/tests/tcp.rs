//! The exchange over sockets, and how generations are formed and refused.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::conformance::cases::{Case, bits};
use crate::conformance::{self, Implementation, Member};
use crate::exchange::Link;
use crate::frame::{self, BLOCK_ELEMENTS, Header, Kind, ROOT, run_hash};
use crate::mesh::{self, Endpoint};
use crate::tree::Node;
use crate::{Collective, CollectiveError, GroupConfig, Limits, LinkError, form};

const LIMIT: Duration = Duration::from_secs(20);

/// Endpoints on loopback and the groups that they form.
struct Cluster {
    runtime: Runtime,
    endpoints: Vec<Endpoint>,
    /// What accepting takes, for good.
    tasks_at_rest: usize,
}

impl Cluster {
    fn new(world_size: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bind = || runtime.block_on(Endpoint::bind("127.0.0.1:0".parse().unwrap())).unwrap();
        let endpoints: Vec<Endpoint> = (0..world_size).map(|_| bind()).collect();
        let tasks_at_rest = runtime.metrics().num_alive_tasks();
        Self { runtime, endpoints, tasks_at_rest }
    }

    fn group(&self, generation: u64, rank: usize, world_size: usize, limits: Limits) -> GroupConfig {
        let addresses = self.endpoints[..world_size].iter().map(|endpoint| endpoint.address().to_string()).collect();
        GroupConfig { run_id: "conformance".to_owned(), generation, rank: rank as u32, addresses, limits }
    }

    fn member(&self, group: GroupConfig) -> Member {
        let cancel = CancellationToken::new();
        let endpoint = &self.endpoints[group.rank as usize];
        Member { collective: form(endpoint, group, self.runtime.handle(), cancel.clone()), cancel }
    }

    fn of_three(&self, generation: u64, rank: usize, limit: Duration) -> Box<dyn Collective> {
        self.member(self.group(generation, rank, 3, Limits { link: limit, straggler: limit })).collective
    }

    /// Links of a member that the test itself speaks for.
    fn puppet(&self, rank: usize) -> Vec<Link> {
        let group = self.group(1, rank, 3, Limits { link: LIMIT, straggler: LIMIT });
        self.runtime.block_on(mesh::connect(self.endpoints[rank].room(), group)).unwrap()
    }
}

impl Implementation for Cluster {
    fn name(&self) -> &str {
        "tcp"
    }

    fn world_sizes(&self) -> Vec<usize> {
        (1..=self.endpoints.len()).collect()
    }

    fn form(&self, generation: u64, world_size: usize, limits: Limits) -> Vec<Member> {
        (0..world_size).map(|rank| self.member(self.group(generation, rank, world_size, limits))).collect()
    }

    fn remains(&self) -> usize {
        self.runtime.metrics().num_alive_tasks() - self.tasks_at_rest
    }
}

#[test]
fn tcp_conforms() {
    conformance::check(&Cluster::new(9));
}

fn case() -> Case {
    Case::dealt(3, 3, 3, 3_000_000)
}

/// Runs ranks 0 and 1 of three against a rank 2 that does what the test says; returns their errors.
fn errors_beside(puppet: impl FnOnce(&Cluster, Vec<Link>), limit: Duration) -> Vec<CollectiveError> {
    let cluster = Cluster::new(3);
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..2)
            .map(|rank| {
                let mut collective = cluster.of_three(1, rank, limit);
                scope.spawn(move || case().reduce(collective.as_mut(), 0, rank).unwrap_err())
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

fn close(links: &[Link]) {
    links.iter().for_each(|link| link.wire.close());
}

fn header(kind: Kind, node: Node, elements: usize) -> Header {
    Header {
        kind,
        run: run_hash("conformance"),
        generation: 1,
        world_size: 3,
        rank: 2,
        step: 0,
        node,
        offset: 0,
        payload_bytes: elements as u32 * 4,
    }
}

/// Says on both links that rank 2 is ready.
fn say_ready(links: &[Link]) {
    let ready = frame::seal(header(Kind::Ready, ROOT, 0), &[]);
    links.iter().for_each(|link| frame::send(&*link.wire, &ready, &[], LIMIT).unwrap());
}

#[test]
fn a_peer_that_leaves_ends_the_reduction_at_once() {
    let start = Instant::now();
    let errors = errors_beside(|_, links| close(&links), LIMIT);
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Closed));
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

/// Also while another rank is still computing.
#[test]
fn a_peer_that_leaves_before_the_slowest_is_ready_ends_the_reduction_at_once() {
    let cluster = Cluster::new(3);
    let start = Instant::now();
    let (mut waiting, _computing) = (cluster.of_three(1, 0, LIMIT), cluster.of_three(1, 1, LIMIT));
    std::thread::scope(|scope| {
        let run = scope.spawn(|| case().reduce(waiting.as_mut(), 0, 0).unwrap_err());
        let links = cluster.puppet(2);
        say_ready(&links);
        close(&links);
        assert_names_rank_2(&[run.join().unwrap()], |source| matches!(source, LinkError::Closed));
    });
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

#[test]
fn a_peer_that_leaves_half_way_ends_the_reduction_at_once() {
    let start = Instant::now();
    let errors = errors_beside(
        |_, links| {
            // One block of its slot's sum, of the many that belong there.
            say_ready(&links);
            let block = [0.0; BLOCK_ELEMENTS];
            let sealed = frame::seal(header(Kind::Partial, Node::leaf(2), BLOCK_ELEMENTS), &block);
            frame::send(&*links[0].wire, &sealed, &block, LIMIT).unwrap();
            close(&links);
        },
        LIMIT,
    );
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Closed));
    assert!(start.elapsed() < LIMIT / 2, "{:?}", start.elapsed());
}

/// As a stopped process is: its kernel takes what fits into the buffers, nothing comes back.
#[test]
fn a_peer_that_stops_ends_the_reduction_at_the_deadline() {
    let limit = Duration::from_secs(1);
    for is_ready in [false, true] {
        let start = Instant::now();
        let mut kept = Vec::new();
        let stop = |_: &Cluster, links: Vec<Link>| {
            if is_ready {
                say_ready(&links);
            }
            kept = links;
        };
        let errors = errors_beside(stop, limit);
        assert_names_rank_2(&errors, |source| matches!(source, LinkError::Silent { .. }));
        assert!(start.elapsed() >= limit && start.elapsed() < LIMIT, "{:?}", start.elapsed());
    }
}

/// A byte now and then is no progress.
#[test]
fn a_peer_that_trickles_ends_the_reduction_at_the_deadline() {
    let limit = Duration::from_secs(1);
    let start = Instant::now();
    let errors = errors_beside(
        |_, links| {
            say_ready(&links);
            let block = [0.0; BLOCK_ELEMENTS];
            let sealed = frame::seal(header(Kind::Partial, Node::leaf(2), BLOCK_ELEMENTS), &block);
            for byte in sealed.chunks(1) {
                // Fails when the others have had enough, which is the point.
                let _ = links.iter().try_for_each(|link| link.wire.write(&[std::io::IoSlice::new(byte)]).map(drop));
                std::thread::sleep(limit / 20);
            }
        },
        limit,
    );
    assert_names_rank_2(&errors, |source| matches!(source, LinkError::Silent { .. }));
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn a_peer_of_an_earlier_generation_is_not_let_in() {
    let cluster = Cluster::new(3);
    let limit = Duration::from_millis(300);
    let _stale = [cluster.of_three(1, 1, LIMIT), cluster.of_three(1, 2, LIMIT)];
    let error = case().reduce(cluster.of_three(2, 0, limit).as_mut(), 0, 0).unwrap_err();
    assert!(matches!(error, CollectiveError::Absent { .. }), "{error:?}");
}

/// Strangers that say nothing, or nonsense, hold nobody up.
#[test]
fn strangers_at_the_endpoint_change_nothing() {
    let cluster = Cluster::new(3);
    let strangers: Vec<TcpStream> = cluster.runtime.block_on(async {
        let mut strangers = Vec::new();
        for number in 0..20 {
            let mut stranger = TcpStream::connect(cluster.endpoints[number % 3].address()).await.unwrap();
            if number % 2 == 0 {
                stranger
                    .write_all(b"GET / HTTP/1.1\r\nHost: a worker\r\nAccept: everything\r\n\r\n.......")
                    .await
                    .unwrap();
            }
            strangers.push(stranger);
        }
        strangers
    });
    let case = Case::dealt(3, 3, 3, 1000);
    std::thread::scope(|scope| {
        for rank in 0..3 {
            let (mut collective, case) = (cluster.of_three(1, rank, LIMIT), &case);
            scope.spawn(move || {
                let sum = case.reduce(collective.as_mut(), 0, rank).unwrap();
                assert_eq!(bits(&sum), bits(&case.sum(0)));
            });
        }
    });
    drop(strangers);
}
