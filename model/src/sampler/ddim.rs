//! DDIM without noise of its own (arXiv:2010.02502, equation 12, η = 0).

use super::sigmas;
use crate::noise_scheduler::TimestepSpacing;
use crate::{NoiseScheduler, PredictionType};
use burn::tensor::Tensor;

/// A run of DDIM: ᾱ before and after each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Ddim {
    pub(super) timesteps: Vec<f32>,
    alphas: Vec<(f64, f64)>,
    prediction_type: PredictionType,
}

impl Ddim {
    pub(super) fn new(scheduler: &NoiseScheduler, steps: usize) -> Self {
        let config = scheduler.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
        let table = scheduler.alphas_cumprod();
        let visited = sigmas::timesteps(scheduler, spacing, steps).into_iter().map(f64::round_ties_even);
        let visited: Vec<usize> = visited.map(|timestep| timestep as usize).collect();
        let stride = table.len() / steps;
        let last = if config.set_alpha_to_one { 1.0 } else { table[0] };
        let after = |timestep: usize| timestep.checked_sub(stride).map_or(last, |previous| table[previous]);
        Self {
            timesteps: visited.iter().map(|timestep| *timestep as f32).collect(),
            alphas: visited.iter().map(|timestep| (table[*timestep], after(*timestep))).collect(),
            prediction_type: scheduler.prediction_type(),
        }
    }

    pub(super) fn step(&self, index: usize, prediction: Tensor<4>, latents: Tensor<4>) -> Tensor<4> {
        let (alpha, alpha_after) = self.alphas[index];
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (clean, noise) = match self.prediction_type {
            PredictionType::Epsilon => ((latents - prediction.clone() * sigma) / signal, prediction),
            PredictionType::VPrediction => {
                (latents.clone() * signal - prediction.clone() * sigma, prediction * signal + latents * sigma)
            }
        };
        clean * alpha_after.sqrt() + noise * (1.0 - alpha_after).sqrt()
    }
}
