//! How a generation's collective comes about: by NCCL where the coordinator says so, else by direct connections.
//!
//! NCCL needs an id, which rank 0 makes and the coordinator hands to the others, so a group cannot be formed when the
//! generation begins. The device thread gets a collective at once all the same, and waits for the group in its first
//! reduction; meanwhile it computes, and the group is formed on a thread that may block.

use std::sync::Arc;
use std::time::Duration;

use ballast_common::config::{ClusterConfig, Reduction as OrderOfSums};
use ballast_common::error_chain;
use ballast_cuda::nccl::{NcclError, Order, ReduceInPlace, Span, UNIQUE_ID_BYTES, UniqueId};
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message as Answer;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::collective::tree::Partial;
use crate::collective::{Collective, CollectiveError, Endpoint, GroupConfig, Reduction};
use crate::engine::Formed;
use crate::error::WorkerError;
use crate::nccl::{NcclLibrary, NcclMember};

/// What a session forms its collectives with.
pub(crate) struct Means<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// NCCL on this worker's device, where it can be used.
    pub(crate) nccl: Option<Arc<dyn NcclLibrary>>,
    /// Gradients lie in the device's memory, not in the host's.
    pub(crate) is_on_device: bool,
    pub(crate) cluster: &'a ClusterConfig,
    /// To the coordinator, for the id that this worker may have to make.
    pub(crate) answers: &'a mpsc::Sender<v1::SessionRequest>,
}

/// A generation whose id is awaited, on a worker other than rank 0.
#[derive(Debug, Default)]
pub(crate) struct AwaitedId(Option<(u64, oneshot::Sender<UniqueId>)>);

impl AwaitedId {
    /// Takes an id that has come; of another generation, or for the second time, it is dropped.
    pub(crate) fn arrive(&mut self, message: v1::NcclId) -> Result<(), WorkerError> {
        let v1::NcclId { generation, id } = message;
        let Some((_, awaited)) = self.0.take_if(|(awaited, _)| *awaited == generation) else { return Ok(()) };
        let length = id.len();
        let id: [u8; UNIQUE_ID_BYTES] = id.try_into().map_err(|_| WorkerError::Protocol {
            problem: format!("its NCCL id has {length} bytes, and not {UNIQUE_ID_BYTES}"),
        })?;
        // Fails when the generation has ended.
        let _ = awaited.send(UniqueId(id));
        Ok(())
    }
}

/// Forms the collective of a generation: the one place where that is decided.
///
/// # Errors
/// When the coordinator wants NCCL of a worker that cannot use it.
pub(crate) fn collective_for(
    means: &Means<'_>,
    group: GroupConfig,
    transport: v1::Transport,
    cancel: CancellationToken,
) -> Result<(Formed, AwaitedId), WorkerError> {
    let runtime = Handle::current();
    if transport != v1::Transport::Nccl || group.addresses.len() == 1 {
        return Ok((Formed::on_host(means.endpoint, group, &runtime, cancel), AwaitedId::default()));
    }
    let library = means.nccl.clone().ok_or_else(|| WorkerError::Protocol {
        problem: "it wants NCCL of a worker that said that it cannot use it".to_owned(),
    })?;
    let GroupConfig { generation, rank, addresses, limits, .. } = group;
    let order = match means.cluster.reduction_on(true) {
        OrderOfSums::Exact => Order::Exact,
        OrderOfSums::Fast => Order::Fast,
    };
    tracing::info!(generation, rank, ?order, "gradients go over NCCL");
    let world_size = addresses.len() as u32;
    let member = NcclMember { generation, rank, world_size, order, limits, cancel: cancel.clone() };
    let (id_sender, id) = oneshot::channel();
    let awaited = if rank == 0 {
        runtime.spawn(make_id(Arc::clone(&library), generation, means.answers.clone(), id_sender));
        AwaitedId::default()
    } else {
        AwaitedId(Some((generation, id_sender)))
    };
    let waits = (generation, limits.link);
    let formed = match means.is_on_device {
        true => {
            let form = move |id: &UniqueId| library.form_in_place(member, id);
            let arriving = Arriving::<dyn ReduceInPlace>::start(form, id, waits, runtime, cancel);
            Formed::InPlace(Box::new(arriving))
        }
        false => {
            let form = move |id: &UniqueId| library.form(member, id);
            Formed::Host(Box::new(Arriving::<dyn Collective>::start(form, id, waits, runtime, cancel)))
        }
    };
    Ok((formed, awaited))
}

/// Rank 0 makes the id, for itself and for the others.
async fn make_id(
    library: Arc<dyn NcclLibrary>,
    generation: u64,
    answers: mpsc::Sender<v1::SessionRequest>,
    own: oneshot::Sender<UniqueId>,
) {
    let made = tokio::task::spawn_blocking(move || library.make_id()).await;
    let answer = match made {
        Ok(Ok(id)) => {
            let bytes = id.0.to_vec();
            // Fails when the generation has ended; the coordinator drops the id then.
            let _ = own.send(id);
            Answer::NcclId(v1::NcclId { generation, id: bytes })
        }
        Ok(Err(error)) => {
            let hint = error.hint().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
            Answer::NcclFailed(v1::NcclFailed { generation, reason: error_chain(&error) + &hint })
        }
        Err(panic) => {
            let reason = format!("NCCL panicked: {panic}");
            Answer::NcclFailed(v1::NcclFailed { generation, reason })
        }
    };
    // Fails when the session has ended.
    let _ = answers.send(v1::SessionRequest { message: Some(answer) }).await;
}

/// A collective whose group is being formed: `C` is a collective of the host's memory, or of a device's.
struct Arriving<C: ?Sized> {
    state: State<C>,
    generation: u64,
    /// How long the first reduction waits for the group to be begun.
    limit: Duration,
    runtime: Handle,
    cancel: CancellationToken,
}

enum State<C: ?Sized> {
    Forming(oneshot::Receiver<Result<Box<C>, NcclError>>),
    Formed(Box<C>),
    Broken,
}

impl<C: ?Sized + Send + 'static> Arriving<C> {
    /// Forms the group as soon as the id is there.
    fn start(
        form: impl FnOnce(&UniqueId) -> Result<Box<C>, NcclError> + Send + 'static,
        id: oneshot::Receiver<UniqueId>,
        (generation, limit): (u64, Duration),
        runtime: Handle,
        cancel: CancellationToken,
    ) -> Self {
        let (sender, formed) = oneshot::channel();
        let cancelled = cancel.clone();
        runtime.spawn(async move {
            // Nobody sends an id any more when the session has ended or heard of another generation.
            let Some(Ok(id)) = cancelled.run_until_cancelled(id).await else { return };
            tokio::task::spawn_blocking(move || {
                // What nobody takes is ended here, which may take a while.
                let _ = sender.send(form(&id));
            });
        });
        Self { state: State::Forming(formed), generation, limit, runtime, cancel }
    }

    /// Returns the group, once it is there.
    fn formed(&mut self) -> Result<&mut C, CollectiveError> {
        if self.cancel.is_cancelled() {
            self.state = State::Broken;
            return Err(CollectiveError::Cancelled);
        }
        self.state = match std::mem::replace(&mut self.state, State::Broken) {
            State::Forming(receiver) => State::Formed(self.wait(receiver)?),
            other => other,
        };
        match &mut self.state {
            State::Formed(collective) => Ok(collective),
            _ => Err(CollectiveError::Broken { generation: self.generation }),
        }
    }

    fn wait(&self, formed: oneshot::Receiver<Result<Box<C>, NcclError>>) -> Result<Box<C>, CollectiveError> {
        let limit = self.limit;
        let waited = self.runtime.block_on(async {
            let patient = tokio::time::timeout(limit, formed);
            self.cancel.run_until_cancelled(patient).await
        });
        match waited {
            None => Err(CollectiveError::Cancelled),
            // As the session lets go of a generation, it cancels it.
            Some(Ok(Err(_))) if self.cancel.is_cancelled() => Err(CollectiveError::Cancelled),
            Some(Ok(Err(_))) => Err(library(-1, "it ended without a word".to_owned())),
            Some(Err(_)) => Err(CollectiveError::Absent { rank: 0, limit }),
            Some(Ok(Ok(Err(error)))) => Err(failed(&error)),
            Some(Ok(Ok(Ok(collective)))) => Ok(collective),
        }
    }
}

fn failed(error: &NcclError) -> CollectiveError {
    let code = match error {
        NcclError::Failed { source, .. } => source.code.into(),
        _ => -1,
    };
    library(code, error_chain(error))
}

fn library(code: i64, message: String) -> CollectiveError {
    CollectiveError::Library { library: "NCCL", doing: "forming the group", code, message }
}

impl Collective for Arriving<dyn Collective> {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        self.formed()?.all_reduce(reduction, own)
    }
}

impl ReduceInPlace for Arriving<dyn ReduceInPlace> {
    fn reduce(&mut self, reduction: Reduction<'_>, own: &[Partial<Span>], into: &Span) -> Result<(), CollectiveError> {
        self.formed()?.reduce(reduction, own, into)
    }

    fn is_wedged(&self) -> bool {
        matches!(&self.state, State::Formed(collective) if collective.is_wedged())
    }
}
