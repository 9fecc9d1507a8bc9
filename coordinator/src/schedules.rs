//! The schedules of the epochs in hand, computed off the async threads and one epoch ahead.

use std::collections::BTreeMap;
use std::sync::Arc;

use ballast_common::dataset::Dataset;
use ballast_common::schedule::{EpochSchedule, Roster, ScheduleOptions};
use tokio::task::JoinHandle;

/// Computes schedules when they are needed, and the next one before.
pub(crate) struct Schedules {
    roster: Arc<Roster>,
    options: ScheduleOptions,
    epochs: u64,
    pending: BTreeMap<u64, JoinHandle<EpochSchedule>>,
    ready: BTreeMap<u64, Arc<EpochSchedule>>,
}

impl Schedules {
    pub(crate) fn new(dataset: &Dataset, options: ScheduleOptions, epochs: u64) -> Self {
        Self {
            roster: Arc::new(Roster::of(dataset)),
            options,
            epochs,
            pending: BTreeMap::new(),
            ready: BTreeMap::new(),
        }
    }

    /// Returns the schedule of an epoch, and whether it is asked for the first time. Starts to compute the next one and
    /// forgets those two and more epochs ago.
    pub(crate) async fn get(&mut self, epoch: u64) -> (Arc<EpochSchedule>, bool) {
        if let Some(schedule) = self.ready.get(&epoch) {
            return (schedule.clone(), false);
        }
        let task = self.pending.remove(&epoch).unwrap_or_else(|| self.start(epoch));
        let schedule = Arc::new(task.await.expect("computing a schedule does not panic"));
        self.ready.insert(epoch, schedule.clone());
        self.ready.retain(|kept, _| kept + 1 >= epoch);
        if epoch + 1 < self.epochs {
            let task = self.start(epoch + 1);
            self.pending.insert(epoch + 1, task);
        }
        (schedule, true)
    }

    fn start(&self, epoch: u64) -> JoinHandle<EpochSchedule> {
        let (roster, options) = (self.roster.clone(), self.options);
        tokio::task::spawn_blocking(move || EpochSchedule::of(&roster, &options, epoch))
    }
}
