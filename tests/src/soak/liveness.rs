//! Does the run go on? Pure: the supervisor says what happened when; this says how long nothing may be committed for.
//!
//! A stall is the time from a commit to the next one. Time in which nobody could commit (no coordinator, or no worker that
//! runs) does not count. What was done to the run gives it time: so much after a closed connection, so much after silence,
//! so much after a new start. Where several things happened, the latest of the deadlines holds, and the stall is named after
//! the strongest of what happened in it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What gives a run time to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A connection closed: a worker was killed, or left, or joined.
    Closed,
    /// A worker fell silent.
    Silence,
    /// There was no coordinator, or no worker, and now there is.
    Restart,
    /// Nobody who runs holds the state: some may come back with it, or the run goes back to a checkpoint.
    Orphaned,
}

/// How long nothing may be committed after each cause.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limits {
    pub(super) closed: Duration,
    pub(super) silence: Duration,
    pub(super) restart: Duration,
    pub(super) orphaned: Duration,
}

/// What happened, when, and until when that is a reason.
#[derive(Debug, Clone, Copy)]
struct Happened {
    cause: Cause,
    at: Duration,
    deadline: Duration,
}

/// So long after something has happened, a commit may come that was under way already.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// A time in which nothing was committed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stall {
    pub(super) cause: Cause,
    pub(super) length: Duration,
    pub(super) allowed: Duration,
}

/// Watches a run. Times are counted from the start of the program.
#[derive(Debug)]
pub(super) struct Liveness {
    limits: Limits,
    /// Since when nothing was committed although somebody could.
    since: Duration,
    /// Whether nobody can commit.
    blocked: bool,
    causes: Vec<Happened>,
    /// The longest stall of each kind.
    pub(super) longest: BTreeMap<Cause, Stall>,
}

impl Liveness {
    pub(super) fn new(limits: Limits, now: Duration) -> Self {
        Self { limits, since: now, blocked: false, causes: Vec::new(), longest: BTreeMap::new() }
    }

    /// Something was done to the run.
    pub(super) fn disturb(&mut self, cause: Cause, now: Duration) {
        let limit = match cause {
            Cause::Closed => self.limits.closed,
            Cause::Silence => self.limits.silence,
            Cause::Restart => self.limits.restart,
            Cause::Orphaned => self.limits.orphaned,
        };
        self.causes.push(Happened { cause, at: now, deadline: now + limit });
    }

    /// Says whether anybody can commit at all.
    pub(super) fn set_blocked(&mut self, blocked: bool, now: Duration) {
        if self.blocked && !blocked {
            self.since = now;
            self.disturb(Cause::Restart, now);
        }
        self.blocked = blocked;
    }

    /// This program, hence the machine, stood still for so long.
    pub(super) fn excuse(&mut self, time: Duration) {
        self.since += time;
        self.causes.iter_mut().for_each(|happened| happened.deadline += time);
    }

    /// A step was committed. Returns the stall that it ends.
    pub(super) fn committed(&mut self, now: Duration) -> Stall {
        let stall = self.stall(now);
        let longest = self.longest.entry(stall.cause).or_insert(stall);
        if stall.length > longest.length {
            *longest = stall;
        }
        self.since = now;
        self.causes.retain(|happened| happened.deadline > now);
        stall
    }

    /// Returns the stall that has become too long, if there is one.
    pub(super) fn violation(&self, now: Duration) -> Option<Stall> {
        let stall = self.stall(now);
        (!self.blocked && stall.length > stall.allowed).then_some(stall)
    }

    fn stall(&self, now: Duration) -> Stall {
        let in_force = self.causes.iter().filter(|happened| happened.deadline > self.since);
        let latest = in_force.clone().map(|happened| happened.deadline).max().unwrap_or_default();
        let in_it = in_force.filter(|happened| happened.at + UNDER_WAY >= self.since);
        let strongest = in_it.map(|happened| happened.cause).max();
        let deadline = latest.max(self.since + self.limits.closed);
        let cause = strongest.unwrap_or(Cause::Closed);
        Stall { cause, length: now.saturating_sub(self.since), allowed: deadline.saturating_sub(self.since) }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = match self.cause {
            Cause::Closed => "a closed connection",
            Cause::Silence => "silence",
            Cause::Restart => "a restart",
            Cause::Orphaned => "the loss of all who held the state",
        };
        let (length, allowed) = (self.length.as_secs_f64(), self.allowed.as_secs_f64());
        write!(f, "{length:.1} s of {allowed:.1} s after {after}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness() -> Liveness {
        let (closed, silence, restart, orphaned) = (seconds(3.0), seconds(4.0), seconds(6.0), seconds(9.0));
        Liveness::new(Limits { closed, silence, restart, orphaned }, Duration::ZERO)
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_run_that_nobody_disturbs_may_not_stall() {
        let mut liveness = liveness();
        liveness.committed(seconds(1.0));
        assert!(liveness.violation(seconds(4.0)).is_none());
        assert!(liveness.violation(seconds(4.1)).is_some());
    }

    #[test]
    fn silence_gives_more_time_also_across_a_commit_that_was_under_way() {
        let mut liveness = liveness();
        liveness.disturb(Cause::Silence, seconds(1.0));
        liveness.committed(seconds(1.1));
        assert!(liveness.violation(seconds(4.9)).is_none());
        let stall = liveness.violation(seconds(5.1)).unwrap();
        assert_eq!((stall.cause, stall.allowed), (Cause::Silence, seconds(3.9)));
        // Once over, it is no reason any more.
        liveness.committed(seconds(5.2));
        assert!(liveness.violation(seconds(8.3)).is_some());
    }

    #[test]
    fn later_disturbances_put_the_deadline_off() {
        let mut liveness = liveness();
        liveness.disturb(Cause::Silence, seconds(1.0));
        liveness.disturb(Cause::Closed, seconds(4.0));
        assert!(liveness.violation(seconds(6.9)).is_none());
        assert!(liveness.violation(seconds(7.1)).is_some());
    }

    #[test]
    fn time_without_a_coordinator_does_not_count() {
        let mut liveness = liveness();
        liveness.set_blocked(true, seconds(1.0));
        assert!(liveness.violation(seconds(100.0)).is_none());
        liveness.set_blocked(false, seconds(100.0));
        assert!(liveness.violation(seconds(105.9)).is_none());
        assert!(liveness.violation(seconds(106.1)).is_some());
        let stall = liveness.committed(seconds(102.0));
        assert_eq!((stall.cause, stall.length), (Cause::Restart, seconds(2.0)));
        assert_eq!(liveness.longest[&Cause::Restart], stall);
    }

    #[test]
    fn a_machine_that_stood_still_is_no_fault_of_the_run() {
        let mut liveness = liveness();
        liveness.excuse(seconds(10.0));
        assert!(liveness.violation(seconds(12.9)).is_none());
        assert!(liveness.violation(seconds(13.1)).is_some());
    }
}
