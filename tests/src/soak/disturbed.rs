//! The disturbed run: measures what an undisturbed step, start and catch-up take, then deals the faults and watches. What each fault
//! does is in `strikes`.

mod strikes;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::bail;

use super::cluster::{self, Cluster, Stage};
use super::faults::{self, Fault, Planned};
use super::journal::Journal;
use super::ledger::LedgerReader;
use super::liveness::{Cause, Limits, Liveness, Stall};
use super::material::{CHECKPOINT_EVERY, LEASE_SECONDS, Material, REJOIN_SECONDS};
use super::process::Message;
use super::{GLANCE, Options, listen};

/// How long the workers may take to end when the run is over.
const PARTING: Duration = Duration::from_secs(10);
/// How long the start may take, before anything is measured.
const START: Duration = Duration::from_secs(60);
/// The promise: how long a stall after a closed connection may be, and how much longer than the lease one after silence.
const AFTER_CLOSED: Duration = Duration::from_secs(3);
const AFTER_LEASE: Duration = Duration::from_secs(1);
/// A glance that comes so late means that the machine stood still.
const STOOD_STILL: Duration = Duration::from_millis(300);
/// How long after a worker its coordinator may end well, which explains the worker's end.
const EXPLAINED: Duration = Duration::from_secs(3);
/// Committed steps before the first additional worker is started, to measure a step first.
const STEPS_MEASURED: u64 = 6;

/// What takes how long when nothing is disturbed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    /// The longest step, from commit to commit.
    pub(super) step: Duration,
    /// From a worker's start until it has loaded the model.
    pub(super) worker_start: Duration,
    /// From the coordinator's start until it listens.
    pub(super) coordinator_start: Duration,
    /// The longest time from commit to commit while a worker was sent the state.
    pub(super) catch_up: Duration,
}

/// How many faults of each kind were done.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<Fault, u64>);

/// What the disturbed run came to.
pub(super) struct End {
    pub(super) tally: Tally,
    pub(super) measured: Measured,
    pub(super) longest: BTreeMap<Cause, Stall>,
    pub(super) generations: u64,
    pub(super) rollbacks: u64,
}

/// The run under way.
pub(super) struct Disturbed<'a> {
    cluster: Cluster,
    inbox: &'a Receiver<Message>,
    journal: &'a mut Journal,
    ledger: LedgerReader,
    checkpoints: PathBuf,
    steps: u64,
    /// Steps committed, and when that was seen.
    next_step: u64,
    commit_at: Instant,
    /// None before everything is measured.
    liveness: Option<Liveness>,
    measured: Measured,
    /// The worker whose catch-up is measured, and whether it is at it.
    newcomer: Option<usize>,
    /// Faults to come.
    planned: VecDeque<Planned>,
    /// Faults whose step has come, with their time.
    due: Vec<(Instant, Planned)>,
    /// Faults that wait for a checkpoint or a catch-up.
    waiting: Vec<Planned>,
    /// Workers that ended by themselves: when, and how.
    suspicions: Vec<(Instant, String)>,
    /// Whether no worker that runs holds the state.
    is_orphaned: bool,
    faults: u64,
    done: u64,
    tally: Tally,
}

impl<'a> Disturbed<'a> {
    /// Starts the coordinator and all workers but one, which comes when a step has been measured.
    pub(super) fn start(
        options: &Options,
        material: &Material,
        messages: Sender<Message>,
        inbox: &'a Receiver<Message>,
        journal: &'a mut Journal,
    ) -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(material.clone(), messages)?;
        let at_first = (options.workers - 1).max(1);
        cluster.start_coordinator(at_first)?;
        for _ in 0..at_first {
            cluster.add_worker()?;
        }
        let run = material.run(cluster::RUN);
        Ok(Self {
            cluster,
            inbox,
            journal,
            ledger: LedgerReader::new(&run),
            checkpoints: run.join("checkpoints"),
            steps: faults::steps(options.faults),
            next_step: 0,
            commit_at: Instant::now(),
            liveness: None,
            measured: Measured::default(),
            newcomer: None,
            planned: faults::plan(options.seed, options.faults, options.coordinator_faults).into(),
            due: Vec::new(),
            waiting: Vec::new(),
            suspicions: Vec::new(),
            is_orphaned: false,
            faults: options.faults,
            done: 0,
            tally: Tally::default(),
        })
    }

    /// Runs to the end.
    pub(super) fn run(mut self) -> anyhow::Result<End> {
        let deadline = Instant::now() + Duration::from_secs(180 + 15 * self.faults);
        let mut glanced = Instant::now();
        loop {
            let lines = listen(self.inbox)?;
            let late = glanced.elapsed().saturating_sub(GLANCE);
            glanced = Instant::now();
            if late > STOOD_STILL
                && let Some(liveness) = &mut self.liveness
            {
                self.journal.note(&format!("this program stood still for {:.1} s", late.as_secs_f64()));
                liveness.excuse(late);
            }
            for (process_id, text) in lines {
                self.hear(process_id, &text)?;
            }
            self.look_at_the_ledger()?;
            if self.look_at_the_processes()? {
                break;
            }
            self.keep_time()?;
            self.deal_faults()?;
            self.judge()?;
            if Instant::now() > deadline {
                bail!("the run takes too long: it is at step {} of {}", self.next_step, self.steps);
            }
        }
        if self.done < self.faults {
            bail!("the run was over after {} of {} faults", self.done, self.faults);
        }
        self.part()?;
        Ok(End {
            tally: self.tally,
            measured: self.measured,
            longest: self.liveness.map(|liveness| liveness.longest).unwrap_or_default(),
            generations: self.ledger.generation().unwrap_or_default(),
            rollbacks: self.ledger.rollbacks().unwrap_or_default(),
        })
    }

    fn hear(&mut self, process_id: u32, text: &str) -> anyhow::Result<()> {
        if let Some(index) = self.cluster.by_process(process_id) {
            self.cluster.worker_said(index, text);
            let started = self.cluster.workers[index].process.as_ref().map(|process| process.started);
            if text.contains("model loaded") {
                let took = started.map(|started| started.elapsed()).unwrap_or_default();
                if self.liveness.is_none() {
                    self.measured.worker_start = self.measured.worker_start.max(took);
                }
                // The next commit is followed by its catch-up.
                self.disturb(Cause::Closed);
            }
            if text.contains("fetching the state") {
                self.strike_while_catching_up(index)?;
            }
        } else if self.cluster.coordinator.as_ref().is_some_and(|process| process.id() == process_id) {
            self.cluster.coordinator_said(text);
            if text.starts_with("coordinator listens") && self.liveness.is_none() {
                let started = self.cluster.coordinator.as_ref().map(|process| process.started);
                self.measured.coordinator_start = started.map(|started| started.elapsed()).unwrap_or_default();
            }
            if ["lost", "training from", "roll", "taken back", "disagree", "differ", "holds the state", "came back"]
                .iter()
                .any(|part| text.contains(part))
            {
                self.journal.note(&format!("coordinator: {text}"));
            }
        }
        Ok(())
    }

    fn look_at_the_ledger(&mut self) -> anyhow::Result<()> {
        let Some(next_step) = self.ledger.next_step() else { return Ok(()) };
        if next_step < self.next_step {
            self.journal.note(&format!("rolled back from step {} to {next_step}", self.next_step));
            self.next_step = next_step;
            return Ok(());
        }
        if next_step == self.next_step {
            return Ok(());
        }
        let gap = self.commit_at.elapsed();
        let is_first = self.next_step == 0;
        (self.next_step, self.commit_at) = (next_step, Instant::now());
        match &mut self.liveness {
            Some(liveness) => {
                let stall = liveness.committed(self.journal.now());
                if stall.length > Duration::from_secs(1) {
                    self.journal.note(&format!("step {next_step} is committed, stalled {stall}"));
                }
            }
            None if !is_first => self.measure(gap)?,
            None => {}
        }
        if next_step.is_multiple_of(CHECKPOINT_EVERY) {
            self.strike_while_saving();
        }
        Ok(())
    }

    /// Measures a step, then a catch-up; then the faults may begin.
    fn measure(&mut self, gap: Duration) -> anyhow::Result<()> {
        let Some(newcomer) = self.newcomer else {
            self.measured.step = self.measured.step.max(gap);
            if self.next_step >= STEPS_MEASURED {
                self.newcomer = Some(self.cluster.add_worker()?);
            }
            return Ok(());
        };
        if self.cluster.workers[newcomer].stage >= Stage::Loaded {
            self.measured.catch_up = self.measured.catch_up.max(gap);
        }
        if self.cluster.workers[newcomer].stage == Stage::Member {
            self.begin();
        }
        Ok(())
    }

    fn begin(&mut self) {
        let Measured { step, worker_start, coordinator_start, catch_up } = self.measured;
        let closed = AFTER_CLOSED + step + catch_up;
        let rejoin = Duration::from_secs(REJOIN_SECONDS);
        let limits = Limits {
            closed,
            silence: Duration::from_secs(LEASE_SECONDS) + AFTER_LEASE + step + catch_up,
            restart: closed + coordinator_start + worker_start + rejoin,
            orphaned: Duration::from_secs(LEASE_SECONDS) + rejoin + closed + worker_start,
        };
        self.journal.say(&format!(
            "undisturbed: a step {:.2} s, a worker's start {:.2} s, a coordinator's start {:.2} s, a catch-up {:.2} s; \
             a stall may last {:.1} s after a closed connection, {:.1} s after silence, {:.1} s after a restart, {:.1} s after \
             the loss of all who held the state",
            step.as_secs_f64(),
            worker_start.as_secs_f64(),
            coordinator_start.as_secs_f64(),
            catch_up.as_secs_f64(),
            limits.closed.as_secs_f64(),
            limits.silence.as_secs_f64(),
            limits.restart.as_secs_f64(),
            limits.orphaned.as_secs_f64(),
        ));
        self.liveness = Some(Liveness::new(limits, self.journal.now()));
    }

    /// Takes the ends of processes. True when the run is over.
    fn look_at_the_processes(&mut self) -> anyhow::Result<bool> {
        // The coordinator first: its end explains the workers'.
        if self.cluster.is_over()? {
            return Ok(true);
        }
        for (index, what) in self.cluster.reap_workers() {
            self.journal.note(&what);
            self.suspicions.push((Instant::now(), what));
            self.disturb(Cause::Closed);
            self.cluster.workers[index].start_at = Some(Instant::now());
        }
        Ok(false)
    }

    /// A worker may end by itself only when the run does, which may be seen a little later: whoever is left without a
    /// coordinator, or without the state, or was given up because it stood still, comes back instead.
    fn judge_ends(&mut self) -> anyhow::Result<()> {
        match self.suspicions.iter().find(|(at, _)| at.elapsed() > EXPLAINED) {
            Some((_, what)) => bail!("{what}, which it has no reason to"),
            None => Ok(()),
        }
    }

    /// Starts and continues what is due.
    fn keep_time(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.cluster.coordinator_start_at) {
            self.cluster.start_coordinator(1)?;
            self.journal.note("the coordinator is started again");
        }
        if is_due(self.cluster.coordinator_continue_at) {
            if let Some(process) = &self.cluster.coordinator {
                process.signal("CONT");
            }
            (self.cluster.coordinator_stopped, self.cluster.coordinator_continue_at) = (false, None);
            self.journal.note("the coordinator goes on");
            // Nobody is blamed for its silence: who stands still now has a whole lease again.
            if self.cluster.workers.iter().any(|worker| worker.stopped.is_some()) {
                self.disturb(Cause::Silence);
            }
        }
        for index in 0..self.cluster.workers.len() {
            if is_due(self.cluster.workers[index].start_at) {
                self.cluster.start_worker(index)?;
                let name = self.cluster.workers[index].name();
                self.journal.note(&format!("{name} is started again"));
            }
            if is_due(self.cluster.workers[index].continue_at) {
                self.cluster.continue_worker(index);
                let name = self.cluster.workers[index].name();
                self.journal.note(&format!("{name} goes on"));
            }
        }
        Ok(())
    }

    fn deal_faults(&mut self) -> anyhow::Result<()> {
        if self.liveness.is_none() {
            return Ok(());
        }
        let step = self.measured.step;
        let now = Instant::now();
        while let Some(planned) = self.planned.pop_front_if(|planned| planned.at_step <= self.next_step) {
            self.due.push((now + step.mul_f64(planned.within_step), planned));
        }
        let (ready, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
        self.due = later;
        let ready: Vec<(Instant, Planned)> = ready;
        for (_, planned) in ready {
            self.strike(planned)?;
        }
        // Nothing that they wait for may come any more.
        if self.next_step + CHECKPOINT_EVERY >= self.steps {
            for planned in std::mem::take(&mut self.waiting) {
                self.strike(Planned { fault: Fault::KillWorker, ..planned })?;
            }
        } else if self.is_saving() {
            self.strike_while_saving();
        }
        Ok(())
    }

    fn did(&mut self, fault: Fault, what: &str) {
        self.done += 1;
        *self.tally.0.entry(fault).or_default() += 1;
        let (done, faults, step, steps) = (self.done, self.faults, self.next_step, self.steps);
        self.journal.say(&format!("step {step:4} of {steps}, fault {done:3} of {faults}: {what}"));
    }

    fn disturb(&mut self, cause: Cause) {
        let now = self.journal.now();
        if let Some(liveness) = &mut self.liveness {
            liveness.disturb(cause, now);
        }
    }

    /// Checks that the run goes on.
    fn judge(&mut self) -> anyhow::Result<()> {
        self.judge_ends()?;
        let now = self.journal.now();
        let Some(liveness) = &mut self.liveness else {
            if self.commit_at.elapsed() > START {
                bail!("the run does not start: {}", self.cluster.last_words.front().cloned().unwrap_or_default());
            }
            return Ok(());
        };
        liveness.set_blocked(!self.cluster.can_commit(), now);
        let is_orphaned = self.cluster.is_orphaned();
        if is_orphaned && !std::mem::replace(&mut self.is_orphaned, is_orphaned) {
            self.journal.note("nobody who runs holds the state");
            liveness.disturb(Cause::Orphaned, now);
        }
        self.is_orphaned = is_orphaned;
        if let Some(stall) = liveness.violation(now) {
            bail!("nothing was committed after step {} for {stall}", self.next_step);
        }
        Ok(())
    }

    /// The run is over: whoever belongs to it ends by itself, and soon.
    fn part(&mut self) -> anyhow::Result<()> {
        let over = Instant::now();
        for index in 0..self.cluster.workers.len() {
            self.cluster.continue_worker(index);
            if !self.cluster.ends_with_the_run(index) {
                self.cluster.kill_worker(index, None);
            }
        }
        while let Some(index) = self.cluster.alive().first().copied() {
            for (process_id, text) in listen(self.inbox)? {
                self.hear(process_id, &text)?;
            }
            self.cluster.reap_workers();
            if over.elapsed() > PARTING {
                bail!("{} outlives the run by {} s", self.cluster.workers[index].name(), PARTING.as_secs());
            }
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self.0.iter().map(|(fault, count)| format!("{count} {}", fault.plural())).collect();
        f.write_str(&kinds.join(", "))
    }
}
