//! Generations that end badly leave no socket and no thread behind. A program of its own, since it counts those of the process.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use ballast_collective::conformance::cases::Case;
use ballast_collective::{Collective, Endpoint, GroupConfig, Limits, form};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const WORLD_SIZE: usize = 4;
const GENERATIONS: u64 = 40;
const LIMITS: Limits = Limits { link: Duration::from_secs(20), straggler: Duration::from_secs(20) };

/// Open files and threads of this process.
fn held() -> (usize, usize) {
    let count = |folder| std::fs::read_dir(folder).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

fn member(
    runtime: &Runtime,
    endpoints: &[Endpoint],
    generation: u64,
    rank: usize,
) -> (Box<dyn Collective>, CancellationToken) {
    let cancel = CancellationToken::new();
    let addresses = endpoints.iter().map(|endpoint| endpoint.address().to_string()).collect();
    let group = GroupConfig { run_id: "leaks".to_owned(), generation, rank: rank as u32, addresses, limits: LIMITS };
    (form(&endpoints[rank], group, runtime.handle(), cancel.clone()), cancel)
}

#[test]
fn aborted_generations_leave_no_socket_and_no_thread() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let endpoints: Vec<Endpoint> =
        (0..WORLD_SIZE).map(|_| runtime.block_on(Endpoint::bind("127.0.0.1:0".parse().unwrap())).unwrap()).collect();
    let before = held();
    let case = Case::dealt(8, 8, WORLD_SIZE, 1_000_003);
    let mut sum_count = 0;
    for generation in 1..=GENERATIONS {
        let members: Vec<_> = (0..WORLD_SIZE).map(|rank| member(&runtime, &endpoints, generation, rank)).collect();
        let tokens: Vec<_> = members.iter().map(|(_, cancel)| cancel.clone()).collect();
        std::thread::scope(|scope| {
            let case = &case;
            let runs: Vec<_> = members
                .into_iter()
                .enumerate()
                .map(|(rank, (mut member, _))| scope.spawn(move || case.reduce(member.as_mut(), 0, rank).is_ok()))
                .collect();
            // From before the first byte to long after the last; nothing depends on which it is.
            std::thread::sleep(Duration::from_millis(generation % 20 * 3));
            match generation % 3 {
                0 => tokens.iter().for_each(CancellationToken::cancel),
                1 => tokens[generation as usize % WORLD_SIZE].cancel(), // the others see it leave
                _ => {}
            }
            sum_count += runs.into_iter().map(|run| usize::from(run.join().unwrap())).sum::<usize>();
        });
    }
    assert!(
        (WORLD_SIZE..WORLD_SIZE * GENERATIONS as usize).contains(&sum_count),
        "{sum_count} sums: nothing is tested"
    );
    let start = Instant::now();
    while held().0 > before.0 || held().1 > before.1 {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?} are held, {before:?} were before", held());
        std::thread::yield_now();
    }
    drop(endpoints);
}
