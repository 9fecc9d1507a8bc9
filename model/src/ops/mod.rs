//! The operations that a step spends its time in, each with a backward pass of its own.
//!
//! Pictures are held as `[batch, height, width, channels]` here and in all of the UNet and the autoencoder: a pixel
//! is then a row, as a token is, so that convolutions are one product of matrices, transformers need no
//! permutation, and norms read memory in order.
//!
//! Every operation is a forward and a backward function on plain tensors, joined by [`record::record`]. On the CPU
//! in f32 they are [`crate::kernels`], loops over slices; in bf16 on a GPU those that have kernels of their own use
//! them (`on_device`); elsewhere they are built from burn's operations.

mod attention;
mod conv;
mod cpu;
pub(crate) mod direct;
mod fork;
mod geglu;
mod group_norm;
mod layer_norm;
mod linear;
#[cfg(any(feature = "cuda", feature = "emulation"))]
mod on_device;
mod record;
#[cfg(any(feature = "cuda", test))]
mod rows;
mod upsample;

pub(crate) use attention::{AttentionShape, attention};
pub(crate) use conv::{Geometry, conv2d};
pub(crate) use cpu::{Host, change_anywhere as change};
pub(crate) use fork::{fork, seed};
pub(crate) use geglu::geglu;
pub(crate) use group_norm::{GroupNormShape, group_norm};
pub(crate) use layer_norm::layer_norm;
pub(crate) use linear::linear;
#[cfg(feature = "emulation")]
pub use on_device::with_kernels;
pub(crate) use record::leaf_id;
pub(crate) use upsample::upsample;
