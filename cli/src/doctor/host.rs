//! Processor, memory and disk.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// The machine without its GPUs.
pub(super) struct Host {
    /// Cores that this process may use.
    pub(super) cores: usize,
    /// Vector instructions that kernels have a version for.
    pub(super) cpu_features: Vec<&'static str>,
    /// Memory of the machine, or what a container may use of it.
    pub(super) memory_bytes: Option<u64>,
    /// What of it is free.
    pub(super) available_bytes: Option<u64>,
    /// Whose disk was tried out.
    pub(super) disk_path: String,
    /// Median time, in milliseconds, until a small file is safe on it; or why none could be written.
    pub(super) disk: Result<f64, String>,
}

impl Host {
    /// Looks.
    pub(super) fn probe(out: &Path) -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (total, available) = (meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:"));
        let (limit, used) = (cgroup("memory.max"), cgroup("memory.current"));
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_features: cpu_features(),
            memory_bytes: least(total, limit),
            available_bytes: least(available, limit.zip(used).map(|(limit, used)| limit.saturating_sub(used))),
            disk_path: fs::canonicalize(out).unwrap_or_else(|_| out.to_owned()).display().to_string(),
            disk: sync_time(out).map_err(|error| format!("cannot write to {}: {error}", out.display())),
        }
    }
}

/// A line of /proc/meminfo, which counts in KiB.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// A file of this process's control group, where it holds a number.
fn cgroup(file: &str) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folders = [Path::new("/sys/fs/cgroup").join(own), "/sys/fs/cgroup".into()];
    folders.iter().find_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok())
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let all = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

/// What each commit of a step costs: the median of five writes with a sync.
fn sync_time(folder: &Path) -> std::io::Result<f64> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:     100 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(24_689_764 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(102_400));
        assert_eq!(meminfo(text, "SwapFree:"), None);
    }

    #[test]
    fn this_machine_is_described() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::probe(folder.path());
        assert!(host.cores > 0 && host.disk.is_ok_and(|milliseconds| milliseconds >= 0.0));
        assert!(Host::probe(&folder.path().join("nothing")).disk.is_err());
    }
}
