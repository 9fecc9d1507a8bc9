//! The trained state on a GPU: parameters, moments and gradients as flat buffers that never leave it but for a file, a hash
//! of the parameters, or a worker that joins.
//!
//! An [`Accelerator`] is what is needed of a device, a handful of calls; CubeCL's is `cuda/memory.rs`, behind the feature
//! `cuda`, and [`simulated`] has one of the host's memory, for tests of everything above. On it stand
//! [`DeviceVec`], a flat buffer; [`DeviceGradient`], which collects the gradients of a model's tensors; and
//! [`DeviceState`], the parameters with their optimizer.
//!
//! # One allocation, and the model's tensors in it
//!
//! The model's parameters are views into one flat buffer: tensors whose memory is a part of it, each at a multiple of 256
//! bytes ([`PaddedLayout`]). So one launch moves all of them, and nobody copies them anywhere. That is sound with burn
//! and CubeCL: a handle may have an offset (CubeCL's own allocator gives out such for tensors that are made together); burn
//! overwrites an input only where at most two handles name its memory, and there are always more; memory that CubeCL moves
//! keeps its handles, and addresses are asked for only while they are held.
//!
//! # No waits
//!
//! All calls but [`Accelerator::download`] and [`Accelerator::sync`] return at once, and the device works on them in
//! order. A step waits when its losses are read, after all its slots were started, and when the sum is measured.
//! Whether a gradient is finite shows in its norm: a sum of squares of `f32` in `f64` cannot overflow.

mod device_vec;
mod gradient;
mod launches;
mod layout;
mod memory;
pub mod simulated;
mod state;

pub use device_vec::DeviceVec;
pub use gradient::DeviceGradient;
pub use layout::PaddedLayout;
pub use memory::{Accelerator, Address, Argument, ElementKind};
pub use state::{DeviceState, Measured, Moment, PendingNorm};
