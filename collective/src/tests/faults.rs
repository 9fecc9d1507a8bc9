//! The exchange on links that fail.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::conformance::cases::{Case, bits};
use crate::conformance::{self, Implementation, Member, PATIENT};
use crate::simulated::{Fault, FaultKind, Network};
use crate::{Collective, CollectiveError, Limits, LinkError};

/// Without faults, it is one more implementation.
struct Simulated {
    runtime: Runtime,
    networks: Mutex<Vec<Network>>,
}

impl Implementation for Simulated {
    fn name(&self) -> &str {
        "simulated"
    }

    fn form(&self, generation: u64, world_size: usize, limits: Limits) -> Vec<Member> {
        let network = Network::new(world_size, &[]);
        let members = network.form(generation, limits, self.runtime.handle());
        self.networks.lock().unwrap().push(network);
        let boxed = |(collective, cancel)| Member { collective: Box::new(collective) as Box<dyn Collective>, cancel };
        members.into_iter().map(boxed).collect()
    }

    fn remains(&self) -> usize {
        self.networks.lock().unwrap().iter().map(Network::held).sum::<usize>()
            + self.runtime.metrics().num_alive_tasks()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn simulated_conforms() {
    conformance::check(&Simulated { runtime: runtime(), networks: Mutex::default() });
}

/// Enough for a stall to be one, short enough to wait for.
const SHORT: Limits = Limits { link: Duration::from_millis(200), straggler: Duration::from_millis(400) };

type Outcome = Result<Vec<f32>, CollectiveError>;

/// Reduces once over faulty links, then checks that nothing is left of the generation.
fn reduce(case: &Case, world_size: usize, faults: &[Fault], limits: Limits) -> (Vec<Outcome>, usize) {
    let (runtime, network) = (runtime(), Network::new(world_size, faults));
    let members = network.form(7, limits, runtime.handle());
    let outcomes = std::thread::scope(|scope| {
        let reduce = |(rank, (mut member, _)): (usize, (crate::Tcp, _))| case.reduce(&mut member, 0, rank);
        let runs: Vec<_> = members.into_iter().enumerate().map(|entry| scope.spawn(move || reduce(entry))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let start = Instant::now();
    while network.held() + runtime.metrics().num_alive_tasks() > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "something holds on to the links");
        std::thread::yield_now();
    }
    (outcomes, network.all().map(|pipe| pipe.hits()).sum())
}

/// Three ranks with a slot each; a block and a bit for each pair: frames 1 and 2 are sums, 3 and 4 totals.
fn three() -> Case {
    Case::dealt(3, 3, 3, 3 * ((1 << 16) + 100))
}

/// Reduces with a fault on the way from rank 2 to rank 0, and returns what went wrong on which links: not only there, since
/// who sees one leave leaves too. Whoever has a sum has the right one, and rank 0 has none.
fn errors_of(frame: usize, kind: FaultKind) -> Vec<LinkError> {
    let case = three();
    let (outcomes, hits) = reduce(&case, 3, &[Fault { from: 2, to: 0, frame, kind }], SHORT);
    assert_eq!(hits, 1);
    assert!(outcomes[0].is_err(), "frame {frame}, {kind:?}: rank 0 has a sum");
    let error = |outcome: Outcome| match outcome {
        Ok(sum) => {
            assert!(bits(&sum) == bits(&case.sum(0)), "frame {frame}, {kind:?}");
            None
        }
        Err(CollectiveError::Link { source, .. }) => Some(source),
        Err(error) => panic!("frame {frame}, {kind:?}: {error:?}"),
    };
    outcomes.into_iter().filter_map(error).collect()
}

/// One of the errors, at least, is as it should be.
fn assert_one(frame: usize, kind: FaultKind, is_right: impl Fn(&LinkError) -> bool) {
    let errors = errors_of(frame, kind);
    assert!(errors.iter().any(is_right), "frame {frame}, {kind:?}: {errors:?}");
}

const FRAMES: std::ops::RangeInclusive<usize> = 0..=4;
const READY: usize = 0;
const FIRST_SUM: usize = 1;
const FIRST_TOTAL: usize = 3;
const LAST_TOTAL: usize = 4;

#[test]
fn a_flipped_bit_is_refused_in_every_frame() {
    for frame in FRAMES {
        for bit in [0, 40, 100, 200, 300, 420, 511] {
            let is_right = |error: &LinkError| matches!(error, LinkError::Checksum | LinkError::Unexpected { .. });
            assert_one(frame, FaultKind::Flip(bit), is_right);
        }
    }
    for frame in FIRST_SUM..=LAST_TOTAL {
        for bit in [512, 777, 512 + 100 * 32 - 1] {
            assert_one(frame, FaultKind::Flip(bit), |error| matches!(error, LinkError::Checksum));
        }
    }
}

#[test]
fn a_frame_of_the_generation_before_is_refused() {
    for frame in FRAMES {
        assert_one(frame, FaultKind::Older, |error| {
            let LinkError::Unexpected { got, expected } = error else { return false };
            got.contains("generation: 6") && expected.contains("generation: 7")
        });
    }
}

#[test]
fn a_frame_that_comes_twice_or_not_at_all_is_refused() {
    for frame in READY..LAST_TOTAL {
        assert_one(frame, FaultKind::Repeat, |error| matches!(error, LinkError::Unexpected { .. }));
        assert_one(frame, FaultKind::Lose, |error| matches!(error, LinkError::Unexpected { .. }));
    }
    // The others are done, and leave.
    assert_one(LAST_TOTAL, FaultKind::Lose, |error| matches!(error, LinkError::Silent { .. } | LinkError::Closed));
}

#[test]
fn a_connection_cut_anywhere_in_a_frame_is_noticed() {
    for frame in FRAMES {
        for bytes in [0, 1, 63] {
            assert_one(frame, FaultKind::Cut(bytes), |error| matches!(error, LinkError::Closed));
        }
    }
    for frame in FIRST_SUM..=LAST_TOTAL {
        assert_one(frame, FaultKind::Cut(64 + 101), |error| matches!(error, LinkError::Closed));
    }
}

#[test]
fn a_half_open_connection_ends_at_the_deadline() {
    for frame in FRAMES {
        let start = Instant::now();
        // Totals are the last thing: who has them is done, and leaves.
        assert_one(frame, FaultKind::Stall, |error| {
            matches!(error, LinkError::Silent { .. }) || (frame >= FIRST_TOTAL && matches!(error, LinkError::Closed))
        });
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn a_delay_within_the_limits_changes_no_bit() {
    for frame in FRAMES {
        let fault = Fault { from: 2, to: 0, frame, kind: FaultKind::Delay(Duration::from_millis(30)) };
        let (outcomes, hits) = reduce(&three(), 3, &[fault], PATIENT);
        assert_eq!(hits, 1);
        for outcome in outcomes {
            assert_eq!(bits(&outcome.unwrap()), bits(&three().sum(0)));
        }
    }
}

/// Damage before the checksum is made (a bad memory) passes the link. In a total it makes ranks differ, so their votes do.
#[test]
fn a_forged_total_makes_the_ranks_differ() {
    let fault = Fault { from: 2, to: 0, frame: LAST_TOTAL, kind: FaultKind::Forge(77) };
    let (outcomes, hits) = reduce(&three(), 3, &[fault], PATIENT);
    let sums: Vec<_> = outcomes.into_iter().map(|outcome| bits(&outcome.unwrap())).collect();
    assert_eq!(hits, 1);
    assert!(sums[0] != sums[1] && sums[1] == sums[2] && sums[1] == bits(&three().sum(0)));
}

/// Any few faults, anywhere: a rank has the sum of the definition, or an error that names a peer.
#[test]
fn no_fault_makes_a_silent_difference() {
    let mut hit_count = 0;
    for seed in 0..150 {
        let mut random = Random(seed);
        let world_size = 2 + random.below(4);
        let slots = 1 + random.below(11) as u32;
        let elements = [3, 1000, 200_003][random.below(3)];
        let case = match random.below(2) {
            0 => Case::dealt(slots, slots, world_size, elements),
            _ => Case::scattered(slots, world_size, elements),
        };
        let faults: Vec<Fault> = (0..1 + random.below(3)).map(|_| random.fault(world_size)).collect();
        let (outcomes, hits) = reduce(&case, world_size, &faults, SHORT);
        hit_count += hits;
        let harmless = faults.iter().all(|fault| matches!(fault.kind, FaultKind::Delay(_)));
        let expected = bits(&case.sum(0));
        for outcome in outcomes {
            match outcome {
                Ok(sum) => assert!(bits(&sum) == expected, "seed {seed}: {case:?}, {faults:?}"),
                Err(error) => {
                    assert!(hits > 0 && !harmless, "seed {seed}: {error:?} without a cause");
                    assert!(matches!(error, CollectiveError::Link { .. }), "seed {seed}: {error:?}");
                }
            }
        }
    }
    assert!(hit_count > 100, "only {hit_count} faults have happened: the test looks at nothing");
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn fault(&mut self, world_size: usize) -> Fault {
        let from = self.below(world_size);
        let to = (from + 1 + self.below(world_size - 1)) % world_size;
        let kind = match self.below(7) {
            0 => FaultKind::Delay(Duration::from_millis(self.below(20) as u64)),
            1 => FaultKind::Lose,
            2 => FaultKind::Repeat,
            3 => FaultKind::Cut(self.below(70)),
            4 => FaultKind::Stall,
            5 => FaultKind::Flip(self.below(1 << 21)),
            _ => FaultKind::Older,
        };
        Fault { from: from as u32, to: to as u32, frame: self.below(6), kind }
    }
}
