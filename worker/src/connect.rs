//! Opening the session's stream, patiently: workers are often started before their coordinator.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use ballast_common::config::ClusterConfig;
use ballast_common::error_chain;
use ballast_proto::MAX_MESSAGE_BYTES;
use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::session_request::Message;
use ballast_proto::v1::{Join, SessionRequest, SessionResponse, session_response};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Streaming};

use crate::error::WorkerError;

/// How long a worker goes on trying where no coordinator has ever answered: its address may be wrong.
const UNHEARD: Duration = Duration::from_secs(60);
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

/// How long a worker that is not welcomed yet goes on trying.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// As long as no coordinator has answered.
    unheard: Duration,
    /// Once one has. It may die before it welcomes this worker, as it may at any time after.
    heard: Duration,
}

impl Default for Patience {
    /// Of a worker that knows no run: `cluster.coordinator_timeout` is what it is when nobody changes it.
    fn default() -> Self {
        Self { unheard: UNHEARD, heard: ClusterConfig::default().coordinator_timeout }
    }
}

impl Patience {
    /// Of a worker that is to join a run anew, whose config it knows.
    pub(crate) fn of_a_run(coordinator_timeout: Duration) -> Self {
        let longer = coordinator_timeout.max(UNHEARD);
        Self { unheard: longer, heard: longer }
    }
}

/// Connects, sends `join` and takes the answer; tries again until there is one or `patience` ends.
pub(crate) async fn connect(
    url: &str,
    join: &Join,
    answers_max: usize,
    patience: Patience,
) -> Result<(session_response::Message, Connection), WorkerError> {
    let route = Route::new(url)?;
    let (started, mut limit) = (Instant::now(), patience.unheard);
    let mut backoff = Backoff::default();
    loop {
        let error = match route.attempt(join, answers_max).await {
            Ok(mut connection) => {
                limit = patience.heard;
                let answer = tokio::time::timeout(ATTEMPT_MAX, next_message(&mut connection.stream));
                match answer.await.unwrap_or(Err(StreamError::Silent(ATTEMPT_MAX))) {
                    Ok(Some(message)) => return Ok((message, connection)),
                    Ok(None) => {
                        let problem = "it sent a message that this version does not know".to_owned();
                        return Err(WorkerError::Protocol { problem });
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        if !error.may_pass() || started.elapsed() > limit {
            return Err(WorkerError::Connect { url: url.to_owned(), source: error });
        }
        if backoff.is_first() {
            tracing::info!(url, reason = error_chain(&error), "waiting for the coordinator");
        }
        backoff.wait().await;
    }
}

/// Returns the next message of a stream; none when it is of a kind that this version does not know.
pub(crate) async fn next_message(
    stream: &mut Streaming<SessionResponse>,
) -> Result<Option<session_response::Message>, StreamError> {
    let response = stream.message().await.map_err(StreamError::Status)?;
    Ok(response.ok_or(StreamError::Closed)?.message)
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use ballast_proto::v1::Refuse;
    use ballast_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_are_scattered() {
        let most: Vec<_> = [0, 1, 4, 5, 40].map(|attempts| Backoff { attempts }.most().as_millis()).into();
        assert_eq!(most, [100, 200, 1600, 2000, 2000]);
        let chances: Vec<f64> = (0..200).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..1.0).contains(chance)));
        assert!(chances.iter().any(|chance| *chance < 0.3) && chances.iter().any(|chance| *chance > 0.7));
    }

    /// Dies on the first callers before it answers them.
    #[derive(Default)]
    struct Dying {
        calls: AtomicUsize,
    }

    #[tonic::async_trait]
    impl Coordinator for Dying {
        type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;

        async fn session(
            &self,
            _: Request<Streaming<SessionRequest>>,
        ) -> Result<Response<Self::SessionStream>, Status> {
            let (answers, stream) = mpsc::channel(1);
            let call = self.calls.fetch_add(1, Ordering::Relaxed);
            match call {
                0 => {}
                1 => answers.try_send(Err(Status::unavailable("the run is over"))).unwrap(),
                _ => {
                    let reason = format!("call {call}");
                    let message = Some(session_response::Message::Refuse(Refuse { reason, start_over: false }));
                    answers.try_send(Ok(SessionResponse { message })).unwrap();
                }
            }
            Ok(Response::new(ReceiverStream::new(stream)))
        }
    }

    #[tokio::test]
    async fn a_coordinator_that_dies_before_it_answers_is_looked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(CoordinatorServer::new(Dying::default()));
        let server = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let (join, nobody) = (Join::default(), Duration::ZERO);
        // However impatient it is as long as nobody has answered.
        let patience = Patience { unheard: nobody, heard: Duration::from_secs(60) };
        let (answer, _) = connect(&url, &join, 4, patience).await.unwrap();
        assert!(matches!(answer, session_response::Message::Refuse(Refuse { reason, .. }) if reason == "call 2"));
        server.abort();
        let _ = server.await;
        let error = connect(&url, &join, 4, patience).await.err().unwrap();
        assert!(matches!(error, WorkerError::Connect { .. }), "{error}");
    }

    #[test]
    fn who_knows_the_run_waits_as_long_as_the_run_says() {
        let ten_minutes = Duration::from_secs(600);
        assert_eq!(Patience::default().heard, ten_minutes);
        assert_eq!(Patience::of_a_run(ten_minutes).unheard, ten_minutes);
        assert_eq!(Patience::of_a_run(Duration::from_secs(1)).unheard, UNHEARD);
    }
}
