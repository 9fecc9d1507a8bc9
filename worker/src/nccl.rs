//! NCCL, as far as the session needs to know it: what this worker can do, an id, a member of a group.

use std::fmt;
use std::sync::Arc;

use ballast_cuda::nccl::{NcclCollective, NcclError, Order, Raw, ReduceInPlace, UniqueId};
use ballast_proto::v1;
use tokio_util::sync::CancellationToken;

use crate::collective::{Collective, Limits};

/// Which generation is formed, and this worker's place in it.
#[derive(Debug, Clone)]
pub struct NcclMember {
    /// Number of the worker set.
    pub generation: u64,
    /// This worker's rank.
    pub rank: u32,
    /// How many there are.
    pub world_size: u32,
    /// In which order slots are added.
    pub order: Order,
    /// How long each wait may take.
    pub limits: Limits,
    /// Ends the generation.
    pub cancel: CancellationToken,
}

/// NCCL on one device.
pub trait NcclLibrary: Send + Sync {
    /// Makes the id of a new group.
    ///
    /// # Errors
    /// When NCCL finds no network to listen on.
    fn make_id(&self) -> Result<UniqueId, NcclError>;

    /// Starts to form a group whose sums lie in the host's memory before and after.
    ///
    /// # Errors
    /// When the library refuses at once.
    fn form(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn Collective>, NcclError>;

    /// Starts to form a group of gradients that stay in the device's memory.
    ///
    /// # Errors
    /// When the library refuses at once.
    fn form_in_place(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn ReduceInPlace>, NcclError>;
}

impl<R> NcclLibrary for R
where
    R: Raw + Clone + Send + Sync + 'static,
    R::Comm: Send,
    R::Buffer: Send,
{
    fn make_id(&self) -> Result<UniqueId, NcclError> {
        Raw::make_id(self).map_err(|source| NcclError::Failed { doing: "making an id", source })
    }

    fn form(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn Collective>, NcclError> {
        Ok(Box::new(group(self, member, id)?))
    }

    fn form_in_place(&self, member: NcclMember, id: &UniqueId) -> Result<Box<dyn ReduceInPlace>, NcclError> {
        Ok(Box::new(group(self, member, id)?))
    }
}

fn group<R: Raw + Clone>(library: &R, member: NcclMember, id: &UniqueId) -> Result<NcclCollective<R>, NcclError> {
    let NcclMember { generation, rank, world_size, order, limits, cancel } = member;
    NcclCollective::form(library.clone(), (generation, rank, world_size), id, order, limits, cancel)
}

/// NCCL on this worker's device, and what the others have to know of it.
#[derive(Clone)]
pub struct NcclOnDevice {
    version: String,
    device_uuid: String,
    shares_device: bool,
    pub(crate) library: Arc<dyn NcclLibrary>,
}

impl NcclOnDevice {
    /// `version` has to be the same on all ranks; `device_uuid` tells the device from every other, and only with
    /// `shares_device` on both sides may two ranks have the same.
    pub fn new(version: String, device_uuid: String, shares_device: bool, library: impl NcclLibrary + 'static) -> Self {
        Self { version, device_uuid, shares_device, library: Arc::new(library) }
    }
}

impl fmt::Debug for NcclOnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, device_uuid, shares_device, .. } = self;
        write!(f, "NCCL {version} on {device_uuid}, shared: {shares_device}")
    }
}

/// What a worker on a GPU can do with NCCL.
#[derive(Debug, Clone)]
pub enum NcclAbility {
    /// It can use it.
    Able(NcclOnDevice),
    /// It cannot.
    Unable {
        /// Why.
        problem: String,
        /// What helps; may be empty.
        hint: String,
    },
}

impl NcclAbility {
    /// What the coordinator is told.
    pub(crate) fn said(&self) -> v1::Nccl {
        match self.clone() {
            Self::Able(NcclOnDevice { version, device_uuid, shares_device, .. }) => {
                v1::Nccl { version, device_uuid, shares_device, ..v1::Nccl::default() }
            }
            Self::Unable { problem, hint } => v1::Nccl { problem, hint, ..v1::Nccl::default() },
        }
    }

    pub(crate) fn library(&self) -> Option<Arc<dyn NcclLibrary>> {
        match self {
            Self::Able(on_device) => Some(Arc::clone(&on_device.library)),
            Self::Unable { .. } => None,
        }
    }
}
