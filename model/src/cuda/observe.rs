//! Which kernels some work launches, and how long each runs on the device: for a profile where no profiler is installed.

use cubecl::future::block_on;
use cubecl::logging::{Duration, LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The launches of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// As the kernel names itself: ours by their own name, CubeCL's by the path of a type.
    pub name: String,
    /// How often it ran.
    pub launches: u64,
    /// Launches of these that could not be measured.
    pub unmeasured: u64,
    /// On the device, by its own events.
    pub seconds: f64,
}

/// Does some work and returns what its kernels took, the longest first. Each launch costs the host more than usual, so that
/// the work as a whole is slower; what is measured is the kernels alone.
pub fn kernels<T>(work: impl FnOnce() -> T) -> (T, Vec<KernelTime>) {
    let observer = Arc::new(Observer::default());
    let watching = LaunchObservation::new(observer.clone());
    let result = work();
    drop(watching);
    (result, observer.times())
}

#[derive(Default)]
struct Observer {
    launches: Mutex<Vec<(&'static str, Measured)>>,
}

enum Measured {
    /// Two events in the stream, to be read when the work is done.
    Events(ProfileDuration),
    Read(Duration),
}

impl Observer {
    fn take(&self, kernel: &'static str, measured: Measured) {
        self.launches.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, measured));
    }

    fn times(&self) -> Vec<KernelTime> {
        let launches = std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sums: BTreeMap<&'static str, KernelTime> = BTreeMap::new();
        for (name, measured) in launches {
            let duration = match measured {
                Measured::Events(events) => block_on(events.resolve()).map(|ticks| ticks.duration()),
                Measured::Read(duration) => Some(duration),
            };
            let empty = || KernelTime { name: name.to_owned(), launches: 0, unmeasured: 0, seconds: 0.0 };
            let sum = sums.entry(name).or_insert_with(empty);
            sum.launches += 1;
            sum.unmeasured += u64::from(duration.is_none());
            sum.seconds += duration.unwrap_or_default().as_secs_f64();
        }
        let mut times: Vec<KernelTime> = sums.into_values().collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
}

impl LaunchObserver for Observer {
    fn launched(&self, _: &'static str) {}

    fn timing(&self) -> TimingRequest {
        TimingRequest::Deferred
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        self.take(kernel, Measured::Events(profile));
    }

    fn timed(&self, kernel: &'static str, duration: Duration, _: TimingMethod) {
        self.take(kernel, Measured::Read(duration));
    }
}
