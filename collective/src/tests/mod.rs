//! The conformance of what is in this crate, and what is particular to each.

mod faults;
mod local;
mod memory;
mod tcp;
