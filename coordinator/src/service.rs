//! The gRPC face: turns each worker's stream into inputs of the driver, and the driver's messages into its answers.

use std::net::SocketAddr;
use std::time::Duration;

use ballast_proto::v1::session_request::Message;
use ballast_proto::v1::{Join, SessionRequest, SessionResponse, coordinator_server::Coordinator};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::membership::WorkerId;

/// How long a new connection may take to say `Join`.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// Messages that wait for one worker. A worker reads promptly; a few plans, a commit and a milestone are the most that
/// ever queue up, so a full queue means that it has stopped reading.
const OUTBOX_MESSAGES: usize = 64;

/// Inputs that wait for the driver, over all workers. When it is full, the workers' streams wait.
pub(crate) const INBOX_MESSAGES: usize = 1024;

/// A worker's queue of messages to be sent.
pub(crate) type Outbox = mpsc::Sender<Result<SessionResponse, Status>>;

/// What the driver hears from the connections.
pub(crate) enum Input {
    Joined { join: Join, remote: Option<SocketAddr>, outbox: Outbox, id: oneshot::Sender<WorkerId> },
    Message { worker: WorkerId, message: Message },
    Left { worker: WorkerId, reason: String },
}

/// The service on the wire.
pub(crate) struct SessionService {
    pub(crate) inputs: mpsc::Sender<Input>,
}

#[tonic::async_trait]
impl Coordinator for SessionService {
    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let remote = request.remote_addr();
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(JOIN_DEADLINE, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Join within 10 s"))??;
        let Some(Message::Join(join)) = first.and_then(|request| request.message) else {
            return Err(Status::invalid_argument("the first message of a session must be Join"));
        };
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let (id, worker) = oneshot::channel();
        let closing = |_| Status::unavailable("the run is over");
        self.inputs
            .send(Input::Joined { join, remote, outbox, id })
            .await
            .map_err(|error| closing(error.to_string()))?;
        let worker = worker.await.map_err(|error| closing(error.to_string()))?;
        tokio::spawn(read(stream, worker, self.inputs.clone()));
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Hands a worker's messages to the driver until its stream ends. Ends by itself when either side goes away.
async fn read(mut stream: Streaming<SessionRequest>, worker: WorkerId, inputs: mpsc::Sender<Input>) {
    let reason = loop {
        match stream.next().await {
            Some(Ok(SessionRequest { message: Some(message) })) => {
                if inputs.send(Input::Message { worker, message }).await.is_err() {
                    return;
                }
            }
            Some(Ok(SessionRequest { message: None })) => {
                break "it sent a message this version does not know".to_owned();
            }
            Some(Err(status)) => break format!("its connection broke: {}", status.message()),
            None => break "it closed its connection".to_owned(),
        }
    };
    // Fails only when the driver has ended, and then nobody needs to know.
    let _ = inputs.send(Input::Left { worker, reason }).await;
}
