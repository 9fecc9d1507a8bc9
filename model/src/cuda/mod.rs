//! CUDA devices, below burn: memory, launches and addresses on CubeCL's stream, for what is ours.
//!
//! # Without burn's fusion
//!
//! burn can put operations off and fuse them (`burn/fusion`). This crate does without it. What fusion would gain is small
//! here: attention, norms with SiLU and GEGLU are kernels of our own that read and write once, convolutions and matrix
//! products are single operations, and what remains element by element is the sum of a residual and a bias. What it would
//! cost: tensors that are promises instead of buffers, so that each of our launches would first drain a queue; kernels
//! that are generated for every chain of operations and compiled at the first step; and memory that is held until a chain
//! is closed. Without it a tensor is a handle of CubeCL's memory, and what is launched is what is written.

pub mod environment;
pub(crate) mod launch;
mod memory;
pub mod observe;

pub use memory::{CubeBuffer, CubeMemory};
