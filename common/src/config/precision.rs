//! `[precision]`: number formats.

use serde::{Deserialize, Serialize};

/// Number formats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrecisionConfig {
    /// What the forward and backward passes compute in.
    pub compute: ComputePrecision,
    /// What the final model is saved in. Checkpoints keep every bit.
    pub save: SavePrecision,
}

/// What the forward and backward passes compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputePrecision {
    /// `bf16` on a GPU, `fp32` on the CPU.
    Auto,
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats with the range of 32 bits for activations and products of matrices. Parameters, the optimizer, statistics of
    /// norms, softmax and the loss stay 32-bit. The autoencoder is not concerned.
    Bf16,
}

/// What the final model is saved in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavePrecision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats: half the size.
    Fp16,
    /// 16-bit floats with the range of 32 bits and fewer digits than fp16.
    Bf16,
}
