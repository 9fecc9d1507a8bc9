//! DPM-Solver++ of second order, multistep, midpoint (arXiv:2211.01095, algorithm 2).
//!
//! It works with λ = ln(α/s), where α = 1/sqrt(σ² + 1) scales the signal and s = σ·α the noise of the latents.

use super::sigmas::{self, Sigmas};
use crate::noise_scheduler::{FinalSigmas, TimestepSpacing};
use crate::{NoiseScheduler, PredictionType};
use burn::tensor::Tensor;

/// A run of DPM-Solver++, with what it remembers from one step to the next.
#[derive(Clone, Debug)]
pub struct DpmPlusPlus2M {
    pub(super) path: Sigmas,
    prediction_type: PredictionType,
    ends_in_first_order: bool,
    /// What the step before took for the clean latents.
    clean_before: Option<Tensor<4>>,
}

impl DpmPlusPlus2M {
    pub(super) fn new(scheduler: &NoiseScheduler, karras: bool, steps: usize) -> Self {
        let config = scheduler.config();
        let table = sigmas::table(scheduler);
        let path = if karras {
            let levels = sigmas::karras(table[table.len() - 1], table[0], steps);
            let timesteps = levels.iter().map(|sigma| sigmas::timestep_of(&table, *sigma).round_ties_even());
            Sigmas::new(scheduler, timesteps.collect(), levels)
        } else {
            let timesteps = timesteps(scheduler, steps);
            let levels = timesteps.iter().map(|timestep| sigmas::at(&table, *timestep)).collect();
            Sigmas::new(scheduler, timesteps, levels)
        };
        Self {
            path,
            prediction_type: scheduler.prediction_type(),
            // λ is infinite at σ = 0: nothing can be extrapolated to there.
            ends_in_first_order: config.final_sigmas_type == FinalSigmas::Zero
                || config.euler_at_final
                || (config.lower_order_final && steps < 15),
            clean_before: None,
        }
    }

    pub(super) fn step(&mut self, index: usize, prediction: Tensor<4>, latents: Tensor<4>) -> Tensor<4> {
        let at = |index: usize| Place::at(self.path.sigmas[index]);
        let (from, to) = (at(index), at(index + 1));
        let clean = match self.prediction_type {
            PredictionType::Epsilon => (latents.clone() - prediction * from.noise) / from.signal,
            PredictionType::VPrediction => latents.clone() * from.signal - prediction * from.noise,
        };
        let step = to.lambda - from.lambda;
        let factor = to.signal * (-step).exp_m1();
        let moved = latents * (to.noise / from.noise) - clean.clone() * factor;
        let ends = self.ends_in_first_order && index + 1 == self.path.timesteps.len();
        let moved = match self.clean_before.take() {
            Some(before) if !ends => {
                let ratio = (from.lambda - at(index - 1).lambda) / step;
                moved - (clean.clone() - before) * (0.5 * factor / ratio)
            }
            _ => moved,
        };
        self.clean_before = Some(clean);
        moved
    }
}

/// Signal, noise and λ at a σ.
struct Place {
    signal: f64,
    noise: f64,
    lambda: f64,
}

impl Place {
    fn at(sigma: f64) -> Self {
        let signal = 1.0 / (sigma * sigma + 1.0).sqrt();
        Self { signal, noise: sigma * signal, lambda: -sigma.ln() }
    }
}

/// As for the others, but of one step more, the last of which (timestep 0 or `steps_offset`) is left out.
fn timesteps(scheduler: &NoiseScheduler, steps: usize) -> Vec<f64> {
    let spacing = scheduler.config().timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    if spacing == TimestepSpacing::Trailing {
        return sigmas::trailing(scheduler.num_train_timesteps() as usize, steps);
    }
    let mut visited = sigmas::timesteps(scheduler, spacing, steps + 1);
    visited.truncate(steps);
    visited.into_iter().map(f64::round_ties_even).collect()
}
