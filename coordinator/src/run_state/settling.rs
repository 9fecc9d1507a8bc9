//! A generation breaks: for a moment the run gathers what belongs to one cause, then it decides once.
//!
//! A switch that dies, or a job that ends, closes many connections within milliseconds; a broken link is told of by both of its
//! ends, and by others whose own links were closed in consequence, in any order. Whoever acts on the first word ends one
//! generation for each of them, and blames the wrong pair.

use std::collections::BTreeMap;
use std::time::Duration;

use super::losses::lost_words;
use super::{Action, Phase, RunState, WorkerId};

/// So long after the last word the decision is made. Words that have one cause come within milliseconds.
const QUIET: Duration = Duration::from_millis(50);
/// So long after the first word it is made at the latest: a part of the time that a run may stall after a loss.
pub(super) const LIMIT: Duration = Duration::from_millis(500);

/// What a worker says of the generation's end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    /// Whom it could not go on with, as far as that is known.
    pub(super) peer: Option<WorkerId>,
    /// That one has hung up: for a reason that it tells itself, or because it is gone.
    pub(super) peer_closed: bool,
    pub(super) reason: String,
}

/// What is known so far.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settling {
    first: Duration,
    last: Duration,
    /// Members lost, and why the first of them was.
    lost: Vec<WorkerId>,
    why: String,
    reports: BTreeMap<WorkerId, Report>,
}

impl Settling {
    fn new(now: Duration) -> Self {
        Self { first: now, last: now, lost: Vec::new(), why: String::new(), reports: BTreeMap::new() }
    }

    /// When to decide, as far as is known now.
    fn deadline(&self, group: &[WorkerId]) -> Duration {
        let limit = self.first + LIMIT;
        if self.is_unexplained(group) { limit } else { limit.min(self.last + QUIET) }
    }

    /// Whether somebody is said to have hung up who has not said why, and is not known to be gone.
    fn is_unexplained(&self, group: &[WorkerId]) -> bool {
        let hung_up = self.reports.values().filter(|report| report.peer_closed).filter_map(|report| report.peer);
        hung_up.into_iter().any(|peer| group.contains(&peer) && !self.reports.contains_key(&peer))
    }

    /// The pairs whose link failed: one of the two could not reach the other, or each says that the other one hung up, so
    /// that neither did.
    fn broken_links(&self) -> Vec<(WorkerId, WorkerId)> {
        let is_mutual = |worker: WorkerId, peer: WorkerId| {
            self.reports.get(&peer).is_some_and(|other| other.peer_closed && other.peer == Some(worker))
        };
        let reports =
            self.reports.iter().filter_map(|(worker, report)| Some((*worker, report.peer?, report.peer_closed)));
        let broken = reports.filter(|(worker, peer, closed)| !closed || is_mutual(*worker, *peer));
        broken.map(|(worker, peer, _)| (worker, peer)).collect()
    }

    /// Why the generation ends: a loss explains more than a report, and one's own trouble more than another's end.
    fn reason(&self) -> String {
        if let Some(lost) = lost_words(&self.lost, &self.why) {
            return lost;
        }
        let (worker, report) = self.complaint().expect("somebody has said something");
        format!("the collective failed on worker {worker}: {}", report.reason)
    }

    /// The report to be told of, where nobody is lost.
    fn complaint(&self) -> Option<(WorkerId, &Report)> {
        let first = self.reports.iter().min_by_key(|(_, report)| report.peer_closed);
        first.filter(|_| self.lost.is_empty()).map(|(worker, report)| (*worker, report))
    }
}

impl RunState {
    /// When the core wants to be told the time, at the latest; none: the usual ticks do.
    pub fn next_look(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Settling(settling) => Some(settling.deadline(&self.group)),
            Phase::CatchingUp { .. } => self.first_stuck_until(),
            _ => None,
        }
    }

    /// Members are gone in the midst of a step.
    pub(super) fn note_losses(&mut self, lost: &[WorkerId], reason: &str, actions: &mut Vec<Action>) {
        let settling = self.settling();
        if settling.lost.is_empty() {
            settling.why = reason.to_owned();
        }
        settling.lost.extend(lost);
        if self.group.is_empty() {
            self.settle(actions); // nobody is left to be heard
        }
    }

    pub(super) fn on_collective_failed(&mut self, worker: WorkerId, (generation, step): (u64, u64), report: Report) {
        let current = generation == self.generation && step == self.next_step && self.group.contains(&worker);
        if current && matches!(self.phase, Phase::Stepping { .. } | Phase::Settling(_)) {
            self.settling().reports.entry(worker).or_insert(report);
        }
    }

    /// Begins to gather, unless it has begun. What comes now is the last that is known.
    fn settling(&mut self) -> &mut Settling {
        let now = self.now;
        if !matches!(self.phase, Phase::Settling(_)) {
            self.phase = Phase::Settling(Settling::new(now));
        }
        let Phase::Settling(settling) = &mut self.phase else { unreachable!("it has just begun") };
        settling.last = now;
        settling
    }

    /// Decides when it is time.
    pub(super) fn try_settle(&mut self, actions: &mut Vec<Action>) {
        if self.next_look().is_some_and(|at| self.now >= at) {
            match self.phase {
                Phase::CatchingUp { .. } => self.give_up_stuck_joiners(actions),
                _ => self.settle(actions),
            }
        }
    }

    fn settle(&mut self, actions: &mut Vec<Action>) {
        let Phase::Settling(settling) = &self.phase else { return };
        let (reason, broken) = (settling.reason(), settling.broken_links());
        if self.nccl.is_in_use() {
            let complaint = settling.complaint().map(|(worker, report)| (worker, report.reason.clone()));
            if complaint.is_some_and(|(worker, reason)| self.on_nccl_failure(worker, &reason, actions)) {
                return;
            }
        } else {
            self.on_broken_links(&broken, actions);
        }
        self.regroup(&reason, actions);
    }
}
