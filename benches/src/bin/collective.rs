//! The tcp collective against what the machine can do: a plain socket copy of the same bytes, and a memory copy.
//!
//! W workers add up W gradients of N `f32` each, over loopback. Each worker finishes the sum of a W-th of the elements; it has to
//! receive that part of the W − 1 other gradients, and to send its sum to W − 1 others. So what has to cross the loopback is
//!
//!   bytes(W, N) = W workers · 2 · (W − 1)/W · 4 · N = 8 · (W − 1) · N
//!
//! whoever does it (a ring moves as much). The plain copy moves as many bytes over as many connections, in both directions at
//! once, from memory to memory of the same size, in writes of the same size, and does nothing else. The two are measured in
//! turn, and the ratio is the median of those of the pairs, so that a busy machine hurts both alike.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use ballast_benches::{cpu_seconds, median, peak_memory};
use ballast_collective::conformance::cases::gradient;
use ballast_collective::tree::{Node, Partial};
use ballast_collective::{Collective, Endpoint, GroupConfig, Limits, Reduction, form};
use clap::Parser;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// The least share of the plain copy's speed that is to be reached.
const RATIO_MIN: f64 = 0.6;
/// Bytes of one write of the plain copy: those of a block of the collective.
const WRITE_BYTES: usize = 1 << 18;

/// Measures all-reduces of some sizes among some numbers of workers.
#[derive(Parser)]
struct Args {
    /// Sizes of the gradient, in megabytes (of 1,000,000 bytes).
    #[arg(long, value_name = "MB", value_delimiter = ',', default_values_t = [3.4, 34.0, 340.0])]
    megabytes: Vec<f64>,
    /// Numbers of workers.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [2_usize, 3, 4])]
    workers: Vec<usize>,
    /// How many megabytes of gradients each case reduces in all, at least three times.
    #[arg(long, value_name = "MB", default_value_t = 1000.0)]
    total: f64,
}

/// Seconds by the clock and of processor time.
#[derive(Clone, Copy)]
struct Took {
    seconds: f64,
    cpu: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    println!("memory copy: {:.1} GB/s on one thread", memory_copy());
    println!();
    println!(
        "| workers | gradient | all-reduce | bytes that cross | all-reduce | plain copy | **ratio** | CPU: all-reduce | CPU: plain copy |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut is_good = true;
    for megabytes in &args.megabytes {
        for workers in &args.workers {
            let elements = (megabytes * 1e6 / 4.0) as usize;
            let repeat = ((args.total / megabytes) as usize).clamp(3, 100);
            is_good &= measure(*workers, elements, repeat) >= RATIO_MIN;
        }
    }
    println!("\npeak memory of this process: {:.0} MB", peak_memory() as f64 / 1e6);
    println!("aim: a ratio of {RATIO_MIN}: {}", if is_good { "reached" } else { "missed" });
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(workers: usize, elements: usize, repeat: usize) -> f64 {
    let bytes = 8.0 * (workers - 1) as f64 * elements as f64;
    let mut members = Members::form(workers, elements);
    let mut copies = Copies::connect(workers, elements);
    // Connections are made and memory is touched.
    members.reduce();
    copies.run();
    let pairs: Vec<(Took, Took)> = (0..repeat).map(|_| (members.reduce(), copies.run())).collect();
    let of = |pick: &dyn Fn(&(Took, Took)) -> f64| median(pairs.iter().map(pick).collect());
    let (reduce, copy) = (of(&|pair| pair.0.seconds), of(&|pair| pair.1.seconds));
    let ratio = of(&|pair| pair.1.seconds / pair.0.seconds);
    // Single runs are too short for the clock that counts processor time.
    let cpu = |pick: &dyn Fn(&(Took, Took)) -> f64| pairs.iter().map(pick).sum::<f64>() / repeat as f64;
    println!(
        "| {workers} | {:.1} MB | {:.2} ms | {:.1} MB | {:.2} GB/s | {:.2} GB/s | **{ratio:.2}** | {:.2} ms | {:.2} ms |",
        elements as f64 * 4e-6,
        reduce * 1e3,
        bytes / 1e6,
        bytes / reduce / 1e9,
        bytes / copy / 1e9,
        cpu(&|pair| pair.0.cpu) * 1e3,
        cpu(&|pair| pair.1.cpu) * 1e3,
    );
    ratio
}

fn timed(work: impl FnOnce()) -> Took {
    let (start, cpu_start) = (Instant::now(), cpu_seconds());
    work();
    Took { seconds: start.elapsed().as_secs_f64(), cpu: cpu_seconds() - cpu_start }
}

/// The members of a generation, each with its gradient.
struct Members {
    _runtime: Runtime,
    _endpoints: Vec<Endpoint>,
    members: Vec<(Box<dyn Collective>, Vec<f32>)>,
    slot_ranks: Vec<u32>,
    step: u64,
}

impl Members {
    fn form(workers: usize, elements: usize) -> Self {
        let runtime = Runtime::new().expect("a runtime can be made");
        let bind = |_| runtime.block_on(Endpoint::bind("127.0.0.1:0".parse().expect("an address")));
        let endpoints: Vec<Endpoint> = (0..workers).map(bind).collect::<Result<_, _>>().expect("loopback is there");
        let addresses: Vec<String> = endpoints.iter().map(|endpoint| endpoint.address().to_string()).collect();
        let member = |rank: usize| {
            let group = GroupConfig {
                run_id: "bench".to_owned(),
                generation: 1,
                rank: rank as u32,
                addresses: addresses.clone(),
                limits: Limits::new(Duration::from_secs(60)),
            };
            let collective = form(&endpoints[rank], group, runtime.handle(), CancellationToken::new());
            (collective, gradient(0, rank as u32, elements))
        };
        let members = (0..workers).map(member).collect();
        let slot_ranks = (0..workers as u32).collect();
        Self { _runtime: runtime, _endpoints: endpoints, members, slot_ranks, step: 0 }
    }

    /// Reduces; the sum is the next gradient.
    fn reduce(&mut self) -> Took {
        self.step += 1;
        let (step, slot_ranks) = (self.step, &self.slot_ranks);
        let begin = Barrier::new(self.members.len() + 1);
        std::thread::scope(|scope| {
            for (rank, (collective, gradient)) in self.members.iter_mut().enumerate() {
                let begin = &begin;
                scope.spawn(move || {
                    // Halved again and again, or sums of sums would overflow.
                    gradient.iter_mut().for_each(|value| *value *= 0.25);
                    let own = Partial { node: Node::leaf(rank as u32), sum: std::mem::take(gradient) };
                    let reduction = Reduction { step, slot_ranks, elements: own.sum.len() };
                    begin.wait();
                    *gradient = collective.all_reduce(reduction, vec![own]).expect("loopback works");
                    begin.wait();
                });
            }
            begin.wait();
            timed(|| {
                begin.wait();
            })
        })
    }
}

/// Connections between all, as the collective has them, and memory to copy from and to.
struct Copies {
    /// For each direction of each connection.
    streams: Vec<(TcpStream, TcpStream)>,
    memory: Vec<(Vec<u8>, Vec<u8>)>,
    /// How often each memory is copied: a worker sends its gradient about twice.
    rounds: usize,
}

impl Copies {
    fn connect(workers: usize, elements: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let address = listener.local_addr().expect("it listens");
        let (mut streams, mut memory) = (Vec::new(), Vec::new());
        let bytes = 4 * elements / workers;
        for _ in 0..workers * (workers - 1) / 2 {
            let one = TcpStream::connect(address).expect("loopback works");
            let other = listener.accept().expect("loopback works").0;
            for stream in [&one, &other] {
                stream.set_nodelay(true).expect("it is connected");
            }
            let clone = |stream: &TcpStream| stream.try_clone().expect("descriptors are left");
            streams.push((clone(&one), clone(&other)));
            streams.push((other, one));
            memory.extend([(vec![1; bytes], vec![2; bytes]), (vec![3; bytes], vec![4; bytes])]);
        }
        Self { streams, memory, rounds: 2 }
    }

    fn run(&mut self) -> Took {
        let rounds = self.rounds;
        let begin = Barrier::new(2 * self.streams.len() + 1);
        std::thread::scope(|scope| {
            for ((sender, receiver), (from, to)) in self.streams.iter_mut().zip(&mut self.memory) {
                let begin = &begin;
                scope.spawn(move || {
                    begin.wait();
                    for _ in 0..rounds {
                        from.chunks(WRITE_BYTES).for_each(|block| sender.write_all(block).expect("loopback works"));
                    }
                    begin.wait();
                });
                scope.spawn(move || {
                    begin.wait();
                    for _ in 0..rounds {
                        to.chunks_mut(WRITE_BYTES)
                            .for_each(|block| receiver.read_exact(block).expect("loopback works"));
                    }
                    begin.wait();
                });
            }
            begin.wait();
            timed(|| {
                begin.wait();
            })
        })
    }
}

/// Returns the speed of copying memory that is in no cache, in GB/s.
fn memory_copy() -> f64 {
    let from = vec![1_u8; 400_000_000];
    let mut to = vec![2_u8; from.len()];
    let seconds = (0..5).map(|_| {
        timed(|| {
            to.copy_from_slice(&from);
            std::hint::black_box(&to);
        })
        .seconds
    });
    from.len() as f64 / median(seconds.collect()) / 1e9
}
