//! The CPU's loops: plain functions over slices of f32, with no tensors and no autodiff.
//!
//! `ops` joins them to burn; they are public so that `benches/src/bin/cpu-ops.rs` can time them alone.
//!
//! - Products of matrices are the crate `gemm`'s, on one thread each ([`matrix`]). Work is cut here, into blocks that
//!   stay in a core's cache, by sizes and never by the number of threads, and partial sums are added in order: the
//!   same bits on any number of threads.
//! - Other loops are compiled three times (SSE2, AVX2, AVX-512) and chosen when they run (`vectorised!`). They
//!   use no fused multiplication and addition, so that their bits are the same on each.

pub mod attention;
pub mod conv;
pub mod geglu;
pub mod group_norm;
pub mod layer_norm;
pub mod linear;
pub mod math;
pub mod matrix;
pub mod pages;
pub mod scratch;
pub mod sums;
