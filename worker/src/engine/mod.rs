//! Where the trained state lies, and what computes on it: an [`Engine`] for each kind of device.
//!
//! The parameters, the optimizer's two buffers and the gradients stay where the engine keeps them. The rest of the worker
//! knows them as rows of `f32` in the order of the layout, of which it reads and writes pieces (a hash, a joiner, a
//! checkpoint), and as flat gradients that it hands from slots to the collective and from there to the optimizer.
//!
//! - `host.rs`: in the host's memory, for a model on the CPU;
//! - `device.rs`: in the memory of an accelerator, without a wait of the host until a step's slots are computed;
//!   `in_place.rs`: gradients that a collective adds up there;
//! - `conformance.rs`: what both have to do.

#[cfg(test)]
mod conformance;
#[cfg(any(test, feature = "cuda"))]
mod device;
mod host;
#[cfg(any(test, feature = "cuda"))]
mod in_place;

use std::borrow::Cow;
use std::ops::Range;

use ballast_common::config::OptimizerConfig;
use ballast_cuda::nccl::ReduceInPlace;
use ballast_model::adamw::{AdamW, Group};
use ballast_model::{FlatLayout, MicroBatch, StableDiffusion, Trainable};
#[cfg(feature = "cuda")]
pub(crate) use device::DeviceEngine;
pub(crate) use host::HostEngine;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::collective::{self, Collective, Endpoint, GroupConfig};
use crate::error::WorkerError;

/// A collective that was formed, before the device thread has fitted it to where its gradients lie.
pub(crate) enum Formed {
    /// Of one worker.
    Alone(CancellationToken),
    /// One that works in the host's memory.
    Host(Box<dyn Collective>),
    /// One that adds up in the memory of a device, where gradients lie.
    InPlace(Box<dyn ReduceInPlace>),
}

impl Formed {
    /// Forms the collective of a generation on the host.
    pub(crate) fn on_host(
        endpoint: &Endpoint,
        group: GroupConfig,
        runtime: &Handle,
        cancel: CancellationToken,
    ) -> Self {
        match group.addresses.len() {
            1 => Self::Alone(cancel),
            _ => Self::Host(collective::form(endpoint, group, runtime, cancel)),
        }
    }
}

/// One of the optimizer's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The running mean of the gradient.
    First,
    /// The running mean of the squared gradient.
    Second,
}

impl Moment {
    /// Both, in the order in which they stand everywhere.
    pub(crate) const ALL: [Self; 2] = [Self::First, Self::Second];
}

/// How a micro-batch goes through the model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    /// What gradients are divided by.
    pub(crate) normaliser: f32,
    /// Keeps few activations and computes the others again.
    pub(crate) recomputation: bool,
    /// Whether the UNet's gradient counts; otherwise it is zero.
    pub(crate) trains_unet: bool,
}

/// What a step's sum is known by.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measure {
    /// The L2 norm; not finite where an element is not.
    pub(crate) norm: f64,
    /// Equal on all workers that hold the same bits in the same kind of engine.
    pub(crate) hash: String,
}

/// What of a slot was not finite.
pub(crate) type NotFinite = &'static str;

/// Keeps a model's trained state and computes on it.
pub(crate) trait Engine: Sized + Send + 'static {
    /// Holds a flat gradient.
    type Flat: Send + 'static;
    /// The losses of a slot, and whether it was finite: perhaps still being computed.
    type Losses;

    /// Takes up a model with an optimizer that has made no step.
    fn new(model: StableDiffusion, layout: FlatLayout, optimizer: &OptimizerConfig) -> Result<Self, WorkerError>;

    /// The model as it stands. Whoever keeps a clone of it over a step makes that step copy what it changes.
    fn model(&self) -> &StableDiffusion;

    /// The places of the trained parameters in a row.
    fn layout(&self) -> &FlatLayout;

    /// Elements of a flat gradient, which may have gaps.
    fn flat_elements(&self) -> usize;

    /// Computes a slot's gradient and its losses, or starts to.
    fn forward_backward(
        &self,
        trainable: &Trainable,
        batch: MicroBatch,
        pass: Pass,
    ) -> Result<(Self::Losses, Self::Flat), NotFinite>;

    /// Waits for a slot's losses, `[batch]`, unweighted.
    fn losses(&self, losses: Self::Losses) -> Result<Vec<f32>, NotFinite>;

    /// Adds the gradients of two siblings of the slot tree.
    fn add(&self, left: Self::Flat, right: Self::Flat) -> Self::Flat;

    /// Fits a generation's collective to this engine's gradients.
    fn collective(&self, formed: Formed) -> Box<dyn Collective<Self::Flat>>;

    /// Waits for a step's sum and measures it.
    fn measure(&self, gradient: &Self::Flat) -> Measure;

    /// Clips a gradient of this norm to `norm_max` (0: not at all) and moves the parameters of the groups, whose ranges
    /// are those of the layout. `step` is 1 for the first move.
    fn apply(&mut self, gradient: Self::Flat, norm: f64, norm_max: f64, step: u64, groups: &[Group]);

    /// Gives the parameters `range` of the row to `sink`, some at a time, in order.
    fn read_params(&self, range: Range<usize>, sink: &mut dyn FnMut(&[f32]));

    /// Overwrites parameters of the row from `first` on.
    fn write_params(&mut self, first: usize, values: &[f32]);

    /// Gives the elements `range` of a moment to `sink`, some at a time, in order.
    fn read_moment(&self, moment: Moment, range: Range<usize>, sink: &mut dyn FnMut(&[f32]));

    /// Overwrites elements of a moment from `first` on.
    fn write_moment(&mut self, moment: Moment, first: usize, values: &[f32]);

    /// The optimizer's state on the host, for a file: borrowed where it lies there.
    fn optimizer(&self) -> Cow<'_, AdamW>;

    /// Has the optimizer's state changed on the host, from a file; an error leaves this engine of no further use.
    fn change_optimizer(
        &mut self,
        change: impl FnOnce(&FlatLayout, &mut AdamW) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError>;
}
