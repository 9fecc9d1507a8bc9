//! Joiners that call for the state.

use std::sync::Arc;
use std::time::Duration;

use ballast_common::error_chain;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::collective::StateCall;
use crate::device_thread::{Command, ReadState};

/// Answers joiners that call for the state, as the device thread allows.
pub(super) async fn send_states(
    calls: Arc<Mutex<mpsc::Receiver<StateCall>>>,
    run_id: String,
    limit: Duration,
    commands: mpsc::Sender<Command>,
) {
    let mut calls = calls.lock().await; // free as soon as the session before has ended
    let mut answering = JoinSet::new();
    while let Some(call) = calls.recv().await {
        while answering.try_join_next().is_some() {}
        let (run_id, commands) = (run_id.clone(), commands.clone());
        answering.spawn(async move {
            let read = |transfer, next_step, first, most| {
                let commands = commands.clone();
                async move {
                    let (reply, block) = oneshot::channel();
                    let read = ReadState { transfer, next_step, first, most, reply };
                    commands.send(Command::ReadState(read)).await.ok()?;
                    block.await.ok()?
                }
            };
            if let Err(error) = call.serve(&run_id, limit, read).await {
                tracing::warn!(reason = error_chain(&error), "a joiner could not be sent the whole state");
            }
        });
    }
}
