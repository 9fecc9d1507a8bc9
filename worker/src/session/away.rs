//! The coordinator is gone: the worker keeps its state, looks for it, and goes on where the ledger stands.
//!
//! Nothing is computed meanwhile. Who finds the coordinator again says what it holds; the ledger decides what that is worth.
//! Who does not within `cluster.coordinator_timeout`, or is asked to stop, saves its state first.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::error_chain;
use ballast_proto::v1;
use ballast_proto::v1::session_response::Message;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{ANSWERS_MAX, End, Session, device_ended, next_message, protocol, requested};
use crate::WorkerOutcome;
use crate::connect::{ATTEMPT_MAX, Backoff, Connection, Route, StreamError};
use crate::device_thread::{Attach, Command, SaveAlone};
use crate::error::WorkerError;

/// How often the worker says that it still waits.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// What came of the search.
enum Found {
    Coordinator(Box<(v1::Welcome, Connection)>),
    /// It wants this worker, but not what it holds.
    StartOver {
        reason: String,
    },
    /// The time is over.
    Nobody(StreamError),
}

impl Session {
    /// Looks for the coordinator until it is found, the time is over, or the worker is asked to stop. None: it is found, and
    /// the session goes on.
    pub(super) async fn come_back(
        &mut self,
        source: Option<StreamError>,
        shutdown: watch::Receiver<bool>,
    ) -> Result<Option<End>, WorkerError> {
        self.end_generation();
        self.fetching.cancel();
        self.stream = None;
        self.beating.abort_all();
        let patience = Duration::from_millis(self.welcome.coordinator_timeout_ms);
        let reason = source.as_ref().map_or_else(|| "it closed the connection".to_owned(), |error| error_chain(error));
        tracing::warn!(
            url = self.url,
            reason,
            "lost the coordinator; this worker keeps its state and looks for it for {patience:?}, then it saves and ends"
        );
        let started = Instant::now();
        let search = Search::new(self);
        let found = tokio::select! {
            biased;
            ended = &mut self.device => return Err(device_ended(ended)),
            () = requested(shutdown) => {
                tracing::info!("asked to stop while the coordinator is gone: saving first");
                self.save_alone().await?;
                return Ok(Some(End::Outcome(WorkerOutcome::Stopped)));
            }
            found = search.seek(started + patience) => found?,
        };
        match found {
            Found::Coordinator(found) => {
                let (welcome, connection) = *found;
                let seconds = started.elapsed().as_secs_f64();
                let (worker, next_step, incarnation) = (welcome.worker_id, welcome.next_step, welcome.incarnation);
                tracing::info!(worker, next_step, incarnation, seconds, "the coordinator is back");
                self.attach(welcome, connection).await?;
                Ok(None)
            }
            Found::StartOver { reason } => Ok(Some(End::StartOver { reason })),
            Found::Nobody(source) => {
                tracing::warn!(url = self.url, "the coordinator did not come back: saving");
                let saved = self.save_alone().await?;
                Err(WorkerError::Abandoned { url: self.url.clone(), waited: patience, saved, source })
            }
        }
    }

    /// Goes on over a new connection: the device thread says over it what it holds.
    async fn attach(&mut self, welcome: v1::Welcome, connection: Connection) -> Result<(), WorkerError> {
        let Connection { stream, answers } = connection;
        // What is learned is the same, or the run could not have gone on; how and where may have changed.
        self.config = Arc::new(RunConfig::from_toml(&welcome.config_toml)?);
        (self.welcome, self.stream, self.answers) = (welcome, Some(stream), answers);
        self.start_beating();
        let attach = Attach { answers: self.answers.clone(), config: Arc::clone(&self.config) };
        self.tell(Command::Attach(attach)).await
    }

    /// Has the state saved, when there is one. Returns where.
    async fn save_alone(&mut self) -> Result<Option<PathBuf>, WorkerError> {
        let (reply, saved) = oneshot::channel();
        let run_folder = PathBuf::from(&self.welcome.run_folder);
        let run_state_json = self.state_json.clone();
        self.tell(Command::SaveAlone(SaveAlone { run_folder, run_state_json, reply })).await?;
        tokio::select! {
            biased;
            ended = &mut self.device => Err(device_ended(ended)),
            saved = saved => saved.map_err(|_| protocol("its worker's device thread did not answer")),
        }
    }

    async fn tell(&mut self, command: Command) -> Result<(), WorkerError> {
        tokio::select! {
            biased;
            ended = &mut self.device => Err(device_ended(ended)),
            sent = self.commands.send(command) => match sent {
                Ok(()) => Ok(()),
                Err(_) => Err(device_ended((&mut self.device).await)),
            },
        }
    }
}

/// A search for the coordinator of a run.
struct Search {
    url: String,
    join: v1::Join,
    /// The newest start of the coordinator that this worker has heard.
    incarnation: u64,
}

impl Search {
    fn new(session: &Session) -> Self {
        let Session { url, join, welcome, .. } = session;
        let (run_key, former_worker_id) = (welcome.run_key.clone(), welcome.worker_id);
        let join = v1::Join { run_key, former_worker_id, ..join.clone() };
        Self { url: url.clone(), join, incarnation: welcome.incarnation }
    }

    /// Tries until a coordinator of this run welcomes this worker.
    async fn seek(&self, deadline: Instant) -> Result<Found, WorkerError> {
        let route = Route::new(&self.url)?;
        let mut backoff = Backoff::default();
        let mut reported = Instant::now();
        loop {
            backoff.wait().await;
            let error = match self.knock(&route).await? {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let now = Instant::now();
            if now >= deadline {
                return Ok(Found::Nobody(error));
            }
            if now - reported >= REPORT_INTERVAL {
                reported = now;
                let left = Duration::from_secs((deadline - now).as_secs());
                tracing::warn!(url = self.url, reason = error_chain(&error), "still no coordinator; {left:?} are left");
            }
        }
    }

    /// One attempt. The inner error is one that may pass.
    async fn knock(&self, route: &Route) -> Result<Result<Found, StreamError>, WorkerError> {
        let mut connection = match route.attempt(&self.join, ANSWERS_MAX).await {
            Ok(connection) => connection,
            Err(error) if error.may_pass() => return Ok(Err(error)),
            Err(error) => return Err(WorkerError::Connect { url: self.url.clone(), source: error }),
        };
        let answer = next_message(&self.url, &mut connection.stream);
        let answer = match tokio::time::timeout(ATTEMPT_MAX, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(WorkerError::Lost { source, .. })) => {
                return Ok(Err(source.unwrap_or(StreamError::Closed)));
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(Err(StreamError::Silent(ATTEMPT_MAX))),
        };
        match answer {
            Message::Welcome(welcome) if welcome.run_key != self.join.run_key => Err(WorkerError::Refused {
                reason: format!("it is the coordinator of another run, `{}`", welcome.run_id),
            }),
            Message::Welcome(welcome) if welcome.incarnation < self.incarnation => {
                let (found, known) = (welcome.incarnation, self.incarnation);
                tracing::warn!(
                    found,
                    known,
                    "a coordinator answered in whose place a newer one was started; not followed"
                );
                Ok(Err(StreamError::Outdated { found, known }))
            }
            Message::Welcome(welcome) => Ok(Ok(Found::Coordinator(Box::new((welcome, connection))))),
            Message::Refuse(v1::Refuse { reason, start_over: true }) => Ok(Ok(Found::StartOver { reason })),
            Message::Refuse(v1::Refuse { reason, .. }) => Err(WorkerError::Refused { reason }),
            _ => Err(protocol("its first message is no welcome")),
        }
    }
}
