//! The benchmarks' package: `src/bin` has one program per subject, each with `--help`; `results` has what they measured, on
//! what, and when.

mod made_up;

pub use made_up::made_up_run;

/// Returns the middle one of some values, the upper of two.
///
/// # Panics
/// When there is none.
pub fn median(values: Vec<f64>) -> f64 {
    percentile(values, 50.0)
}

/// Returns the value that `percent` of the values do not exceed.
///
/// # Panics
/// When there is none.
pub fn percentile(mut values: Vec<f64>, percent: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() as f64 * percent / 100.0) as usize).min(values.len() - 1)]
}

/// Returns the processor time that this process has taken, of all threads, in seconds; 0 where the system does not say.
pub fn cpu_seconds() -> f64 {
    cpu_seconds_of(std::process::id())
}

/// Returns the processor time that the living threads of this process have taken, in seconds; 0 where the system does not
/// say. Finer than [`cpu_seconds`], without threads that have ended.
pub fn live_cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}

/// Returns the processor time that a process has taken, of all threads, in seconds; 0 where the system does not say.
pub fn cpu_seconds_of(process_id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0 // Linux counts hundredths of seconds
}

/// Returns the most memory that this process has had, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
