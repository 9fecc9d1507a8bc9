//! NCCL between the wire and the core: what workers say they can do with it, and ids on their way. An id is never logged.

use ballast_common::config::{CollectiveKind, Reduction};
use ballast_proto::v1;
use ballast_proto::v1::session_response::Message as ToWorker;

use super::Driver;
use crate::events::RunEvent;
use crate::membership::WorkerId;
use crate::run_state::{Event, NCCL_ID_BYTES, NcclAbility, NcclId};
use crate::wire;

/// What a worker can do, in the core's words.
pub(super) fn ability(said: Option<v1::Nccl>) -> NcclAbility {
    match said {
        None => NcclAbility::OnCpu,
        Some(v1::Nccl { problem, hint, .. }) if !problem.is_empty() => {
            let hint = if hint.is_empty() { String::new() } else { format!(" (hint: {hint})") };
            NcclAbility::Unable { reason: format!("{problem}{hint}") }
        }
        Some(v1::Nccl { version, device_uuid, .. }) if version.is_empty() || device_uuid.is_empty() => {
            NcclAbility::Unable { reason: "it does not say which version it has, or which GPU".to_owned() }
        }
        Some(v1::Nccl { version, device_uuid: device, shares_device, .. }) => {
            NcclAbility::Able { version, device, shares_device }
        }
    }
}

/// Rank 0 has made an id. One of another length is none.
pub(super) fn id_made(worker: WorkerId, generation: u64, id: Vec<u8>) -> Event {
    if id.len() == NCCL_ID_BYTES {
        return Event::NcclId { worker, generation, id: NcclId(id) };
    }
    let reason = format!("its NCCL id has {} bytes, and not {NCCL_ID_BYTES}", id.len());
    Event::Left { worker, reason }
}

impl Driver {
    /// Adds to the event of a worker that joins what it can do. The core takes the last one first.
    pub(super) fn with_ability(&self, event: Event) -> Vec<Event> {
        let Event::Joined { worker, .. } = event else { return vec![event] };
        let ability = self.sessions.get(&worker).map(|session| session.nccl.clone()).unwrap_or_default();
        vec![Event::NcclAbility { worker, ability }, event]
    }

    /// Says why a run that insists on NCCL has no use for a worker.
    pub(super) fn nccl_refusal(&self, ability: &NcclAbility) -> Option<String> {
        if self.config.cluster.collective != CollectiveKind::Nccl {
            return None;
        }
        let others = self.sessions.iter().map(|(worker, session)| (*worker, &session.nccl));
        let reason = ability.obstacle(others)?;
        Some(format!("cluster.collective is \"nccl\", and this worker cannot use it with the others: {reason}"))
    }

    pub(super) fn use_nccl(&mut self, generation: u64) {
        self.nccl_generation = generation;
        let order = self.config.cluster.reduction_on(true);
        tracing::info!(generation, ?order, "gradients go over NCCL");
    }

    /// What the gradients of a generation travel over.
    pub(super) fn transport_of(&self, generation: u64) -> v1::Transport {
        if generation == self.nccl_generation { v1::Transport::Nccl } else { v1::Transport::Tcp }
    }

    pub(super) fn go_without_nccl(&self, reason: &str) {
        let exact = match self.config.cluster.reduction_on(true) {
            Reduction::Fast => ", and sums are exact",
            Reduction::Exact => "",
        };
        let message = format!("gradients go over TCP and not over NCCL{exact}: {reason}");
        tracing::warn!(reason, "gradients go over TCP and not over NCCL");
        self.emit(RunEvent::Notice { message });
    }

    pub(super) fn share_nccl_id(&mut self, generation: u64, id: NcclId, workers: &[WorkerId]) {
        tracing::debug!(generation, members = workers.len(), "rank 0's NCCL id goes to the others");
        let id = v1::NcclId { generation, id: id.0 };
        self.send_all(workers, &wire::response(ToWorker::NcclId(id)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_taken_at_its_worst() {
        let said = |version: &str, device_uuid: &str, problem: &str, hint: &str| {
            ability(Some(v1::Nccl {
                version: version.into(),
                device_uuid: device_uuid.into(),
                problem: problem.into(),
                hint: hint.into(),
                shares_device: false,
            }))
        };
        assert_eq!(ability(None), NcclAbility::OnCpu);
        assert!(matches!(said("2.30.7", "GPU-1", "", ""), NcclAbility::Able { shares_device: false, .. }));
        let NcclAbility::Unable { reason } = said("2.30.7", "GPU-1", "it is broken", "mend it") else { panic!() };
        assert_eq!(reason, "it is broken (hint: mend it)");
        assert!(matches!(said("", "GPU-1", "", ""), NcclAbility::Unable { .. }));
        assert!(matches!(said("2.30.7", "", "", ""), NcclAbility::Unable { .. }));
    }

    #[test]
    fn an_id_of_another_length_ends_its_makers_connection() {
        assert!(matches!(id_made(3, 7, vec![1; 128]), Event::NcclId { worker: 3, generation: 7, .. }));
        let event = id_made(3, 7, vec![1; 127]);
        assert!(matches!(&event, Event::Left { worker: 3, reason } if reason.contains("127 bytes")), "{event:?}");
        let shown = format!("{:?}", id_made(3, 7, vec![171; 128]));
        assert!(!shown.contains("171"), "an id is never printed: {shown}");
    }
}
