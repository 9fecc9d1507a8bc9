//! The end of a session: the reason is told, the device thread and the stream are closed.

use std::time::Duration;

use ballast_common::error_chain;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message as Answer;

use super::{End, Session};
use crate::WorkerOutcome;
use crate::error::WorkerError;

/// How long the last words, and the device thread's last computation, may take.
const FAREWELL: Duration = Duration::from_secs(2);

impl Session {
    /// Says why, stops the device thread and closes the stream.
    pub(super) async fn leave(mut self: Box<Self>, result: &Result<End, WorkerError>) {
        self.end_generation();
        self.fetching.cancel();
        let failed = match result {
            // The coordinator knows, or is gone.
            Ok(End::Outcome(WorkerOutcome::Finished { .. }) | End::StartOver { .. })
            | Err(WorkerError::Abandoned { .. } | WorkerError::Refused { .. }) => None,
            Ok(End::Outcome(WorkerOutcome::Stopped)) => {
                Some(v1::Failed { reason: "it was asked to stop".to_owned(), hint: String::new() })
            }
            Err(error) => Some(v1::Failed { reason: error_chain(error), hint: error.hint().unwrap_or_default() }),
        };
        if let Some(failed) = failed {
            // Fails when the stream is full or gone; then its end has to say it.
            let _ = self.answers.try_send(v1::SessionRequest { message: Some(Answer::Failed(failed)) });
        }
        let Self { stream, answers, commands, device, mut tasks, mut beating, .. } = *self;
        drop((answers, commands));
        tasks.shutdown().await;
        beating.shutdown().await;
        let device_ends = async {
            // It has ended already when its error is what ends this session; a result can be taken only once.
            if !device.is_terminated() {
                let _ = device.await;
            }
        };
        if matches!(result, Ok(End::StartOver { .. })) {
            // The device has no room for two models.
            drop(stream);
            device_ends.await;
            return;
        }
        // The device thread ends between two micro-batches. The coordinator closes its end once it has read everything.
        let read_all = async move {
            let Some(mut stream) = stream else { return };
            while let Ok(Some(_)) = stream.message().await {}
        };
        let farewell = async { tokio::join!(device_ends, read_all) };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            tracing::debug!("left before the device thread had ended");
        }
    }
}
