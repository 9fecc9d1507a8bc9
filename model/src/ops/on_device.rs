//! The operations that have kernels of their own (`ballast-kernels`): attention, the norms and GEGLU, in bf16.
//!
//! What is launched is decided by a plan, a pure function of the shape. Who runs it is an [`Executor`]: CubeCL on a GPU, or,
//! in tests, the emulation of the same kernels on the CPU. So what a GPU alone can show is the last thin layer
//! (`crate::cuda::launch`).
//!
//! A function here returns `None` where no kernel covers the tensors. The caller then goes on with burn's operations,
//! and the log names each such shape once.

mod attention;
#[cfg(feature = "cuda")]
mod cube;
#[cfg(feature = "emulation")]
mod emulated;
mod geglu;
mod group_norm;
mod layer_norm;

pub(super) use attention::attention;
#[cfg(feature = "emulation")]
pub use emulated::with_kernels;
pub(super) use geglu::geglu;
pub(super) use group_norm::group_norm;
pub(super) use layer_norm::layer_norm;

use super::record::{Any, plain};
use ballast_kernels::plan::Plan;
use burn::tensor::{DType, Tensor};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};

/// Runs plans on tensors of one backend.
trait Executor: Send + Sync {
    /// Makes a tensor readable as rows of its last dimension, all at the same distance; copies it where they are not.
    fn rows(&self, tensor: Any) -> Rows;

    /// Runs a plan. `inputs` are its inputs in order; the result is its outputs, flat.
    fn run(&self, plan: &Plan, inputs: &[&Any]) -> Vec<Tensor<1>>;
}

/// A tensor as rows of its last dimension.
struct Rows {
    tensor: Any,
    /// From row to row, in elements: a row may be followed by padding.
    stride: u64,
}

/// Who can run kernels on this tensor: bf16 where there are kernels.
fn executor<const D: usize>(x: &Tensor<D>) -> Option<&'static dyn Executor> {
    if x.dtype() != DType::BF16 {
        return None;
    }
    let x = Any::from(plain(x));
    #[cfg(feature = "cuda")]
    if cube::reaches(&x) {
        return Some(&cube::OnCube);
    }
    #[cfg(feature = "emulation")]
    if emulated::reaches(&x) {
        return Some(&emulated::Emulated);
    }
    let _ = x;
    None
}

/// Passes a plan on; where there is none, names the shape in the log, once.
fn covered(operation: &'static str, shape: &impl Debug, plan: Option<Plan>) -> Option<Plan> {
    static NAMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if plan.is_none() {
        let shape = format!("{shape:?}");
        if NAMED.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("{operation} {shape}")) {
            tracing::warn!(operation, shape, "no kernel covers this shape: it is computed more slowly");
        }
    }
    plan
}

/// The parameters of a norm, which kernels take in f32 only.
fn in_f32(parameters: [&Tensor<1>; 2]) -> Option<[Any; 2]> {
    let all = parameters.iter().all(|parameter| parameter.dtype() == DType::F32);
    all.then(|| parameters.map(|parameter| Any::from(plain(parameter))))
}

/// The outputs of a plan that has as many.
fn outputs<const N: usize>(found: Vec<Tensor<1>>) -> [Tensor<1>; N] {
    found.try_into().unwrap_or_else(|found: Vec<_>| panic!("{} outputs instead of {N}", found.len()))
}
