//! Serves a run: the gRPC server and the driver, together.

use std::time::Duration;

use ballast_proto::MAX_MESSAGE_BYTES;
use ballast_proto::v1::coordinator_server::CoordinatorServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::server::TcpIncoming;

use crate::driver::Driver;
use crate::error::RunError;
use crate::events::{Outcome, RunEvent};
use crate::run::PreparedRun;
use crate::service::{INBOX_MESSAGES, SessionService};

/// HTTP/2 pings, so that a peer that vanished without a word is noticed on an idle connection too.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How long the last messages may take to reach the workers.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Runs a prepared run with `workers` workers that connect to `listener`, until it ends.
///
/// `events` tells what happens; `stop` turning true finishes the step in hand, saves and ends the run.
///
/// # Errors
/// When the run fails: too few workers, all lost, a full disk, gradients that differ twice.
pub async fn serve(
    listener: TcpListener,
    run: PreparedRun,
    workers: u32,
    events: mpsc::UnboundedSender<RunEvent>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome, RunError> {
    let address = listener.local_addr().ok();
    let driver = Driver::new(run, address, workers, events)?;
    let (inputs, inbox) = mpsc::channel(INBOX_MESSAGES);
    let (end_server, server_ended) = oneshot::channel::<()>();
    let service = CoordinatorServer::new(SessionService { inputs })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    // The server's own setting is for listeners that it opens itself. Without it a commit waits for the acknowledgement of what
    // was said before, which the other side delays by 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async {
            // The sender is dropped when the run has ended, in whatever way.
            let _ = server_ended.await;
        });
    let mut server = tokio::spawn(server);
    let outcome = tokio::select! {
        outcome = driver.drive(inbox, stop) => outcome,
        ended = &mut server => {
            return match ended {
                Ok(Err(error)) => Err(RunError::Server(error)),
                _ => Err(RunError::Failed { reason: "the server ended before the run".to_owned(), hint: None }),
            };
        }
    };
    drop(end_server);
    // The workers close their streams when they have read their last message; a hung one must not hold the end up.
    if tokio::time::timeout(SHUTDOWN_DEADLINE, &mut server).await.is_err() {
        server.abort();
    }
    outcome
}
