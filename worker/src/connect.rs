//! Opening the session's stream, patiently: workers are often started before their coordinator.

use std::time::{Duration, SystemTime};

use ballast_proto::MAX_MESSAGE_BYTES;
use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::session_request::Message;
use ballast_proto::v1::{Join, SessionRequest, SessionResponse};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

use crate::error::WorkerError;

/// How long to go on trying.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt may take.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// Between two attempts: doubles from the first to the second, with jitter so that many workers do not come at once.
const BACKOFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// HTTP/2 pings find a coordinator whose host is gone, also while nothing is said.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What went wrong with the stream to the coordinator.
#[derive(Debug, Error)]
pub enum StreamError {
    /// No connection could be made.
    #[error("no connection")]
    Transport(#[source] tonic::transport::Error),
    /// The other side, or HTTP/2, ended it.
    #[error("{} ({})", .0.message(), .0.code())]
    Status(tonic::Status),
    /// Nothing came.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// An open stream, both ways.
pub(crate) struct Connection {
    pub(crate) stream: Streaming<SessionResponse>,
    pub(crate) answers: mpsc::Sender<SessionRequest>,
}

/// Connects and sends `join`; tries again until the coordinator answers or patience ends.
pub(crate) async fn connect(url: &str, join: Join, answers_max: usize) -> Result<Connection, WorkerError> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|source| WorkerError::Url { url: url.to_owned(), source })?
        .connect_timeout(ATTEMPT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let deadline = Instant::now() + PATIENCE;
    let mut backoff = BACKOFF[0];
    loop {
        let attempt = attempt(&endpoint, join.clone(), answers_max);
        let error = match tokio::time::timeout(ATTEMPT_MAX, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => error,
            Err(_) => StreamError::Silent(ATTEMPT_MAX),
        };
        // Any other answer is one: asking again would not change it.
        let may_change = !matches!(&error, StreamError::Status(status) if status.code() != Code::Unavailable);
        if !may_change || Instant::now() + backoff > deadline {
            return Err(WorkerError::Connect { url: url.to_owned(), source: error });
        }
        if backoff == BACKOFF[0] {
            tracing::info!(url, "waiting for the coordinator");
        }
        tokio::time::sleep(backoff.mul_f64(0.5 + 0.5 * jitter())).await;
        backoff = (backoff * 2).min(BACKOFF[1]);
    }
}

async fn attempt(endpoint: &Endpoint, join: Join, answers_max: usize) -> Result<Connection, StreamError> {
    let channel = endpoint.connect().await.map_err(StreamError::Transport)?;
    let (answers, requests) = mpsc::channel(answers_max);
    let first = SessionRequest { message: Some(Message::Join(join)) };
    answers.try_send(first).expect("the channel is new and has room");
    let mut client = CoordinatorClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let stream = client.session(ReceiverStream::new(requests)).await.map_err(StreamError::Status)?;
    Ok(Connection { stream: stream.into_inner(), answers })
}

/// A number in `0..1`. It decides on nothing but when to try again, so the clock is good enough.
fn jitter() -> f64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    f64::from((nanos ^ std::process::id()) % 1009) / 1009.0
}
