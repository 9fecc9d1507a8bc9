//! Between two steps: this worker sends its state to a joiner, or is the joiner.
//!
//! Nothing is copied ahead. The thread stands still between the steps, so it reads block after block off the buffers as
//! they are, and stops to do so as soon as a generation begins.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ballast_common::error_chain;
use ballast_proto::v1;
use ballast_proto::v1::session_request::Message;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::{DeviceThread, NO_CHAIN};
use crate::collective::{StateRequest, fetch_state};
use crate::engine::Engine;
use crate::error::WorkerError;

/// A peer's state to be fetched.
pub(crate) struct Fetch {
    pub(crate) message: v1::Fetch,
    /// How long each wait may take.
    pub(crate) limit: Duration,
    pub(crate) runtime: Handle,
    /// Cancelled when another peer is to be asked, or the session ends.
    pub(crate) cancel: CancellationToken,
}

/// A block of the state that a joiner asks for.
pub(crate) struct ReadState {
    pub(crate) transfer: u64,
    pub(crate) next_step: u64,
    pub(crate) first: usize,
    pub(crate) most: usize,
    /// None: this is not to be had here, or not any more.
    pub(crate) reply: oneshot::Sender<Option<Vec<f32>>>,
}

/// What the thread remembers between the commands of a catch-up.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// Transfers that may read the state; none while a generation works.
    pub(super) offers: HashSet<u64>,
    /// Hash of the state after so many steps: several joiners may ask.
    hash: Option<(u64, String)>,
    /// What a joiner has so far.
    incoming: Option<Incoming>,
}

#[derive(Debug)]
struct Incoming {
    next_step: u64,
    state_hash: String,
    /// Elements that have arrived, from the first on.
    received: usize,
}

impl<E: Engine> DeviceThread<E> {
    /// Names the hash of the state and lets a joiner read it.
    pub(super) fn offer(&mut self, offer: &v1::Offer) -> Result<(), WorkerError> {
        let next_step = self.trainer.next_step();
        if offer.next_step != next_step {
            let problem =
                format!("it offers the state after {} steps, this worker has made {next_step}", offer.next_step);
            return Err(WorkerError::Protocol { problem });
        }
        let known = self.catch_up.hash.take().filter(|(step, _)| *step == next_step);
        let (_, state_hash) = known.unwrap_or_else(|| (next_step, self.trainer.state_hash(next_step)));
        self.catch_up.hash = Some((next_step, state_hash.clone()));
        self.catch_up.offers.insert(offer.transfer);
        let _ = self.answer(Message::Offered(v1::Offered { transfer: offer.transfer, state_hash }));
        Ok(())
    }

    pub(super) fn read_state(&self, read: ReadState) {
        let ReadState { transfer, next_step, first, most, reply } = read;
        let is_offered = self.catch_up.offers.contains(&transfer) && next_step == self.trainer.next_step();
        // Fails when the joiner has gone.
        let _ = reply.send(is_offered.then(|| self.trainer.read_state(first, most)));
    }

    /// Fetches the state from a peer and makes it this worker's own. What an earlier attempt has brought is kept.
    pub(super) fn fetch(&mut self, fetch: Fetch) -> Result<(), WorkerError> {
        let v1::Fetch { transfer, next_step, state_hash, address, params_count, chain } = fetch.message;
        let found = self.trainer.elements() as u64;
        if found != params_count {
            return Err(WorkerError::OtherModel { found, expected: params_count });
        }
        if next_step == self.trainer.next_step()
            && self.chain == chain
            && self.catch_up.incoming.is_none()
            && self.trainer.state_hash(next_step) == state_hash
        {
            tracing::info!(next_step, "this worker holds the state already: nothing is fetched");
            let _ = self.answer(Message::CaughtUp(v1::CaughtUp { transfer, state_hash }));
            return Ok(());
        }
        let is_same = |incoming: &Incoming| (incoming.next_step, &incoming.state_hash) == (next_step, &state_hash);
        let received = self.catch_up.incoming.take().filter(is_same).map_or(0, |incoming| incoming.received);
        let mut incoming = Incoming { next_step, state_hash: state_hash.clone(), received };
        let request = StateRequest {
            run_id: self.desk.run_id.clone(),
            transfer,
            next_step,
            elements: received..self.trainer.state_elements(),
            address: address.clone(),
            limit: fetch.limit,
        };
        // From the first block on, the state is neither this worker's own nor the peer's.
        self.pending = None;
        self.chain = NO_CHAIN.to_owned();
        tracing::info!(next_step, source = address, resumed_at = received, "fetching the state");
        let started = Instant::now();
        let trainer = &mut self.trainer;
        let fetching = fetch_state(&request, |first, values| {
            trainer.write_state(first, &values);
            incoming.received = first + values.len();
        });
        let Some(result) = fetch.runtime.block_on(fetch.cancel.run_until_cancelled(fetching)) else {
            self.catch_up.incoming = Some(incoming);
            return Ok(()); // another peer is about to be named
        };
        let problem = match result {
            Err(error) => {
                self.catch_up.incoming = Some(incoming);
                error_chain(&error)
            }
            Ok(()) => match self.trainer.state_hash(next_step) {
                found if found == state_hash => {
                    self.trainer.adopt_state(next_step);
                    self.chain = chain;
                    let bytes = self.trainer.state_elements() * 4;
                    tracing::info!(
                        next_step,
                        bytes,
                        seconds = started.elapsed().as_secs_f64(),
                        "caught up with the run"
                    );
                    let _ = self.answer(Message::CaughtUp(v1::CaughtUp { transfer, state_hash }));
                    return Ok(());
                }
                found => format!("the state arrived with hash {found}, not {state_hash}"),
            },
        };
        tracing::warn!(next_step, source = address, problem, "the state could not be fetched");
        let _ = self.answer(Message::FetchFailed(v1::FetchFailed { transfer, reason: problem }));
        Ok(())
    }
}
