//! A thousand workers that say that they live, and the coordinator that listens: what it costs, how long an answer takes, and
//! how soon it sees all of them die.
//!
//! The coordinator is the real one, in a process of its own. The workers are simulated, each with a gRPC connection of its own
//! over loopback, all in this process. They join, say that they are ready, are grouped and dealt a step, and from then on they
//! are alive, compute for ever and send a heartbeat per interval. A heartbeat has no answer, so the round trip is measured on
//! something that goes the same way and has one: a join of a protocol that does not exist, through service, queue and driver
//! and back as a refusal, on a connection of its own.
//!
//! Then all heartbeats cease, the connections stay. Exit code 1: a limit is missed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ballast_benches::{cpu_seconds_of, made_up_run, percentile};
use ballast_coordinator::{RunEvent, serve};
use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::session_request::Message as Out;
use ballast_proto::v1::session_response::Message as In;
use ballast_proto::{MAX_MESSAGE_BYTES, PROTOCOL_VERSION, v1};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Of one core, for a thousand workers at a heartbeat a second.
const CPU_SHARE_MAX: f64 = 0.15;
const P99_MAX: Duration = Duration::from_millis(50);
/// Beyond the lease.
const NOTICE_MAX: Duration = Duration::from_secs(1);
/// Between two measured round trips.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// How long the start may take.
const START_MAX: Duration = Duration::from_secs(120);
/// Open files that a process needs beyond one for each worker.
const OTHER_FILES: u32 = 200;

/// Measures a coordinator under the heartbeats of N workers.
#[derive(Parser, Clone)]
struct Args {
    /// How many workers.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    workers: u32,
    /// Milliseconds between two heartbeats of a worker.
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    interval: u64,
    /// Milliseconds of silence after which a worker counts as lost.
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    lease: u64,
    /// How long is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
    /// Is the coordinator, over a made-up run in this folder.
    #[arg(long, hide = true, value_name = "DIR")]
    serve: Option<PathBuf>,
    /// More files may be opened already.
    #[arg(long, hide = true)]
    with_files: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if !args.with_files {
        return with_more_files(&args);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &args.serve {
        Some(folder) => runtime.block_on(coordinate(folder, &args)).map(|()| ExitCode::SUCCESS),
        None => runtime.block_on(measure(&args)),
    }
}

/// Starts this program again where a socket for each worker can be opened.
fn with_more_files(args: &Args) -> anyhow::Result<ExitCode> {
    let files = args.workers + OTHER_FILES;
    let script =
        format!("[ $(ulimit -n) -ge {files} ] || ulimit -n {files} || exit 2; exec \"$0\" --with-files \"$@\"");
    let program = std::env::current_exe()?;
    let status = Command::new("sh").arg("-c").arg(script).arg(program).args(std::env::args_os().skip(1)).status()?;
    Ok(ExitCode::from(status.code().unwrap_or(1) as u8))
}

/// The coordinator's process: says where it listens, then what happens.
async fn coordinate(folder: &Path, args: &Args) -> anyhow::Result<()> {
    let settings = [
        ("step.slots", args.workers.to_string()),
        ("cluster.lease", format!("{}ms", args.lease)),
        ("cluster.heartbeat_interval", format!("{}ms", args.interval)),
        ("cluster.join_timeout", format!("{}s", START_MAX.as_secs())),
    ];
    let run = made_up_run(folder, u64::from(args.workers) * 4, &settings)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&format!("listens {}", listener.local_addr()?))?;
    let (events, mut watched) = mpsc::unbounded_channel();
    let (_stop, stopped) = watch::channel(false);
    let telling = async {
        while let Some(event) = watched.recv().await {
            match event {
                RunEvent::Started { world_size, .. } => say(&format!("started {world_size}"))?,
                RunEvent::WorkerLost { worker_id, .. } => say(&format!("lost {worker_id}"))?,
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    // Ends with an error when all are lost, which is the plan.
    let (outcome, told) = tokio::join!(serve(listener, run, args.workers, events, stopped), telling);
    told?;
    say(&format!("ended {outcome:?}"))
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The coordinator's process, as its parent sees it.
struct Coordinator {
    child: Child,
    lines: std_mpsc::Receiver<(Instant, String)>,
}

impl Coordinator {
    fn start(folder: &Path, args: &Args) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--with-files", "--workers", &args.workers.to_string()])
            .args(["--lease", &args.lease.to_string(), "--interval", &args.interval.to_string()])
            .arg("--serve")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("its output is piped")?);
        let (sender, lines) = std_mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// Waits for a line that begins with a word; returns the rest of it.
    fn wait_for(&self, word: &str) -> anyhow::Result<(Instant, String)> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, line) = self.lines.recv_timeout(left).with_context(|| format!("it never said {word:?}"))?;
            match line.split_once(' ') {
                Some((first, rest)) if first == word => return Ok((at, rest.to_owned())),
                Some(("ended", rest)) => bail!("the coordinator ended: {rest}"),
                _ => {}
            }
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let coordinator = Coordinator::start(folder.path(), args)?;
    let (_, address) = coordinator.wait_for("listens")?;
    let url = format!("http://{address}");
    let start = Instant::now();
    let (silence, beating) = watch::channel(false);
    let beats = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    let interval = Duration::from_millis(args.interval);
    for number in 0..args.workers {
        // Spread over the interval, as workers that started on their own are.
        let phase = interval * number / args.workers;
        let worker = worker(url.clone(), interval, phase, beating.clone(), Arc::clone(&beats));
        workers.spawn(async move {
            if let Err(error) = worker.await {
                eprintln!("worker {number} ended: {error:#}");
            }
        });
    }
    let (at, world_size) = tokio::task::block_in_place(|| coordinator.wait_for("started"))?;
    ensure!(world_size == args.workers.to_string(), "{world_size} workers take part");
    println!("{world_size} workers joined and grouped in {:.1} s", (at - start).as_secs_f64());
    tokio::time::sleep(2 * interval).await;

    let process_id = coordinator.child.id();
    let (start, cpu_start, beats_start) = (Instant::now(), cpu_seconds_of(process_id), beats.load(Ordering::Relaxed));
    let round_trips = probe(&url, Duration::from_secs(args.seconds)).await?;
    let elapsed = start.elapsed().as_secs_f64();
    let cpu_share = (cpu_seconds_of(process_id) - cpu_start) / elapsed;
    let rate = (beats.load(Ordering::Relaxed) - beats_start) as f64 / elapsed;
    let (p50, p99) = (percentile(round_trips.clone(), 50.0), percentile(round_trips.clone(), 99.0));
    let most = percentile(round_trips.clone(), 100.0);
    println!("{rate:.0} heartbeats a second for {elapsed:.0} s");
    println!(
        "round trip, {} times: p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms",
        round_trips.len(),
        p50 * 1e3,
        p99 * 1e3,
        most * 1e3
    );

    let silent_since = Instant::now();
    silence.send(true)?;
    let lost = tokio::task::block_in_place(|| {
        (0..args.workers)
            .map(|_| Ok(coordinator.wait_for("lost")?.0 - silent_since))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let (first, last) = (lost[0], lost[lost.len() - 1]);
    println!(
        "silence: the first was seen dead after {:.2} s, the last after {:.2} s",
        first.as_secs_f64(),
        last.as_secs_f64()
    );
    drop(workers);

    let mut is_good = true;
    let mut judge = |what: &str, found: f64, limit: f64| {
        println!("{what}: {found:.3}, at most {limit:.3}: {}", if found <= limit { "holds" } else { "missed" });
        is_good &= found <= limit;
    };
    judge("CPU of the coordinator, in cores", cpu_share, CPU_SHARE_MAX);
    judge("round trip p99, in seconds", p99, P99_MAX.as_secs_f64());
    let limit = Duration::from_millis(args.lease) + NOTICE_MAX;
    judge("all seen dead, in seconds", last.as_secs_f64(), limit.as_secs_f64());
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Connects; tries again as workers do, since of a thousand that come at one moment some may be turned away by the kernel.
async fn open(url: &str) -> anyhow::Result<CoordinatorClient<Channel>> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    let start = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)),
            Err(error) if start.elapsed() > START_MAX => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

type Session = (mpsc::Sender<v1::SessionRequest>, Streaming<v1::SessionResponse>);

/// Joins on an open connection.
async fn join(client: &mut CoordinatorClient<Channel>, protocol_version: u32) -> anyhow::Result<Session> {
    let (out, requests) = mpsc::channel(8);
    let join = v1::Join { protocol_version, collective_address: "127.0.0.1:1".to_owned(), ..Default::default() };
    out.send(request(Out::Join(join))).await?;
    Ok((out, client.session(ReceiverStream::new(requests)).await?.into_inner()))
}

fn request(message: Out) -> v1::SessionRequest {
    v1::SessionRequest { message: Some(message) }
}

/// A worker that lives and computes for ever, until it is told to fall silent: then it does nothing, but its connection stays.
async fn worker(
    url: String,
    interval: Duration,
    phase: Duration,
    mut silence: watch::Receiver<bool>,
    beats: Arc<AtomicUsize>,
) -> anyhow::Result<()> {
    let mut client = open(&url).await?;
    let (out, mut inbox) = join(&mut client, PROTOCOL_VERSION).await?;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + phase, interval);
    loop {
        tokio::select! {
            _ = silence.changed() => std::future::pending::<()>().await,
            _ = ticks.tick() => {
                out.send(request(Out::Heartbeat(v1::Heartbeat {}))).await?;
                beats.fetch_add(1, Ordering::Relaxed);
            }
            message = inbox.message() => {
                let Some(response) = message? else { return Ok(()) };
                if let Some(In::Welcome(welcome)) = response.message {
                    let ready = v1::Ready {
                        next_step: welcome.next_step,
                        params_hash: "p".to_owned(),
                        params_count: 1,
                        chain: welcome.chain,
                        ..Default::default()
                    };
                    out.send(request(Out::Ready(ready))).await?;
                }
            }
        }
    }
}

/// Measures round trips for a while, in seconds each.
async fn probe(url: &str, duration: Duration) -> anyhow::Result<Vec<f64>> {
    let mut client = open(url).await?;
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let (start, mut round_trips) = (Instant::now(), Vec::new());
    while start.elapsed() < duration {
        ticks.tick().await;
        let asked = Instant::now();
        let (_out, mut inbox) = join(&mut client, 0).await?;
        let answer = inbox.message().await?.and_then(|response| response.message);
        ensure!(matches!(answer, Some(In::Refuse(_))), "an impossible join was answered by {answer:?}");
        round_trips.push(asked.elapsed().as_secs_f64());
    }
    Ok(round_trips)
}
