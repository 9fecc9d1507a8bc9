//! `ballast worker`: one worker, wherever the coordinator can be reached from.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::process::ExitCode;

use ballast_common::telemetry::{self, Service, Style, TracesSetting};
use ballast_worker::{WorkerOptions, WorkerOutcome};
use tokio::sync::watch;

use crate::devices::{LocalDevices, worker_device};
use crate::failure::{EXIT_FAILED, EXIT_INTERRUPTED, Failure};
use crate::output::say;
use crate::session::runtime;
use crate::signals::StopSignals;
use crate::{OutputArgs, allocator};

/// Runs one worker: it joins a coordinator, trains on its device, and ends when the run does.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Where the coordinator listens, as it prints it.
    #[arg(long, value_name = "URL", env = "BALLAST_COORDINATOR", help_heading = "Network")]
    coordinator: String,
    /// Where the other workers reach this one: IP:PORT [default: a free port; of this machine alone if the coordinator is here].
    #[arg(long, value_name = "ADDR", help_heading = "Network")]
    listen: Option<SocketAddr>,
    /// Allows a coordinator and peers on other machines, without encryption and without proof of who they are.
    #[arg(long, help_heading = "Network")]
    insecure: bool,
    /// What to compute on [default: the GPU of the launcher's LOCAL_RANK or SLURM_LOCALID; else the first; else the CPU].
    #[arg(long, value_name = "cpu|cuda[:N]|auto", value_parser = device, help_heading = "Device")]
    device: Option<String>,
    /// Threads for pictures and, on the CPU, for the model [default: one per core].
    #[arg(long, value_name = "N", help_heading = "Device")]
    threads: Option<usize>,
    /// Ends this worker when its standard input ends: how `ballast train` makes sure that none outlives it.
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

const AFTER_HELP: &str = "\
Examples:
  ballast worker --coordinator http://127.0.0.1:4600
  ballast worker --coordinator http://10.0.0.1:4600 --insecure --device cuda:1
  srun ballast worker --coordinator http://node1:4600 --insecure      one per GPU, by SLURM_LOCALID

The config comes from the coordinator. The data root and the model must lie at the same paths here.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let coordinator = parse_url(&args.coordinator)?;
    let coordinator_is_here = is_loopback(&coordinator);
    let remote = !coordinator_is_here || args.listen.is_some_and(|address| !address.ip().is_loopback());
    if remote && !args.insecure {
        return Err(Failure::usage(format_args!(
            "{} is on another machine, and the connection is neither encrypted nor authenticated",
            args.coordinator
        ))
        .hint("say --insecure where every machine of the network is trusted"));
    }
    allocator::set_up();
    if args.until_stdin_ends {
        end_with_stdin();
    }
    let LocalDevices { devices, notices } = worker_device(args.device.as_deref(), |name| std::env::var(name).ok())?;
    notices.iter().for_each(|notice| say(notice));
    let options = WorkerOptions {
        coordinator_url: args.coordinator.clone(),
        device: devices.into_iter().next().expect("a worker has one device"),
        collective_listen: args.listen.unwrap_or_else(|| collective_address(&coordinator, coordinator_is_here)),
        threads: args.threads,
        nccl: None,
    };
    let runtime = runtime()?;
    let result = runtime.block_on(work(options, output, args.until_stdin_ends));
    runtime.shutdown_background();
    result
}

async fn work(options: WorkerOptions, output: OutputArgs, is_local_child: bool) -> Result<ExitCode, Failure> {
    let telemetry = telemetry::init(
        Service::Worker,
        telemetry::Options {
            verbosity: output.verbosity(),
            style: Style::Service,
            terminal: None,
            traces: TracesSetting::On { endpoint: None, namespace: "ballast".to_owned(), quiet: is_local_child },
        },
    );
    let (shutdown_sender, shutdown) = watch::channel(false);
    let mut signals =
        StopSignals::listen().map_err(|error| anyhow::Error::new(error).context("cannot listen for Ctrl-C"))?;
    let result = {
        let run = ballast_worker::run(options, shutdown);
        tokio::pin!(run);
        loop {
            tokio::select! {
                result = &mut run => break Some(result),
                () = signals.next() => {
                    // The first leaves the run between two steps; the second does not wait for that.
                    if shutdown_sender.send_replace(true) {
                        break None;
                    }
                }
            }
        }
    };
    let _ = tokio::task::spawn_blocking(|| telemetry.shutdown()).await;
    match result {
        Some(Ok(WorkerOutcome::Finished { .. })) => Ok(ExitCode::SUCCESS),
        Some(Err(error)) => Err(Failure::from(error)),
        Some(Ok(WorkerOutcome::Stopped)) | None => Ok(ExitCode::from(EXIT_INTERRUPTED)),
    }
}

/// Host and port of an `http://` URL.
fn parse_url(url: &str) -> Result<(String, u16), Failure> {
    let wrong = || {
        Failure::usage(format_args!("`{url}` is no address of a coordinator"))
            .hint("write http://HOST:PORT, as the coordinator prints it")
    };
    let authority = url.strip_prefix("http://").ok_or_else(wrong)?.trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    Ok((host.to_owned(), port.parse().map_err(|_| wrong())?))
}

/// Whether the coordinator is on this machine, by address: a name counts only if all its addresses are loopback.
fn is_loopback((host, port): &(String, u16)) -> bool {
    let addresses: Vec<SocketAddr> =
        (host.as_str(), *port).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    !addresses.is_empty() && addresses.iter().all(|address| address.ip().to_canonical().is_loopback())
}

/// Where this worker's collective listens: on loopback as long as the coordinator is there too.
fn collective_address((host, _): &(String, u16), coordinator_is_here: bool) -> SocketAddr {
    let is_v6 = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6());
    let ip = match (coordinator_is_here, is_v6) {
        (true, true) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        (true, false) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        (false, true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (false, false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    SocketAddr::new(ip, 0)
}

fn device(text: &str) -> Result<String, String> {
    let is_good =
        ["cpu", "cuda", "auto"].contains(&text) || text.strip_prefix("cuda:").is_some_and(|n| n.parse::<u32>().is_ok());
    if is_good { Ok(text.to_owned()) } else { Err("expected cpu, cuda, cuda:N or auto".to_owned()) }
}

/// Ends this process when standard input does. The parent holds the other end, and lets go of it however it ends.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let mut buffer = [0; 64];
        while std::io::stdin().lock().read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
        std::process::exit(i32::from(EXIT_FAILED));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collective_is_as_reachable_as_the_coordinator_and_no_more() {
        let listens = |url: &str| {
            let url = parse_url(url).unwrap();
            collective_address(&url, is_loopback(&url)).to_string()
        };
        assert_eq!(listens("http://127.0.0.1:4600"), "127.0.0.1:0");
        assert_eq!(listens("http://[::1]:4600/"), "[::1]:0");
        assert_eq!(listens("http://192.0.2.1:4600"), "0.0.0.0:0");
        assert_eq!(listens("http://[2001:db8::1]:4600"), "[::]:0");
    }

    #[test]
    fn only_http_with_a_port_is_a_coordinator() {
        for url in ["127.0.0.1:4600", "https://a:1", "http://a", "http://:1", "http://a:70000", ""] {
            assert!(parse_url(url).is_err(), "{url}");
        }
    }
}
