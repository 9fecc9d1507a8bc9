//! What the core decides, as messages to workers.

use ballast_proto::v1;
use ballast_proto::v1::session_response::Message as ToWorker;

use super::{Driver, Session};
use crate::error::RunError;
use crate::events::RunEvent;
use crate::ledger::MemberRow;
use crate::membership::WorkerId;
use crate::run_state::Action;
use crate::wire;

impl Driver {
    pub(super) async fn perform(&mut self, action: Action) -> Result<(), RunError> {
        match action {
            Action::Refuse { worker, reason } => {
                self.send(worker, wire::refuse(&reason));
                self.sessions.remove(&worker);
                tracing::warn!(worker, reason, "a worker was refused");
            }
            Action::Welcome { worker, catch_up } => {
                let welcome = self.welcome(worker, catch_up);
                self.send(worker, wire::response(ToWorker::Welcome(welcome)));
                let MemberRow { host, device, process_id, .. } = self.sessions[&worker].row.clone();
                self.emit(RunEvent::WorkerJoined { worker_id: worker, host, device, process_id });
            }
            Action::UseNccl { generation, .. } => self.use_nccl(generation),
            Action::WithoutNccl { reason } => self.go_without_nccl(&reason),
            Action::ShareNcclId { generation, id, workers } => self.share_nccl_id(generation, id, &workers),
            Action::Group { generation, workers } => self.form_group(generation, &workers)?,
            Action::Plan { generation, step, workers } => self.plan(generation, step, &workers).await?,
            Action::Apply { generation, step, gradient_hash, workers } => {
                let planned = self.planned.remove(&step);
                self.traceparent =
                    planned.map(|planned| ballast_proto::current_traceparent(&planned.span)).unwrap_or_default();
                let traceparent = self.traceparent.clone();
                let chain = self.core.chain().to_owned();
                let commit = v1::Commit { generation, step, gradient_hash, traceparent, chain };
                self.send_all(&workers, &wire::response(ToWorker::Commit(commit)));
            }
            Action::Abort { generation, reason, workers } => {
                self.planned.clear();
                self.send_all(&workers, &wire::response(ToWorker::Abort(v1::Abort { generation, reason })));
            }
            Action::LeaveOut { worker, peers, attempts } => self.tell_who_is_left_out(worker, &peers, attempts),
            Action::Offer { source, joiner, transfer, next_step } => {
                tracing::info!(worker = joiner, source, next_step, "a worker is sent the state");
                self.send(source, wire::response(ToWorker::Offer(v1::Offer { transfer, next_step })));
            }
            Action::Fetch { joiner, source, transfer, next_step, state_hash } => {
                let Some(Session { collective_address, params_count, .. }) = self.sessions.get(&source) else {
                    return Ok(()); // its reader is about to report the loss
                };
                let (address, params_count) = (collective_address.clone(), *params_count);
                let chain = self.core.chain().to_owned();
                let fetch = v1::Fetch { transfer, next_step, state_hash, address, params_count, chain };
                self.send(joiner, wire::response(ToWorker::Fetch(fetch)));
            }
            Action::Milestone { milestone, next_step, request, workers } => {
                self.start_milestone(milestone, next_step, request, &workers);
            }
            Action::CheckpointSkipped { next_step, busy_with } => {
                tracing::warn!(next_step, busy_with, "a checkpoint is left out: an earlier one is still being written");
            }
            Action::MilestoneDone { milestone, next_step } => self.finish_milestone(milestone, next_step)?,
            Action::Evict { worker, rank, reason, may_return } => {
                let host = self.sessions.get(&worker).map(|session| session.row.host.clone());
                tracing::warn!(worker, rank, host, reason, "a worker was lost");
                self.send(worker, if may_return { wire::start_over(&reason) } else { wire::refuse(&reason) });
                self.sessions.remove(&worker);
                self.emit(RunEvent::WorkerLost { worker_id: worker, rank, reason });
            }
            Action::Finish { workers, reason } => {
                self.send_all(&workers, &wire::response(ToWorker::Finish(v1::Finish { reason: reason.to_owned() })));
            }
            Action::StartOver { workers, reason } => {
                for worker in workers {
                    tracing::warn!(worker, reason, "a worker is asked to join anew");
                    self.send(worker, wire::start_over(&reason));
                    self.sessions.remove(&worker);
                }
            }
            Action::Wait { message } => {
                tracing::info!(what = message, "the run waits");
                self.emit(RunEvent::Waiting { message });
            }
            Action::Commit { .. } | Action::RollBack { .. } | Action::Ended(_) => unreachable!("handle() takes these"),
        }
        Ok(())
    }

    fn tell_who_is_left_out(&self, worker: WorkerId, peers: &[WorkerId], attempts: u32) {
        let name = |worker: &WorkerId| match self.sessions.get(worker) {
            Some(session) => format!("worker {worker} ({}, {})", session.row.host, session.collective_address),
            None => format!("worker {worker}"),
        };
        let names: Vec<_> = peers.iter().map(name).collect();
        let (what, until) = match peers {
            [peer] => (
                format!("{} and {} could not reach each other", names[0], name(&worker)),
                format!("worker {peer} is gone"),
            ),
            _ => (format!("{} could not reach {}", name(&worker), names.join(", ")), "these are gone".to_owned()),
        };
        let message = format!(
            "{what}, {attempts} times in a row: worker {worker} is left out, and tried again when {until}, or in 10 minutes\n\
             hint: each worker must reach every other at the address it listens on (--listen, firewalls, wrong interface)"
        );
        tracing::warn!(worker, ?peers, attempts, "two workers cannot reach each other; one is left out");
        self.emit(RunEvent::Notice { message });
    }

    fn welcome(&self, worker: WorkerId, catch_up: bool) -> v1::Welcome {
        // By the time somebody joins late, the checkpoint of the start may have been deleted for newer ones.
        let checkpoint = self.checkpoint.as_deref().filter(|_| !catch_up).map(wire::path_text).unwrap_or_default();
        v1::Welcome {
            run_id: self.run_id.clone(),
            worker_id: worker,
            config_toml: self.config_toml.clone(),
            checkpoint,
            next_step: self.core.next_step(),
            heartbeat_interval_ms: wire::milliseconds(self.config.cluster.heartbeat_interval),
            collective_timeout_ms: wire::milliseconds(self.config.cluster.collective_timeout),
            catch_up,
            run_key: self.run_key.clone(),
            incarnation: self.incarnation,
            chain: if catch_up { String::new() } else { self.core.chain().to_owned() },
            run_folder: wire::path_text(&self.run_folder),
            run_state_json: self.run_state().to_string(),
            coordinator_timeout_ms: self.config.cluster.coordinator_timeout.as_millis() as u64,
        }
    }

    fn form_group(&mut self, generation: u64, workers: &[WorkerId]) -> Result<(), RunError> {
        self.settle_untrained(workers);
        self.share_slots_anew(workers);
        let members: Vec<_> = workers.iter().map(|worker| self.sessions[worker].row.clone()).collect();
        self.ledger.record_members(generation, &members)?;
        let peer = |worker: &WorkerId| v1::Peer {
            worker_id: *worker,
            collective_address: self.sessions[worker].collective_address.clone(),
        };
        let peers: Vec<_> = workers.iter().map(peer).collect();
        let transport = self.transport_of(generation).into();
        for (rank, worker) in workers.iter().enumerate() {
            let group = v1::Group { generation, rank: rank as u32, peers: peers.clone(), transport };
            self.send(*worker, wire::response(ToWorker::Group(group)));
        }
        self.emit(RunEvent::Started {
            generation,
            world_size: workers.len() as u32,
            next_step: self.core.next_step(),
            stop_step: self.stop_step,
        });
        Ok(())
    }
}
