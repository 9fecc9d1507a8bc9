//! Number formats of saved weights.

use super::CheckpointError;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;

/// Number format of saved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SavePrecision {
    /// 32 bits, exact.
    #[default]
    Fp32,
    /// 16 bits, half the size: enough for making pictures.
    Fp16,
    /// 16 bits with the range of 32 and three significant digits less than fp16.
    Bf16,
}

impl SavePrecision {
    /// All precisions.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Fp16, Self::Bf16];

    /// `fp32`, `fp16`, `bf16`
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes per number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Fp16 | Self::Bf16 => 2,
        }
    }

    /// The name in a safetensors header.
    pub(crate) fn safetensors(self) -> &'static str {
        match self {
            Self::Fp32 => "F32",
            Self::Fp16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// The name in PyTorch.
    pub(crate) fn torch(self) -> &'static str {
        match self {
            Self::Fp32 => "float32",
            Self::Fp16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The largest number, as shown to a person.
    fn largest(self) -> &'static str {
        match self {
            Self::Fp16 => "65504",
            Self::Fp32 | Self::Bf16 => "3.39e38",
        }
    }
}

/// Why numbers were not written.
pub(crate) enum EncodeError {
    Io(io::Error),
    Checkpoint(CheckpointError),
}

impl EncodeError {
    /// The error, for the file that was being written.
    pub(crate) fn at(self, path: &Path) -> CheckpointError {
        match self {
            Self::Io(source) => super::atomic::failed(path, source),
            Self::Checkpoint(error) => error,
        }
    }
}

/// Writes numbers of the parameter `key`, rounded to nearest.
pub(crate) fn encode(
    out: &mut impl Write,
    values: &[f32],
    precision: SavePrecision,
    key: &str,
) -> Result<(), EncodeError> {
    let overflow = || {
        let (precision, largest) = (precision.name(), precision.largest());
        EncodeError::Checkpoint(CheckpointError::Overflow { key: key.to_owned(), precision, largest })
    };
    let mut bytes = [0; 1 << 12];
    for chunk in values.chunks(bytes.len() / 4) {
        let length = chunk.len() * precision.bytes();
        let mut fits = true;
        match precision {
            SavePrecision::Fp32 => fill(&mut bytes, chunk, |v| v.to_le_bytes()),
            SavePrecision::Fp16 => fill(&mut bytes, chunk, |v| {
                let half = f16::from_f32(v);
                fits &= half.is_finite() || !v.is_finite();
                half.to_le_bytes()
            }),
            SavePrecision::Bf16 => fill(&mut bytes, chunk, |v| {
                let half = bf16::from_f32(v);
                fits &= half.is_finite() || !v.is_finite();
                half.to_le_bytes()
            }),
        }
        if !fits {
            return Err(overflow());
        }
        out.write_all(&bytes[..length]).map_err(EncodeError::Io)?;
    }
    Ok(())
}

fn fill<const N: usize>(bytes: &mut [u8], values: &[f32], mut one: impl FnMut(f32) -> [u8; N]) {
    for (place, value) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *place = one(*value);
    }
}
