//! The state of the training, from a member to a joiner, over a connection of its own to the member's endpoint.
//!
//! The state is one long row of `f32`, cut into blocks. The joiner says from which element on it wants it, and which
//! transfer of which step it means; the member sends blocks until the end. Each has a checksum, and the joiner knows each
//! header before it comes; the hash of the whole is checked by whoever called.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::frame::{self, BLOCK_ELEMENTS, Header, Kind, ROOT, run_hash};
use crate::mesh::set_options;
use crate::{CollectiveError, LinkError};

/// What a joiner asks for.
#[derive(Debug, Clone)]
pub struct StateRequest {
    /// Name of the run.
    pub run_id: String,
    /// Number of the transfer, from the coordinator.
    pub transfer: u64,
    /// Steps that the state has made.
    pub next_step: u64,
    /// Elements of the state that are wanted: those before are there already.
    pub elements: std::ops::Range<usize>,
    /// Where the member's endpoint listens.
    pub address: String,
    /// How long each wait may take.
    pub limit: Duration,
}

/// A joiner that has called.
#[derive(Debug)]
pub struct StateCall {
    request: Header,
    stream: TcpStream,
}

impl StateCall {
    pub(crate) fn new(request: Header, stream: TcpStream) -> Self {
        Self { request, stream }
    }

    /// Sends what `read` gives for (transfer, step, first element, most elements), until that is empty: the end. None: the
    /// state is not for this transfer, or not any more.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn serve<Block: Future<Output = Option<Vec<f32>>>>(
        mut self,
        run_id: &str,
        limit: Duration,
        read: impl Fn(u64, u64, usize, usize) -> Block,
    ) -> Result<(), LinkError> {
        let Header { run, generation: transfer, step, offset, .. } = self.request;
        if run != run_hash(run_id) {
            return Ok(());
        }
        set_options(&self.stream, limit)?;
        let mut offset = offset as usize;
        while let Some(block) = read(transfer, step, offset, BLOCK_ELEMENTS).await
            && !block.is_empty()
        {
            let header = header(Kind::State, run, transfer, step, offset, block.len());
            frame::write(&mut self.stream, header, &block, limit).await?;
            offset += block.len();
        }
        Ok(())
    }
}

/// Fetches a state, block by block: `write` takes each with its first element.
///
/// # Errors
/// When the peer cannot be reached or the connection breaks. What was written by then is good.
pub async fn fetch_state(
    request: &StateRequest,
    mut write: impl FnMut(usize, Vec<f32>),
) -> Result<(), CollectiveError> {
    let StateRequest { run_id, transfer, next_step, elements, address, limit } = request;
    let (run, limit) = (run_hash(run_id), *limit);
    let unreachable = |source| CollectiveError::Source { address: address.clone(), doing: "connecting", source };
    let broke = |source| CollectiveError::Source { address: address.clone(), doing: "receiving the state", source };
    let connected = tokio::time::timeout(limit, TcpStream::connect(address)).await;
    let connected = connected.map_err(|_| unreachable(LinkError::Silent { limit }))?;
    let mut stream = connected.map_err(|error| unreachable(LinkError::Io(error)))?;
    set_options(&stream, limit).map_err(unreachable)?;
    let call = header(Kind::Fetch, run, *transfer, *next_step, elements.start, 0);
    frame::write(&mut stream, call, &[], limit).await.map_err(unreachable)?;
    for start in elements.clone().step_by(BLOCK_ELEMENTS) {
        let length = BLOCK_ELEMENTS.min(elements.end - start);
        let expected = header(Kind::State, run, *transfer, *next_step, start, length);
        write(start, frame::read(&mut stream, expected, limit).await.map_err(broke)?);
    }
    Ok(())
}

fn header(kind: Kind, run: u64, transfer: u64, step: u64, offset: usize, elements: usize) -> Header {
    Header {
        kind,
        run,
        generation: transfer,
        world_size: 0,
        rank: 0,
        step,
        node: ROOT,
        offset: offset as u64,
        payload_bytes: elements as u32 * 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Endpoint;

    const LIMIT: Duration = Duration::from_secs(20);

    fn state() -> Vec<f32> {
        (0..3 * BLOCK_ELEMENTS + 17).map(|i| i as f32 * 0.5).collect()
    }

    /// A peer that serves transfer 7 of step 3, and closes its connections before element `dies_at`.
    async fn peer(dies_at: usize) -> (Endpoint, String) {
        let mut endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut calls = endpoint.take_state_calls().unwrap();
        tokio::spawn(async move {
            while let Some(call) = calls.recv().await {
                let read = |transfer, step, offset: usize, most: usize| {
                    let state = state();
                    let end = (offset + most).min(state.len());
                    let is_good = (transfer, step) == (7, 3) && end <= dies_at;
                    std::future::ready(is_good.then(|| state[offset..end].to_vec()))
                };
                let _ = call.serve("a run", LIMIT, read).await;
            }
        });
        let address = endpoint.address().to_string();
        (endpoint, address)
    }

    fn request(address: &str, first: usize) -> StateRequest {
        StateRequest {
            run_id: "a run".to_owned(),
            transfer: 7,
            next_step: 3,
            elements: first..state().len(),
            address: address.to_owned(),
            limit: LIMIT,
        }
    }

    #[tokio::test]
    async fn what_one_peer_did_not_finish_another_does() {
        let (_first, dying) = peer(2 * BLOCK_ELEMENTS).await;
        let (_second, sound) = peer(usize::MAX).await;
        let mut received: Vec<f32> = Vec::new();
        let write = |offset, block| {
            assert_eq!(offset, received.len());
            received.extend::<Vec<f32>>(block);
        };
        let error = fetch_state(&request(&dying, 0), write).await.unwrap_err();
        assert!(matches!(&error, CollectiveError::Source { source: LinkError::Closed, .. }), "{error:?}");
        assert_eq!(received.len(), 2 * BLOCK_ELEMENTS);
        let rest = request(&sound, received.len());
        fetch_state(&rest, |_, block| received.extend(block)).await.unwrap();
        assert!(received == state());
    }

    #[tokio::test]
    async fn another_run_transfer_or_step_is_sent_nothing() {
        let (_peer, address) = peer(usize::MAX).await;
        let good = request(&address, 0);
        let others = [
            StateRequest { run_id: "another".to_owned(), ..good.clone() },
            StateRequest { transfer: 8, ..good.clone() },
            StateRequest { next_step: 4, ..good },
        ];
        for other in others {
            let error = fetch_state(&other, |_, _| panic!("nothing is sent")).await.unwrap_err();
            assert!(matches!(error, CollectiveError::Source { source: LinkError::Closed, .. }), "{error:?}");
        }
    }
}
