//! What coordination adds to a step: from the last worker's vote to the commit in every worker's hands, and all that is between
//! two steps besides computing them.
//!
//! The coordinator is the real one, with its ledger on a disk; the workers speak the protocol over loopback and compute nothing,
//! so all of the time of a step is overhead: votes, the merging of losses, one durable transaction, commits, and the plan of a
//! later step. Beside it stands what the disk alone takes for making a few kilobytes durable, since no commit can take less:
//! where they are written over others, and where the file grows, for which the file system has to write more. The ledger's log
//! grows for a few hundred steps; from then on it is written over. So the first steps are measured apart.
//!
//! With `--compute MS` each worker waits as long before it votes; the overhead is what a step takes beyond that.
//! Exit code 1: the median overhead exceeds the limit.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ballast_benches::{cpu_seconds, made_up_run, median, percentile};
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
use tonic::transport::Endpoint;

/// Of a step, beyond the slowest worker's compute.
const OVERHEAD_MAX: Duration = Duration::from_millis(1);
/// What a commit writes, about: a page or two of the table, and frames of the log round them.
const DURABLE_BYTES: usize = 8192;
/// How often the disk alone is measured before, and after.
const DISK_WRITES: usize = 250;
/// Steps by which the ledger's log has ceased to grow: SQLite begins it anew at 1000 pages, and a step takes a few.
const FIRST_STEPS: usize = 500;

/// Measures steps that take no time to compute.
#[derive(Parser)]
struct Args {
    /// Numbers of workers.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1_u32, 2, 3, 4, 5, 6, 7, 8])]
    workers: Vec<u32>,
    /// Steps of each measurement.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    steps: usize,
    /// Samples of a step, one to a slot.
    #[arg(long, value_name = "N", default_value_t = 16)]
    samples_per_step: u32,
    /// Milliseconds that a worker computes for a step.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    compute: u64,
    /// Where the ledger lies [default: the system's temporary folder]. What is made there is deleted afterwards.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    println!(
        "| workers | overhead of a step: median | p99 | first {FIRST_STEPS} steps: median | disk alone, over: median | p99 | disk alone, growing: median | CPU per step |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut worst: f64 = 0.0;
    for workers in &args.workers {
        let folder = match &args.dir {
            Some(dir) => tempfile::tempdir_in(dir)?,
            None => tempfile::tempdir()?,
        };
        // Before and after, since others may use the disk too.
        let mut disk = Disk::default();
        disk.measure(folder.path())?;
        let cpu_start = cpu_seconds();
        let mut first = runtime.block_on(measure(folder.path(), *workers, &args))?;
        let overhead = first.split_off(FIRST_STEPS);
        let cpu = (cpu_seconds() - cpu_start) / (args.steps + FIRST_STEPS) as f64;
        disk.measure(folder.path())?;
        println!(
            "| {workers} | **{:.2} ms** | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} ms |",
            median(overhead.clone()) * 1e3,
            percentile(overhead.clone(), 99.0) * 1e3,
            median(first) * 1e3,
            median(disk.over.clone()) * 1e3,
            percentile(disk.over, 99.0) * 1e3,
            median(disk.growing) * 1e3,
            cpu * 1e3,
        );
        worst = worst.max(median(overhead));
    }
    let holds = worst <= OVERHEAD_MAX.as_secs_f64();
    println!("\nmedian overhead at most {OVERHEAD_MAX:?}: {}", if holds { "holds" } else { "missed" });
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Seconds that the disk takes to make bytes durable.
#[derive(Default)]
struct Disk {
    /// At the end of a file.
    growing: Vec<f64>,
    /// Over bytes that are there.
    over: Vec<f64>,
}

impl Disk {
    fn measure(&mut self, folder: &Path) -> anyhow::Result<()> {
        let mut file = File::create(folder.join("durable"))?;
        for seconds in [&mut self.growing, &mut self.over] {
            file.seek(SeekFrom::Start(0))?;
            for _ in 0..DISK_WRITES {
                let start = Instant::now();
                file.write_all(&[7; DURABLE_BYTES])?;
                file.sync_data()?;
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
        Ok(())
    }
}

/// Returns how long each step took beyond its compute, in seconds.
async fn measure(folder: &Path, workers: u32, args: &Args) -> anyhow::Result<Vec<f64>> {
    let compute = Duration::from_millis(args.compute);
    let steps = args.steps + FIRST_STEPS;
    let epochs = (steps * args.samples_per_step as usize).div_ceil(1000) + 1;
    let settings = [
        ("step.slots", args.samples_per_step.to_string()),
        ("run.epochs", epochs.to_string()),
        ("checkpoint.every_steps", "0".to_owned()),
        ("checkpoint.every_epochs", "0".to_owned()),
    ];
    let run = made_up_run(folder, 1000, &settings)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (events, mut watched) = mpsc::unbounded_channel();
    let (_stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(worker(url.clone(), compute));
    }
    let counting = async {
        let mut seconds = Vec::new();
        while seconds.len() <= steps {
            // The coordinator's own clock: events may wait before they are read.
            let event = watched.recv().await.context("the run ended early")?;
            if let RunEvent::Stepped { duration, .. } = event {
                seconds.push(duration.saturating_sub(compute).as_secs_f64());
            }
        }
        seconds.remove(0); // from the start of the run
        anyhow::Ok(seconds)
    };
    tokio::select! {
        seconds = counting => seconds,
        outcome = serve(listener, run, workers, events, stopped) => {
            anyhow::bail!("the run ended early: {outcome:?}");
        }
        ended = tasks.join_next() => anyhow::bail!("a worker ended: {ended:?}"),
    }
}

/// Votes for every step, after its time.
async fn worker(url: String, compute: Duration) -> anyhow::Result<()> {
    let channel = Endpoint::from_shared(url)?.tcp_nodelay(true).connect().await?;
    let mut client = CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let (out, requests) = mpsc::channel(64);
    let say = async |message| out.send(v1::SessionRequest { message: Some(message) }).await;
    let join = v1::Join {
        protocol_version: PROTOCOL_VERSION,
        collective_address: "127.0.0.1:1".to_owned(),
        ..Default::default()
    };
    say(Out::Join(join)).await?;
    let mut inbox = client.session(ReceiverStream::new(requests)).await?.into_inner();
    let (mut plans, mut next_step) = (Vec::<v1::Plan>::new(), 0);
    while let Some(response) = inbox.message().await? {
        match response.message.context("a message is not known")? {
            In::Welcome(v1::Welcome { chain, .. }) => {
                let params_hash = "p".to_owned();
                let ready = v1::Ready { next_step, params_hash, params_count: 1, chain, ..Default::default() };
                say(Out::Ready(ready)).await?;
                continue;
            }
            In::Plan(plan) => plans.push(plan),
            In::Commit(commit) => {
                ensure!(commit.step == next_step, "step {} is committed, {next_step} is due", commit.step);
                next_step += 1;
                plans.retain(|plan| plan.step >= next_step);
                say(Out::Applied(v1::Applied { generation: commit.generation, step: commit.step })).await?;
            }
            _ => continue,
        }
        // Once for each step: when its plan comes last, or the commit before it.
        if let Some(index) = plans.iter().position(|plan| plan.step == next_step) {
            let plan = plans.swap_remove(index);
            if !compute.is_zero() {
                tokio::time::sleep(compute).await;
            }
            say(vote(&plan)).await?;
        }
    }
    Ok(())
}

fn vote(plan: &v1::Plan) -> Out {
    let losses = plan.micro_batches.iter().flat_map(|batch| &batch.occurrences).map(|occurrence| v1::OccurrenceLoss {
        position: occurrence.position,
        loss: 0.5,
        weight: occurrence.loss_scale,
        timestep: 9,
        skipped: String::new(),
    });
    Out::Reduced(v1::Reduced {
        generation: plan.generation,
        step: plan.step,
        gradient_hash: format!("{:064x}", plan.step),
        gradient_norm: 1.0,
        losses: losses.collect(),
        ..Default::default()
    })
}
