//! NVIDIA's libraries, as ballast meets them: which of them a machine has ([`machine`]), and NCCL as an engine that adds
//! up gradients ([`nccl`]).
//!
//! Nothing is linked. Everything is opened at run time, asked for its version, and a library that is missing, too old
//! or broken is an error that names what was tried and what helps; so the same program runs where there is no driver.
//! The only `unsafe` code of the workspace that calls C lies here, a reason at each block.

mod library;
pub mod machine;
pub mod nccl;

pub use library::{LIBRARY_PATH, Library, LibraryError};
