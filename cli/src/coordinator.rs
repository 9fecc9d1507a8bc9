//! `ballast coordinator`: the coordinator alone; workers join from wherever they run.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::OutputArgs;
use crate::config_args::{SetArgs, load};
use crate::failure::Failure;
use crate::session::{Opening, Session, listen_again, runtime};
use crate::summary::program;
use crate::train::RunArgs;

/// Runs the coordinator alone: it deals the steps to workers that join over the network.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The run's config, a TOML file.
    config: PathBuf,
    /// Where to listen: HOST:PORT [default: a free port of this machine alone].
    #[arg(long, value_name = "ADDR", help_heading = "Network")]
    listen: Option<String>,
    /// Allows an address that other machines can reach, without encryption and without proof of who joins.
    #[arg(long, help_heading = "Network")]
    insecure: bool,
    /// Waits for so many workers before the first step; more may join later [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workers")]
    workers: Option<u32>,
    /// Starts with so many once `cluster.join_timeout` is over.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workers")]
    min_workers: Option<u32>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    set: SetArgs,
}

const AFTER_HELP: &str = "\
Examples:
  ballast coordinator my.toml --listen 127.0.0.1:4600 --workers 2
  ballast worker --coordinator http://127.0.0.1:4600      in two other terminals

  ballast coordinator my.toml --listen 0.0.0.0:4600 --insecure --workers 16
      on a network where every machine is trusted; data root and run folder lie at the same paths on all of them

Killed, it is started again by the same command line: it goes on where its ledger stands, and its workers come back with
the state that they hold. Under a supervisor add --name and --resume: the run begins, goes on after whatever ended it, and
a run that is done has nothing left to do.

Ctrl-C finishes the step, saves a checkpoint and exits with 130; a second one stops at once.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let flags = args.run.flags().with("cluster.workers", args.workers).with("cluster.min_workers", args.min_workers);
    let mut config = load(Some(&args.config), &args.set, flags)?;
    config.require_training()?;
    if let Some(address) = &args.listen {
        config.cluster.listen = resolve(address)?;
    }
    allow(config.cluster.listen, args.insecure)?;

    let worker_count = config.cluster.workers.unwrap_or(1).max(config.cluster.min_workers);
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let opening = Opening::Continue { resume: args.run.resume };
        let mut session = Session::open(config, Some(&args.config), opening, output).await?;
        let listener = listen_again(session.config.cluster.listen, &session.run_folder).await?;
        let address = listener.local_addr().context("cannot read the coordinator's own address")?;
        let run = session.prepare()?;
        if let Some(exit_code) = session.end_if_complete(&run)? {
            return Ok(exit_code);
        }
        session.progress.insist(&format!("coordinator listens on {address}"));
        let insecure = if address.ip().is_loopback() { "" } else { " --insecure" };
        session.progress.insist(&format!(
            "start workers with: {} worker --coordinator {}{insecure}",
            program(),
            url(address)
        ));
        session.carry_out(run, listener, worker_count, None).await
    });
    runtime.shutdown_background();
    result
}

fn resolve(address: &str) -> Result<SocketAddr, Failure> {
    let found = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    found.ok_or_else(|| {
        Failure::usage(format_args!("`{address}` is no address to listen on"))
            .hint("write HOST:PORT, as in 127.0.0.1:4600, or [::1]:4600 for IPv6")
    })
}

/// Refuses what other machines could reach, unless it was asked for in so many words.
pub(crate) fn allow(address: SocketAddr, insecure: bool) -> Result<(), Failure> {
    if insecure || address.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Failure::usage(format_args!(
        "{address} can be reached by other machines, and the connection is neither encrypted nor authenticated"
    ))
    .hint("listen on 127.0.0.1, or say --insecure where every machine of the network is trusted"))
}

/// Returns the URL that workers use. An unspecified address stands for this host.
fn url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => host_name(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("http://{host}:{}", address.port())
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "THIS-HOST".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_open_without_a_word() {
        let allowed = |address: &str| allow(address.parse().unwrap(), false).is_ok();
        assert!(
            allowed("127.0.0.1:0") && allowed("127.8.8.8:1") && allowed("[::1]:0") && allowed("[::ffff:127.0.0.1]:0")
        );
        assert!(!allowed("0.0.0.0:0") && !allowed("[::]:0") && !allowed("10.0.0.1:4600") && !allowed("[fe80::1]:1"));
        assert!(allow("0.0.0.0:0".parse().unwrap(), true).is_ok());
    }

    #[test]
    fn urls_have_brackets_for_ipv6() {
        assert_eq!(url("[::1]:4600".parse().unwrap()), "http://[::1]:4600");
        assert_eq!(url("127.0.0.1:4600".parse().unwrap()), "http://127.0.0.1:4600");
    }
}
