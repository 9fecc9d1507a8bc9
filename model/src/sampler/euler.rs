//! Euler's method for the probability flow in σ (arXiv:2206.00364, algorithm 1 without its second-order correction).
//!
//! Latents are `x₀ + σ·ε` here; the model knows them divided by `sqrt(σ² + 1)`.

use super::sigmas::{self, Sigmas};
use crate::noise_scheduler::TimestepSpacing;
use crate::{NoiseScheduler, PredictionType};
use burn::tensor::Tensor;

/// A run of Euler's method.
#[derive(Clone, Debug, PartialEq)]
pub struct Euler {
    pub(super) path: Sigmas,
    pub(super) spacing: TimestepSpacing,
    prediction_type: PredictionType,
}

impl Euler {
    pub(super) fn new(scheduler: &NoiseScheduler, karras: bool, steps: usize) -> Self {
        let spacing = scheduler.config().timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let table = sigmas::table(scheduler);
        let mut timesteps = sigmas::timesteps(scheduler, spacing, steps);
        let mut levels: Vec<f64> = timesteps.iter().map(|timestep| sigmas::at(&table, *timestep)).collect();
        if karras {
            levels = sigmas::karras(levels[0], levels[steps - 1], steps);
            timesteps = levels.iter().map(|sigma| sigmas::timestep_of(&table, *sigma)).collect();
        }
        let path = Sigmas::new(scheduler, timesteps, levels);
        Self { path, spacing, prediction_type: scheduler.prediction_type() }
    }

    /// Standard deviation of the latents before the first step.
    pub(super) fn init_noise_sigma(&self) -> f64 {
        let most = self.path.sigmas[0];
        if self.spacing == TimestepSpacing::Leading { (most * most + 1.0).sqrt() } else { most }
    }

    pub(super) fn scale_model_input(&self, index: usize, latents: Tensor<4>) -> Tensor<4> {
        let sigma = self.path.sigmas[index];
        latents / (sigma * sigma + 1.0).sqrt()
    }

    pub(super) fn step(&self, index: usize, prediction: Tensor<4>, latents: Tensor<4>) -> Tensor<4> {
        self.step_to(index, self.path.sigmas[index + 1], prediction, latents)
    }

    /// Goes from the σ of step `index` along its slope to the σ given.
    pub(super) fn step_to(&self, index: usize, to: f64, prediction: Tensor<4>, latents: Tensor<4>) -> Tensor<4> {
        let sigma = self.path.sigmas[index];
        let clean = match self.prediction_type {
            PredictionType::Epsilon => latents.clone() - prediction * sigma,
            PredictionType::VPrediction => {
                let variance = sigma * sigma + 1.0;
                prediction * (-sigma / variance.sqrt()) + latents.clone() / variance
            }
        };
        let slope = (latents.clone() - clean) / sigma;
        latents + slope * (to - sigma)
    }
}
