//! The number format that activations are held and multiplied in.
//!
//! Parameters are f32 in either, and so are the statistics of norms, softmax, the time embedding, the loss and the sums
//! inside products: bf16 is what is kept between operations and what goes into the products of matrices. Weights are
//! rounded to it once per use. bf16 has the range of f32, so that a loss need not be scaled.

use burn::tensor::{DType, Device};
use serde::Serialize;

/// What activations are held and multiplied in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats with the range of 32 bits and 8 significant bits.
    Bf16,
}

impl Compute {
    /// What is used unless asked for otherwise: f32 on the CPU, which has no units for anything shorter, bf16 elsewhere.
    pub fn usual(device: &Device) -> Self {
        if *device == crate::cpu_device() { Self::F32 } else { Self::Bf16 }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}
