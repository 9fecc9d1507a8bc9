//! Workers that outlive their coordinator, or the connection to it: they keep what they hold, look for it, and say what they
//! hold; or they save and end, because nobody came back.

use ballast_coordinator::run_state::{Event, WorkerId};

use super::{File, Happening, Millis, World};
use crate::simulation::truth;
use crate::simulation::worker::{Activity, NO_CHAIN, Worker};

/// A worker outlives its coordinator for so long.
const COORDINATOR_TIMEOUT: Millis = 40_000;

impl World {
    /// A connection is broken, and both sides know.
    pub(super) fn on_broken(&mut self, id: WorkerId) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
        if !self.may_return || !worker.is_welcomed {
            self.end_worker(id, true);
            return Ok(());
        }
        if worker.away_since.is_some() {
            return Ok(());
        }
        worker.away_since = Some(self.now);
        let machine = worker.machine;
        if !matches!(worker.activity, Activity::Loading | Activity::Milestone(_)) {
            worker.begin(Activity::Idle); // the work of a generation ends, and so does a fetch
        }
        worker.plans.clear();
        if self.sessions.contains(&id) {
            let time = self.arrival(machine, id, true);
            let event = Event::Left { worker: id, reason: "its connection broke".to_owned() };
            self.plan_at(time, Happening::Event { life: self.life, worker: Some(id), event });
        }
        self.hang_up(id);
        let delay = self.rng.within(1..2_000);
        self.plan(delay, Happening::Knock { worker: id });
        // What had arrived is done, in order: a commit among it counts.
        self.pump(id)
    }

    /// Tries once to reach a coordinator.
    pub(super) fn on_knock(&mut self, id: WorkerId) -> Result<(), String> {
        let Some(worker) = self.workers.get(&id) else { return Ok(()) };
        let Some(away_since) = worker.away_since else { return Ok(()) };
        if self.now > away_since + COORDINATOR_TIMEOUT {
            self.save_alone(id);
            self.end_worker(id, false);
            return Ok(());
        }
        let is_reachable = self.core.is_some() && !self.links.is_cut_off(worker.machine, self.now);
        if !is_reachable || worker.activity != Activity::Idle {
            let delay = self.rng.within(1..2_000);
            self.plan(delay, Happening::Knock { worker: id });
            return Ok(());
        }
        let mut worker = self.workers.remove(&id).expect("it was just seen");
        let former = Some(id);
        let id = self.next_worker;
        self.next_worker += 1;
        worker.away_since = None;
        worker.ready_since = Millis::MAX;
        worker.inbox.clear();
        let pending = worker.pending.take();
        worker.end_generation();
        worker.pending = pending;
        self.workers.insert(id, worker);
        self.sessions.insert(id);
        self.tally.returns += 1;
        self.say(id, Event::Joined { worker: id, former });
        self.say_nccl_ability(id);
        self.plan(1_000, Happening::Heartbeat { worker: id });
        Ok(())
    }

    pub(super) fn say_ready(&mut self, id: WorkerId) {
        let stale = self.workers.get_mut(&id).and_then(|worker| worker.last_said.take());
        let held = self.workers[&id].held();
        self.say(id, Event::Ready { worker: id, held });
        // Whatever it said over its last connection comes once more, over this one.
        if let Some(stale) = stale.filter(|_| self.duplicates_now()) {
            self.say(id, said_by(stale, id));
        }
    }

    /// A checkpoint that no coordinator has asked for.
    fn save_alone(&mut self, id: WorkerId) {
        let Worker { next_step, state, chain, .. } = &self.workers[&id];
        if let Some(next_step) = next_step.filter(|next_step| *next_step > 0 && !chain.is_empty() && chain != NO_CHAIN)
        {
            debug_assert!(self.truth[next_step as usize] == *state, "{}", truth::hash(*state));
            let file = File { state: *state, chain: chain.clone(), history: self.workers[&id].history };
            self.tally.saved_alone += 1;
            self.replace_file(next_step, file);
        }
    }
}

/// The same event, of another worker.
fn said_by(event: Event, worker: WorkerId) -> Event {
    match event {
        Event::Reduced { generation, step, gradient_hash, .. } => {
            Event::Reduced { worker, generation, step, gradient_hash }
        }
        Event::CollectiveFailed { generation, step, peer_rank, peer_closed, reason, .. } => {
            Event::CollectiveFailed { worker, generation, step, peer_rank, peer_closed, reason }
        }
        Event::Done { milestone, next_step, request, params_hash, .. } => {
            Event::Done { worker, milestone, next_step, request, params_hash }
        }
        Event::Offered { transfer, state_hash, .. } => Event::Offered { worker, transfer, state_hash },
        Event::CaughtUp { transfer, state_hash, .. } => Event::CaughtUp { worker, transfer, state_hash },
        Event::FetchFailed { transfer, reason, .. } => Event::FetchFailed { worker, transfer, reason },
        Event::NcclId { generation, id, .. } => Event::NcclId { worker, generation, id },
        Event::NcclUnusable { generation, reason, .. } => Event::NcclUnusable { worker, generation, reason },
        other => other,
    }
}
