//! What workers do when something happens to them.

use std::collections::BTreeMap;

use ballast_coordinator::run_state::{Action, Event, Milestone, WorkerId};

use super::{Broken, File, Happening, World};
use crate::simulation::truth::{self, FIRST_STATE};
use crate::simulation::worker::{Activity, NO_CHAIN, Worker};

impl World {
    /// A process starts on a machine and connects; it tries again while nobody answers.
    pub(super) fn start_worker(&mut self, machine: usize) {
        if self.core.is_none() || self.links.is_cut_off(machine, self.now) {
            self.plan(300, Happening::StartWorker { machine });
            return;
        }
        let worker = self.next_worker;
        self.next_worker += 1;
        self.workers.insert(worker, Worker::new(machine));
        self.sessions.insert(worker);
        self.say(worker, Event::Joined { worker, former: None });
        self.say_nccl_ability(worker);
        self.plan(1_000, Happening::Heartbeat { worker });
    }

    /// A process ends. Its machine starts another one a little later.
    pub(super) fn end_worker(&mut self, worker: WorkerId, connection_closes: bool) {
        let Some(ended) = self.workers.remove(&worker) else { return };
        if connection_closes && self.sessions.contains(&worker) {
            let time = self.arrival(ended.machine, worker, true);
            let event = Event::Left { worker, reason: "its connection was closed".to_owned() };
            self.plan_at(time, Happening::Event { life: self.life, worker: Some(worker), event });
        }
        self.hang_up(worker);
        let delay = self.rng.within(100..3_000);
        self.plan(delay, Happening::StartWorker { machine: ended.machine });
    }

    /// Sends an event to the coordinator, in order; now and then a copy of it comes late.
    pub(super) fn say(&mut self, worker: WorkerId, event: Event) {
        let machine = self.workers[&worker].machine;
        let time = self.arrival(machine, worker, true);
        let happening = Happening::Event { life: self.life, worker: Some(worker), event };
        if self.duplicates_now() && self.rng.one_in(8) {
            let later = time + self.rng.within(0..3_000);
            self.plan_at(later, happening.clone());
        }
        if let Happening::Event { event, .. } = &happening {
            let worker = self.workers.get_mut(&worker).expect("it has just spoken");
            match event {
                Event::Ready { .. } => worker.ready_since = time,
                Event::Joined { .. } | Event::NcclAbility { .. } | Event::Heard { .. } => {}
                event => worker.last_said = Some(event.clone()),
            }
        }
        self.plan_at(time, happening);
    }

    pub(super) fn on_message(&mut self, id: WorkerId, message: Action) -> Result<(), String> {
        if self.workers.get(&id).is_none_or(|worker| worker.away_since.is_some()) {
            return Ok(());
        }
        if self.on_nccl_message(id, &message)? {
            return self.pump(id);
        }
        let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
        match message {
            Action::Refuse { .. } | Action::Evict { .. } | Action::StartOver { .. } | Action::Finish { .. } => {
                self.parted.insert(id);
                self.end_worker(id, false);
                return Ok(());
            }
            message => worker.receive(message),
        }
        self.pump(id)
    }

    /// Lets a worker go on: with its messages, then with the next step.
    pub(super) fn pump(&mut self, id: WorkerId) -> Result<(), String> {
        loop {
            let Some(worker) = self.workers.get_mut(&id) else { return Ok(()) };
            if worker.activity != Activity::Idle {
                return Ok(());
            }
            if let Some(message) = worker.inbox.pop_front() {
                self.obey(id, message)?;
            } else if let Some(step) = worker.next_plan() {
                let generation = worker.generation;
                self.begin(id, Activity::Computing { generation, step }, 150);
            } else {
                return Ok(());
            }
        }
    }

    pub(super) fn begin(&mut self, id: WorkerId, activity: Activity, at_most: u64) {
        let worker = self.workers.get_mut(&id).expect("only living workers begin something");
        worker.begin(activity);
        let number = worker.activity_number;
        let delay = self.rng.within(1..at_most);
        self.plan(delay, Happening::Activity { worker: id, number });
    }

    fn obey(&mut self, id: WorkerId, message: Action) -> Result<(), String> {
        let chain = self.chain_after(self.first_step);
        let applied_chain = |world: &Self, step: u64| world.chain_after(step + 1);
        let next_chain =
            if let Action::Apply { step, .. } = &message { applied_chain(self, *step) } else { String::new() };
        let welcomed = self.welcomed.get(&id).copied().unwrap_or_default();
        let worker = self.workers.get_mut(&id).expect("only living workers obey");
        match message {
            Action::Welcome { .. } if worker.is_welcomed => self.say_ready(id),
            Action::Welcome { catch_up, .. } => {
                worker.is_welcomed = true;
                worker.history = welcomed;
                worker.chain = if catch_up { NO_CHAIN.to_owned() } else { chain };
                worker.next_step = (!catch_up).then_some(self.first_step);
                worker.state = if catch_up { FIRST_STATE } else { self.truth[self.first_step as usize] };
                self.begin(id, Activity::Loading, 500);
            }
            Action::Group { generation, workers } => {
                if generation <= worker.generation {
                    return Err(format!("worker {id} is told of generation {generation} after a later one"));
                }
                worker.end_generation();
                (worker.generation, worker.group) = (generation, workers);
                worker.history = welcomed; // it holds the state that the ledger has
            }
            Action::Plan { generation, step, .. } => {
                worker.plans.insert(step, generation);
            }
            Action::Apply { step, gradient_hash, .. } => {
                let Some((_, held, gradient)) = worker.pending.take() else {
                    return Err(format!("worker {id} is told to apply step {step}, for which it did not vote"));
                };
                if held != step || gradient_hash != truth::hash(gradient) {
                    return Err(format!("worker {id} is told to apply step {step}, it holds step {held}"));
                }
                worker.state = truth::apply(worker.state, gradient);
                worker.next_step = Some(step + 1);
                worker.chain = next_chain;
                if worker.state != self.truth[step as usize + 1] {
                    return Err(format!("after step {step} worker {id} holds another state than the undisturbed run"));
                }
            }
            Action::Abort { generation, .. } if generation == worker.generation => worker.end_generation(),
            Action::Abort { .. } => {}
            Action::Offer { transfer, next_step, .. } => {
                if worker.next_step != Some(next_step) {
                    return Err(format!("worker {id} is to offer {next_step} steps, it has {:?}", worker.next_step));
                }
                worker.offers.insert(transfer);
                let state_hash = truth::hash(worker.state);
                self.say(id, Event::Offered { worker: id, transfer, state_hash });
            }
            Action::Fetch { transfer, next_step, ref state_hash, .. }
                if worker.next_step == Some(next_step) && truth::hash(worker.state) == *state_hash =>
            {
                let state_hash = state_hash.clone();
                self.say(id, Event::CaughtUp { worker: id, transfer, state_hash });
            }
            Action::Fetch { .. } => {
                worker.pending = None;
                worker.chain = NO_CHAIN.to_owned();
                worker.next_step = None;
                self.begin(id, Activity::Fetching(message), 1_500);
            }
            Action::Milestone { next_step, .. } => {
                if worker.next_step != Some(next_step) {
                    return Err(format!("worker {id} is to save {next_step} steps, it has {:?}", worker.next_step));
                }
                if matches!(message, Action::Milestone { milestone: Milestone::Checkpoint, .. }) {
                    return self.save(id, message);
                }
                self.begin(id, Activity::Milestone(message), 300);
            }
            other => return Err(format!("worker {id} is sent {other:?}")),
        }
        Ok(())
    }

    pub(super) fn on_activity(&mut self, id: WorkerId, number: u64) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.activity_number == number) else {
            return Ok(());
        };
        match std::mem::replace(&mut worker.activity, Activity::Idle) {
            Activity::Loading => self.say_ready(id),
            Activity::Computing { generation, step } => {
                worker.begin(Activity::Reducing { generation, step });
                return self.reduce(id, generation, step);
            }
            Activity::Milestone(Action::Milestone { milestone, next_step, request, workers }) => {
                if workers[0] == id {
                    match milestone {
                        Milestone::Checkpoint => return Err("a checkpoint is written from a copy".to_owned()),
                        Milestone::Final => self.disk.final_state = Some(worker.state),
                        Milestone::Samples => {}
                    }
                }
                let params_hash = (milestone != Milestone::Samples).then(|| truth::hash(worker.state));
                self.say(id, Event::Done { worker: id, milestone, next_step, request, params_hash });
            }
            Activity::Fetching(Action::Fetch { source, transfer, next_step, state_hash, .. }) => {
                self.fetched(id, source, transfer, next_step, state_hash);
            }
            other => return Err(format!("{other:?} ends of itself")),
        }
        self.pump(id)
    }

    /// Who writes a checkpoint takes a copy and goes on; the others answer at once.
    fn save(&mut self, id: WorkerId, message: Action) -> Result<(), String> {
        let Action::Milestone { next_step, request, workers, milestone } = &message else { unreachable!("it is one") };
        let Worker { state, chain, history, .. } = &self.workers[&id];
        let file = File { state: *state, chain: chain.clone(), history: *history };
        let state = file.state;
        if workers[0] == id {
            // A disk that hangs may take longer than a run takes to go back.
            let delay = if self.rng.one_in(10) { self.rng.within(4_000..60_000) } else { self.rng.within(1..4_000) };
            self.plan(delay, Happening::Saved { worker: id, message, file });
        } else {
            let (next_step, request, milestone) = (*next_step, *request, *milestone);
            let params_hash = Some(truth::hash(state));
            self.say(id, Event::Done { worker: id, milestone, next_step, request, params_hash });
        }
        Ok(())
    }

    /// The copy is on the disk, unless the disk was full.
    pub(super) fn on_saved(&mut self, id: WorkerId, message: Action, file: File) -> Result<(), String> {
        let Action::Milestone { next_step, request, milestone, .. } = message else { unreachable!("it is one") };
        if !self.workers.contains_key(&id) {
            // Half a checkpoint, which nobody sees; unless its writer has waited for it before it ended.
            if self.parted.contains(&id) {
                self.replace_file(next_step, file);
            }
            return self.check_checkpoints();
        }
        let may_fail = self.background_saves.contains(&(self.life, request));
        let params_hash = Some(truth::hash(file.state));
        if (may_fail && self.rng.one_in(5)) || !self.replace_file(next_step, file) {
            self.tally.failed_saves += 1;
            self.say(id, Event::SaveFailed { worker: id, milestone, next_step, request });
        } else {
            self.say(id, Event::Done { worker: id, milestone, next_step, request, params_hash });
        }
        self.check_checkpoints()
    }

    /// Renames a checkpoint to its final name, unless one stands there that was asked for after a later return to a checkpoint.
    pub(super) fn replace_file(&mut self, next_step: u64, file: File) -> bool {
        let is_outdated = self.disk.files.get(&next_step).is_some_and(|other| other.history > file.history);
        if !is_outdated {
            self.disk.files.insert(next_step, file);
        }
        !is_outdated
    }

    /// What the ledger calls a checkpoint is one of its own commits.
    fn check_checkpoints(&self) -> Result<(), String> {
        let is_ours = |step: &u64| self.disk.files.get(step).is_some_and(|file| file.chain == self.chain_after(*step));
        match self.disk.checkpoints.iter().find(|step| !is_ours(step)) {
            None => Ok(()),
            Some(step) => Err(format!("the checkpoint of {step} steps is of other commits than the ledger's")),
        }
    }

    fn fetched(&mut self, id: WorkerId, source: WorkerId, transfer: u64, next_step: u64, state_hash: String) {
        let (machine, now) = (self.workers[&id].machine, self.now);
        let chain = self.workers.get(&source).map(|peer| peer.chain.clone()).unwrap_or_default();
        let is_open = |peer: &&Worker| {
            peer.offers.contains(&transfer)
                && peer.next_step == Some(next_step)
                && peer.paused_until <= now
                && !self.links.are_apart(machine, peer.machine, now)
        };
        let state = self.workers.get(&source).filter(is_open).map(|peer| peer.state);
        let event = match state {
            Some(state) if truth::hash(state) == state_hash => {
                let worker = self.workers.get_mut(&id).expect("it has just fetched");
                (worker.state, worker.next_step) = (state, Some(next_step));
                worker.chain = chain;
                self.tally.catch_ups += 1;
                Event::CaughtUp { worker: id, transfer, state_hash }
            }
            _ => Event::FetchFailed { worker: id, transfer, reason: "the connection broke".to_owned() },
        };
        self.say(id, event);
    }

    /// A worker has computed its slots. When all have, and all links hold, each gets the sum, at a time of its own.
    pub(super) fn reduce(&mut self, id: WorkerId, generation: u64, step: u64) -> Result<(), String> {
        let group = self.workers[&id].group.clone();
        let reducing = Activity::Reducing { generation, step };
        let is_apart = |one: &WorkerId, other: &WorkerId| match (self.workers.get(one), self.workers.get(other)) {
            (Some(one), Some(other)) => self.links.are_apart(one.machine, other.machine, self.now),
            _ => true,
        };
        let peer_of = |one: &WorkerId| group.iter().position(|other| one != other && is_apart(one, other));
        let broken: BTreeMap<WorkerId, usize> = group.iter().filter_map(|one| Some((*one, peer_of(one)?))).collect();
        if let Some(rank) = group.iter().position(|member| !self.workers.contains_key(member)) {
            self.break_sum(id, Broken { rank: rank as u32, closed: true }, 50);
            return Ok(());
        }
        if group.iter().any(|member| self.workers[member].activity != reducing) {
            return Ok(());
        }
        let nccl = self.nccl_group(generation, &group)?;
        if nccl == Some(false) {
            return Ok(()); // the id is on its way
        }
        if nccl.is_some() && self.is_nccl_broken() {
            for member in group {
                // What NCCL says about who is to blame must not matter.
                self.break_sum(member, Broken { rank: 0, closed: false }, 2_000);
            }
            return Ok(());
        }
        for member in group {
            let worker = &self.workers[&member];
            if worker.state != self.truth[step as usize] || worker.next_step != Some(step) {
                return Err(format!("worker {member} adds to step {step} from another state"));
            }
            if let Some(peer_rank) = broken.get(&member) {
                let broken = Broken { rank: *peer_rank as u32, closed: false };
                self.break_sum(member, broken, 2_000);
            } else if broken.is_empty() {
                let number = worker.activity_number;
                let delay = self.rng.within(1..40);
                self.plan(delay, Happening::Sum { worker: member, number, broken: None });
            }
        }
        Ok(())
    }

    /// A worker closes its links, or they end with it: whoever waits for a sum of its group finds that, a little later.
    pub(super) fn hang_up(&mut self, id: WorkerId) {
        let generation = self.workers.get(&id).map(|worker| worker.generation);
        let others = self.workers.iter().filter(|(peer, worker)| {
            **peer != id && generation.is_none_or(|generation| generation == worker.generation)
        });
        for peer in others.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            if let Some(rank) = self.workers[&peer].group.iter().position(|member| *member == id) {
                self.break_sum(peer, Broken { rank: rank as u32, closed: true }, 50);
            }
        }
    }

    /// A worker that waits for a sum finds a link broken, a little later.
    fn break_sum(&mut self, id: WorkerId, broken: Broken, at_most: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        if matches!(worker.activity, Activity::Reducing { .. }) {
            let number = worker.activity_number;
            let delay = self.rng.within(1..at_most);
            self.plan(delay, Happening::Sum { worker: id, number, broken: Some(broken) });
        }
    }

    pub(super) fn on_sum(&mut self, id: WorkerId, number: u64, broken: Option<Broken>) -> Result<(), String> {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.activity_number == number) else {
            return Ok(());
        };
        let Activity::Reducing { generation, step } = worker.activity else { return Ok(()) };
        worker.begin(Activity::Idle);
        let event = if broken.is_none() {
            let mut gradient = truth::gradient(step, worker.state);
            if worker.corrupt_until > now && worker.group.len() > 1 {
                gradient ^= id;
            }
            worker.pending = Some((generation, step, gradient));
            Event::Reduced { worker: id, generation, step, gradient_hash: truth::hash(gradient) }
        } else {
            let (peer_rank, peer_closed) = (broken.map(|it| it.rank), broken.is_some_and(|it| it.closed));
            let reason = "a link broke".to_owned();
            Event::CollectiveFailed { worker: id, generation, step, peer_rank, peer_closed, reason }
        };
        if broken.is_some() {
            self.hang_up(id);
        }
        self.say(id, event);
        self.pump(id)
    }
}
