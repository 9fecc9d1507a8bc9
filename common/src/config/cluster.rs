//! `[cluster]`: workers, and how they are watched.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::duration;

/// Workers, and how they are watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClusterConfig {
    /// How many workers `ballast train` starts. None: see [`ClusterConfig::local_workers`].
    pub workers: Option<u32>,
    /// Training starts, and goes on, with at least so many.
    pub min_workers: u32,
    /// What the workers compute on.
    pub device: DeviceKind,
    /// Where the coordinator listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// How often a worker says that it lives.
    #[serde(with = "duration")]
    pub heartbeat_interval: Duration,
    /// A worker that was silent for so long is lost.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// How long the start waits for `min_workers`.
    #[serde(with = "duration")]
    pub join_timeout: Duration,
    /// How long a coordinator waits for workers that hold the state, when it was started again or has lost them all,
    /// before it goes on with those who came, or from a checkpoint.
    #[serde(with = "duration")]
    pub rejoin_timeout: Duration,
    /// How long a run with fewer than `min_workers` waits for more before it saves and ends.
    #[serde(with = "duration")]
    pub max_wait: Duration,
    /// How long a worker outlives its coordinator before it saves and ends.
    #[serde(with = "duration")]
    pub coordinator_timeout: Duration,
    /// How long a collective waits for a peer.
    #[serde(with = "duration")]
    pub collective_timeout: Duration,
    /// How many steps ahead plans are dealt, so that data is ready.
    pub plan_ahead: u32,
    /// What gradients travel over between the workers.
    pub collective: CollectiveKind,
    /// The order of sums. None: see [`ClusterConfig::reduction_on`].
    pub reduction: Option<Reduction>,
}

/// What the workers compute on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// CUDA GPUs where there are any, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA GPUs; an error where there is none.
    Cuda,
}

/// What gradients travel over between the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CollectiveKind {
    /// NCCL where all workers of a generation can use it together, else direct connections, and the reason is said.
    Auto,
    /// Direct connections.
    Tcp,
    /// NCCL. A worker that cannot use it with the others is turned away.
    Nccl,
}

/// The order in which gradients are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// Along a fixed tree over slots: the same bits at every world size.
    Exact,
    /// In the order the library chooses: equal within a tolerance.
    Fast,
}

impl ClusterConfig {
    /// Returns how many workers one machine starts: `workers`, or one per GPU, or two where there is no GPU (so that a CPU
    /// run goes the same way through the network as a run on many GPUs). Never more than there are slots to share.
    pub fn local_workers(&self, gpu_count: u32, slots: u32) -> u32 {
        let unasked = if gpu_count > 0 { gpu_count } else { 2 };
        self.workers.unwrap_or(unasked).min(slots)
    }

    /// Returns the order of sums: `reduction`, or exact over direct connections and fast over NCCL.
    pub fn reduction_on(&self, is_nccl: bool) -> Reduction {
        self.reduction.unwrap_or(if is_nccl { Reduction::Fast } else { Reduction::Exact })
    }

    pub(super) fn check(&self, check: &mut Check) {
        let needs_gpus = self.collective == CollectiveKind::Nccl && self.device == DeviceKind::Cpu;
        check.that(
            "collective",
            "\"nccl\" on the CPU",
            !needs_gpus,
            "\"auto\" or \"tcp\" with cluster.device = \"cpu\"",
        );
        check.optional(self.workers, |check, workers| {
            check.within("workers", workers, 1..=1024, "a whole number from 1 to 1024");
            check.within("workers", workers, self.min_workers.., "at least min_workers");
        });
        check.within("min_workers", self.min_workers, 1..=1024, "a whole number from 1 to 1024");
        check.within("plan_ahead", self.plan_ahead, 1..=64, "a whole number from 1 to 64");
        let mut longer_than = |key, found: Duration, least: Duration, allowed: &str| {
            check.that(key, format_args!("{:?}", duration::format(found)), found >= least, allowed);
        };
        let millisecond = Duration::from_millis(1);
        longer_than("heartbeat_interval", self.heartbeat_interval, millisecond, "a time above 0");
        longer_than("lease", self.lease, self.heartbeat_interval * 2, "at least two times heartbeat_interval");
        longer_than("join_timeout", self.join_timeout, millisecond, "a time above 0");
        longer_than("rejoin_timeout", self.rejoin_timeout, millisecond, "a time above 0");
        longer_than("max_wait", self.max_wait, self.rejoin_timeout, "at least rejoin_timeout");
        longer_than("coordinator_timeout", self.coordinator_timeout, millisecond, "a time above 0");
        longer_than("collective_timeout", self.collective_timeout, millisecond, "a time above 0");
    }
}
