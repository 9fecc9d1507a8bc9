//! The embedded collective: direct connections between workers, for any number of them.
//!
//! What happens on them is in `exchange`. Here they are made, in the background, and ended: cancelling the generation closes
//! them, which ends whatever waits on them, here and at the peers.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::exchange::{self, Link, Spares};
use crate::mesh::{self, Endpoint};
use crate::tree::{Partial, assert_own};
use crate::{Collective, CollectiveError, GroupConfig, Reduction};

/// The members of one generation, connected with each other.
#[derive(Debug)]
pub struct Tcp {
    group: GroupConfig,
    runtime: Handle,
    /// Ends the generation, from outside.
    cancel: CancellationToken,
    links: Links,
    spares: Spares,
    /// Ends when the connections are to be closed.
    closing: CancellationToken,
    /// Closes them: on `cancel`, on an error, and at the end.
    _closing: DropGuard,
}

#[derive(Debug)]
enum Links {
    Connecting(JoinHandle<Result<Vec<Link>, CollectiveError>>),
    Up(Vec<Link>),
    Broken,
}

impl Tcp {
    /// Begins to connect to the peers of a generation.
    pub fn form(endpoint: &Endpoint, group: GroupConfig, runtime: &Handle, cancel: CancellationToken) -> Self {
        let (room, ending) = (endpoint.room(), group.clone());
        let connecting = mesh::connect(endpoint.room(), group.clone());
        let member = Self::over(connecting, group, runtime, cancel);
        let ended = member.closing.child_token();
        runtime.spawn(async move {
            ended.cancelled().await;
            room.end(&ending);
        });
        member
    }

    /// Begins to wait for links, however they are made.
    pub(crate) fn over(
        connecting: impl Future<Output = Result<Vec<Link>, CollectiveError>> + Send + 'static,
        group: GroupConfig,
        runtime: &Handle,
        cancel: CancellationToken,
    ) -> Self {
        let closing = cancel.child_token();
        let connecting = runtime.spawn(connect(connecting, closing.clone()));
        let links = Links::Connecting(connecting);
        Self {
            group,
            runtime: runtime.clone(),
            cancel,
            links,
            spares: Spares::new(),
            closing: closing.clone(),
            _closing: closing.drop_guard(),
        }
    }

    fn take_links(&mut self) -> Result<Vec<Link>, CollectiveError> {
        match std::mem::replace(&mut self.links, Links::Broken) {
            Links::Up(links) => Ok(links),
            Links::Connecting(connecting) => self.runtime.block_on(connecting).expect("connecting does not panic"),
            Links::Broken => Err(CollectiveError::Broken { generation: self.group.generation }),
        }
    }
}

/// Connects, and stays to close the connections when the generation ends.
async fn connect(
    connecting: impl Future<Output = Result<Vec<Link>, CollectiveError>>,
    closing: CancellationToken,
) -> Result<Vec<Link>, CollectiveError> {
    let links = closing.run_until_cancelled(connecting).await.unwrap_or(Err(CollectiveError::Cancelled))?;
    let watched = links.clone();
    tokio::spawn(async move {
        closing.cancelled().await;
        watched.iter().for_each(|link| link.wire.close());
    });
    Ok(links)
}

impl Collective for Tcp {
    fn all_reduce(&mut self, reduction: Reduction<'_>, own: Vec<Partial>) -> Result<Vec<f32>, CollectiveError> {
        assert_own(&reduction, self.group.rank, &own, Vec::len);
        if self.cancel.is_cancelled() {
            return Err(CollectiveError::Cancelled);
        }
        let result = self.take_links().and_then(|links| {
            let total = exchange::all_reduce(&self.group, &links, reduction, own, &mut self.spares)?;
            Ok((total, links))
        });
        match result {
            Ok((total, links)) => {
                self.links = Links::Up(links);
                Ok(total)
            }
            // Cancelling closes the connections, and that looks like anything.
            Err(_) if self.cancel.is_cancelled() => Err(CollectiveError::Cancelled),
            // The exchange has closed them.
            Err(error) => Err(error),
        }
    }
}
