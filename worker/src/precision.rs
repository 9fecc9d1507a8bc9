//! From the config's `precision.compute` to what a device computes in.

use ballast_common::config::ComputePrecision;
use ballast_model::{Compute, Device};

/// What this device is to compute in.
pub(crate) fn compute(asked: ComputePrecision, device: &Device) -> Compute {
    match asked {
        ComputePrecision::Auto => Compute::usual(device),
        ComputePrecision::Fp32 => Compute::F32,
        ComputePrecision::Bf16 => Compute::Bf16,
    }
}
