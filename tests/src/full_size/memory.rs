//! What Linux says about the memory of the machine and of processes.

use std::fs;

/// Returns the bytes that new processes can have without others being pushed out.
pub(super) fn available() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// What a process and those it has started have taken so far.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Most bytes that the process has had in memory.
    pub(super) peak: u64,
    /// The same of the largest of its children.
    pub(super) peak_of_children: u64,
    /// Of all of them.
    pub(super) cpu_seconds: f64,
}

impl Usage {
    /// Asks about the process `id`; zeros once it has gone.
    pub(super) fn of(id: u32) -> Self {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        // A child that another thread has started is listed with that thread.
        let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
        let of_threads = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let all: String = of_threads.chain([children]).map(|text| text + " ").collect();
        let mut ids: Vec<u32> = all.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        let peaks = ids.iter().map(|id| peak(*id));
        Self {
            peak: peak(id),
            peak_of_children: peaks.max().unwrap_or(0),
            cpu_seconds: ids.iter().chain([&id]).map(|id| cpu_seconds(*id)).sum(),
        }
    }
}

fn peak(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    kilobytes(&status, "VmHWM:").unwrap_or(0)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// User and system time, in the ticks of 10 ms that Linux shows.
fn cpu_seconds(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The second field is the name, in parentheses, and may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
