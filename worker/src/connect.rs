//! Opening the session's stream, patiently: workers are often started before their coordinator.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

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

/// How long a worker that is new goes on trying.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt may take.
pub(crate) const ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// The longest wait after the first attempt, and ever.
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
    /// A coordinator answered in whose place a newer one was started.
    #[error("the coordinator that answered is the run's {found}., and this worker has heard its {known}.")]
    Outdated {
        /// Which start of the coordinator it is.
        found: u64,
        /// The newest that is known.
        known: u64,
    },
    /// The other side ended it without a word.
    #[error("it closed the connection")]
    Closed,
    /// Nothing came.
    #[error("no answer within {0:?}")]
    Silent(Duration),
}

/// An open stream, both ways.
pub(crate) struct Connection {
    pub(crate) stream: Streaming<SessionResponse>,
    pub(crate) answers: mpsc::Sender<SessionRequest>,
}

/// Connects and sends `join`; tries again until the coordinator answers or `patience` ends.
pub(crate) async fn connect(
    url: &str,
    join: &Join,
    answers_max: usize,
    patience: Duration,
) -> Result<Connection, WorkerError> {
    let route = Route::new(url)?;
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::default();
    loop {
        let error = match route.attempt(join, answers_max).await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if !error.may_pass() || Instant::now() > deadline {
            return Err(WorkerError::Connect { url: url.to_owned(), source: error });
        }
        if backoff.is_first() {
            tracing::info!(url, "waiting for the coordinator");
        }
        backoff.wait().await;
    }
}

/// The way to a coordinator. Names are resolved at each attempt: a container that was started again has a new address.
pub(crate) struct Route {
    endpoint: Endpoint,
}

impl Route {
    pub(crate) fn new(url: &str) -> Result<Self, WorkerError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|source| WorkerError::Url { url: url.to_owned(), source })?
            .connect_timeout(ATTEMPT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        Ok(Self { endpoint })
    }

    /// Tries once to open a stream, not for long.
    pub(crate) async fn attempt(&self, join: &Join, answers_max: usize) -> Result<Connection, StreamError> {
        let attempt = attempt(&self.endpoint, join.clone(), answers_max);
        tokio::time::timeout(ATTEMPT_MAX, attempt).await.unwrap_or(Err(StreamError::Silent(ATTEMPT_MAX)))
    }
}

/// Waits between attempts: twice as long at most each time, and by chance anything below that ("full jitter"), so that
/// a thousand workers do not come all at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    pub(crate) fn is_first(&self) -> bool {
        self.attempts == 0
    }

    pub(crate) async fn wait(&mut self) {
        let most = self.most();
        self.attempts = self.attempts.saturating_add(1);
        tokio::time::sleep(most.mul_f64(chance())).await;
    }

    /// The longest that the next wait may be.
    fn most(&self) -> Duration {
        BACKOFF[0].saturating_mul(1u32 << self.attempts.min(16)).min(BACKOFF[1])
    }
}

impl StreamError {
    /// Whether it may be otherwise in a while. A coordinator that says no is asked once.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Transport(_) | Self::Closed | Self::Silent(_) | Self::Outdated { .. } => true,
            Self::Status(status) => !matches!(
                status.code(),
                Code::Unimplemented | Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated
            ),
        }
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

/// A number in `0..1`. It decides on nothing but when to try again.
fn chance() -> f64 {
    // Keys that the system draws anew for each.
    let random = RandomState::new().hash_one(std::process::id());
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_are_scattered() {
        let most: Vec<_> = [0, 1, 4, 5, 40].map(|attempts| Backoff { attempts }.most().as_millis()).into();
        assert_eq!(most, [100, 200, 1600, 2000, 2000]);
        let chances: Vec<f64> = (0..200).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance < 0.3) && chances.iter().any(|chance| *chance > 0.7));
    }
}
