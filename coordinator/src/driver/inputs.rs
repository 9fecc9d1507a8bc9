//! What connections say, in the words of the core; and notes of what the core does not need to know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ballast_proto::v1::session_request::Message as FromWorker;
use ballast_proto::{PROTOCOL_VERSION, v1};

use super::steps::pixels_of;
use super::{Driver, Session, nccl};
use crate::ledger::MemberRow;
use crate::membership::WorkerId;
use crate::run_state::{Event, Held, Milestone};
use crate::service::Input;
use crate::wire;

impl Driver {
    /// Translates what a connection says; notes what the core does not need to know.
    pub(super) fn event_of(&mut self, input: Input) -> Option<Event> {
        match input {
            Input::Joined { mut join, remote, outbox, id } => {
                let worker = self.next_worker;
                self.next_worker += 1;
                // Fails only when the connection is gone already; its reader will say so.
                let _ = id.send(worker);
                if !join.run_key.is_empty() && join.run_key != self.run_key {
                    let reason = format!(
                        "it takes part in another run: this is the coordinator of `{}`, which is not the one that it joined",
                        self.run_id
                    );
                    tracing::warn!(host = join.host, process_id = join.process_id, reason, "a worker was refused");
                    let _ = outbox.try_send(Ok(wire::refuse(&reason)));
                    return None;
                }
                if join.protocol_version != PROTOCOL_VERSION {
                    let reason = format!(
                        "it speaks protocol {} (ballast {}), this coordinator {PROTOCOL_VERSION} (ballast {})",
                        join.protocol_version,
                        join.program_version,
                        env!("CARGO_PKG_VERSION")
                    );
                    let _ = outbox.try_send(Ok(wire::refuse(&reason)));
                    return None;
                }
                let nccl = nccl::ability(join.nccl.take());
                if let Some(reason) = self.nccl_refusal(&nccl) {
                    tracing::warn!(host = join.host, process_id = join.process_id, reason, "a worker was refused");
                    let _ = outbox.try_send(Ok(wire::refuse(&reason)));
                    return None;
                }
                let collective_address = wire::reachable(&join.collective_address, remote);
                let v1::Join { host, device, process_id, former_worker_id: former, .. } = join;
                // A number may have been given to somebody else since an earlier start.
                let is_other = self
                    .sessions
                    .get(&former)
                    .is_some_and(|session| (&session.row.host, session.row.process_id) != (&host, process_id));
                let former = (former > 0 && !is_other).then_some(former);
                let row = MemberRow { worker, host, device, process_id };
                self.sessions.insert(
                    worker,
                    Session { outbox, row, collective_address, nccl, params_count: 0, untrained: BTreeMap::new() },
                );
                Some(Event::Joined { worker, former })
            }
            Input::Left { worker, reason } => {
                self.sessions.contains_key(&worker).then_some(Event::Left { worker, reason })
            }
            Input::Message { worker, message } if self.sessions.contains_key(&worker) => {
                self.event_of_message(worker, message)
            }
            Input::Message { .. } => None,
        }
    }

    fn event_of_message(&mut self, worker: WorkerId, message: FromWorker) -> Option<Event> {
        Some(match message {
            FromWorker::Ready(ready) => {
                if let Some(reason) = self.difference(worker, &ready) {
                    return Some(Event::Left { worker, reason });
                }
                let v1::Ready { next_step, params_hash, params_count, chain, pending_step, pending_hash, .. } = ready;
                self.sessions.get_mut(&worker)?.params_count = params_count;
                let pending = (!pending_hash.is_empty()).then_some((pending_step, pending_hash));
                Event::Ready { worker, held: Held { next_step, params_hash, chain, pending } }
            }
            FromWorker::Reduced(reduced) => {
                let v1::Reduced { generation, step, gradient_hash, gradient_norm, losses, compute_seconds } = reduced;
                if let Some(planned) = self.planned.get_mut(&step) {
                    let pixels = pixels_of(&planned.plan, &losses);
                    self.speeds.note(worker, compute_seconds, pixels);
                    planned.losses.insert(worker, losses);
                    planned.gradient_norm = gradient_norm;
                }
                Event::Reduced { worker, generation, step, gradient_hash }
            }
            FromWorker::CollectiveFailed(failed) => {
                let v1::CollectiveFailed { generation, step, reason, peer_rank, peer_closed } = failed;
                Event::CollectiveFailed { worker, generation, step, peer_rank, peer_closed, reason }
            }
            FromWorker::Saved(saved) => self.saved(worker, saved)?,
            FromWorker::Sampled(v1::Sampled { next_step, paths, error, request }) => {
                let milestone = Milestone::Samples;
                if let Some(report) = self.report(milestone, next_step, request) {
                    report.paths.extend(paths.into_iter().map(PathBuf::from));
                    if !error.is_empty() {
                        report.error = Some(error);
                    }
                }
                Event::Done { worker, milestone, next_step, request, params_hash: None }
            }
            FromWorker::Offered(v1::Offered { transfer, state_hash }) => {
                Event::Offered { worker, transfer, state_hash }
            }
            FromWorker::CaughtUp(v1::CaughtUp { transfer, state_hash }) => {
                tracing::info!(worker, "a worker has caught up");
                Event::CaughtUp { worker, transfer, state_hash }
            }
            FromWorker::FetchFailed(v1::FetchFailed { transfer, reason }) => {
                tracing::warn!(worker, reason, "a worker could not be sent the state; another source is tried");
                Event::FetchFailed { worker, transfer, reason }
            }
            FromWorker::NcclId(v1::NcclId { generation, id }) => nccl::id_made(worker, generation, id),
            FromWorker::NcclFailed(v1::NcclFailed { generation, reason }) => {
                tracing::warn!(worker, generation, reason, "a worker cannot use NCCL after all");
                Event::NcclUnusable { worker, generation, reason }
            }
            FromWorker::Failed(v1::Failed { reason, hint }) => {
                self.last_failure = Some((reason.clone(), hint));
                Event::Left { worker, reason }
            }
            FromWorker::Heartbeat(_) | FromWorker::Applied(_) => Event::Heard { worker },
            FromWorker::Join(_) => Event::Left { worker, reason: "it joined twice".to_owned() },
        })
    }
}
