//! The two threads of a link.

use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use super::{Exchange, Link, Stop, Total, blocks, broke};
use crate::LinkError;
use crate::frame::{self, BLOCK_ELEMENTS, Kind, ROOT};
use crate::wire::{self, Wire};

impl Exchange<'_> {
    /// Sends a peer this rank's share of the peer's chunk, then this rank's finished chunk.
    ///
    /// `chunk` is where the peer's chunk is to lie in the end, and holds this rank's first sum until then; each block of it is
    /// passed on when it has been sent.
    pub(super) fn send<'a>(
        &self,
        link: &Link,
        chunk: &'a mut [f32],
        sent: &Sender<&'a mut [f32]>,
        totals: &Receiver<Total<'_>>,
    ) -> Result<(), Stop> {
        let (wire, limit) = (&*link.wire, self.indirect_limit());
        let ready = frame::seal(self.ready(self.group.rank), &[]);
        frame::send(wire, &ready, &[], limit).map_err(broke("saying that it is ready"))?;
        if !self.all_are_ready() {
            return Err(Stop::Elsewhere);
        }
        let own_subtrees = &self.subtrees[self.group.rank as usize];
        for (range, block) in blocks(self.chunk(link.rank)).zip(chunk.chunks_mut(BLOCK_ELEMENTS)) {
            let others = self.others.iter().map(|part| &part.sum[range.clone()]);
            let sums = (!self.is_empty).then_some(&*block).into_iter().chain(others);
            for (node, sum) in own_subtrees.iter().zip(sums) {
                let sealed = frame::seal(self.header(Kind::Partial, self.group.rank, *node, &range), sum);
                frame::send(wire, &sealed, sum, limit).map_err(broke("sending slot sums"))?;
            }
            sent.send(block)?;
        }
        while let Ok((sealed, total)) = totals.recv() {
            frame::send(wire, &sealed, total, limit).map_err(broke("sending totals"))?;
        }
        Ok(())
    }

    /// Receives a peer's share of this rank's chunk, then the peer's finished chunk.
    ///
    /// `spares` is memory for the blocks of `partials`, `places` is where the totals belong.
    pub(super) fn receive(
        &self,
        link: &Link,
        spares: &Receiver<Vec<f32>>,
        partials: &Sender<Vec<f32>>,
        places: &Receiver<&mut [f32]>,
    ) -> Result<(), Stop> {
        let (wire, peer, limits) = (&*link.wire, link.rank, self.group.limits);
        let ready = frame::receive(wire, self.ready(peer), &mut [], limits.straggler);
        ready.map_err(broke("waiting for it to finish its slots"))?;
        self.peer_is_ready();
        if self.has_to_send(peer) {
            self.watch_until_all_are_ready(wire).map_err(broke("waiting for others"))?;
        }
        for range in blocks(self.chunk(self.group.rank)) {
            for node in &self.subtrees[peer as usize] {
                let mut values = spares.recv()?;
                values.resize(range.len(), 0.0);
                let expected = self.header(Kind::Partial, peer, *node, &range);
                let received = frame::receive(wire, expected, &mut values, limits.link);
                received.map_err(broke("receiving slot sums"))?;
                partials.send(values)?;
            }
        }
        for range in blocks(self.chunk(peer)) {
            let place = places.recv()?;
            let expected = self.header(Kind::Total, peer, ROOT, &range);
            let received = frame::receive(wire, expected, place, self.indirect_limit());
            received.map_err(broke("receiving totals"))?;
        }
        Ok(())
    }

    /// Whether anything is to come from a peer; otherwise it may be done, and gone, before this rank is.
    fn has_to_send(&self, peer: u32) -> bool {
        let has_partials = !self.subtrees[peer as usize].is_empty() && !self.chunk(self.group.rank).is_empty();
        has_partials || !self.chunk(peer).is_empty()
    }

    /// Returns when all ranks are ready or this peer sends: then each frame has a limit. Until then, a peer that goes away
    /// is noticed.
    fn watch_until_all_are_ready(&self, wire: &dyn Wire) -> Result<(), LinkError> {
        loop {
            match wire.peek() {
                Ok(0) => return Err(LinkError::Closed),
                Ok(_) => return Ok(()),
                Err(error) if wire::is_patience_over(&error) => {
                    if self.is_settled() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How long a peer may take that may itself wait for another: longer, so that whoever waits for the broken one is the
    /// first to lose patience, and names it.
    fn indirect_limit(&self) -> Duration {
        self.group.limits.link * 3 / 2
    }
}
