//! Stable Diffusion 1.x and 2.x in burn: text encoder, autoencoder, UNet, tokenizer, noise scheduler, and the
//! two file layouts people keep them in.
//!
//! Every size is read from the `config.json` files, and every parameter is called what diffusers calls it:
//! the module tree in memory has the same paths as the checkpoint on disk, so there is no renaming table to
//! read before the code. Linear and convolution weights keep PyTorch's layout for the same reason.
//!
//! Start at [`StableDiffusion`] (what a model is), then [`objective`] (what training minimises) and [`flat`]
//! (how gradients and parameters leave and enter the model).

pub use burn::tensor::Device;
use burn::tensor::Tensor;

pub mod accelerator;
pub mod adamw;
pub mod check;
pub mod checkpoint;
pub mod clip;
mod compute;
mod config;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulation")]
pub mod emulation;
mod files;
pub mod flat;
pub mod init;
pub mod kernel_cache;
pub mod kernels;
mod layers;
pub mod memory;
pub mod noise_scheduler;
pub mod norm;
pub mod objective;
mod ops;
mod params;
mod part_hashes;
mod recompute;
mod resnet;
pub mod rng;
pub mod sampler;
mod sink;
pub mod tokenizer;
mod trained;
pub mod unet;
pub mod vae;
mod weights;

pub use checkpoint::{Checkpoint, CheckpointError, OpenOptions, SavePrecision, StableDiffusion};
pub use clip::{ClipSkipError, ClipTextModel, TextSettings};
pub use compute::Compute;
pub use config::ConfigError;
pub use files::FileError;
pub use flat::{FlatEntry, FlatLayout, ParamGroup, Trainable};
pub use init::{Preset, init_model, init_model_on};
pub use noise_scheduler::{NoiseScheduler, PredictionType};
pub use objective::MicroBatch;
pub use rng::standard_normal;
pub use sampler::{RgbPixels, SampleRequest, SamplerKind};
pub use sink::GradientSink;
pub use tokenizer::Tokenizer;
pub use trained::TrainedParams;
pub use unet::UNet;
pub use vae::AutoencoderKl;

/// Returns the CPU device: pure Rust, always there, the same bits whatever the number of threads.
pub fn cpu_device() -> Device {
    Device::flex()
}

/// Uploads host values as a tensor of `shape`.
///
/// # Panics
///
/// When `values` has another length than `shape` asks for.
pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(burn::tensor::TensorData::new(values, shape), device)
}
