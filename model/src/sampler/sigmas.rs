//! Which timesteps a sampler visits, and the noise level σ = sqrt((1−ᾱ)/ᾱ) at each.
//!
//! Rounded where diffusers rounds: tables and results in f32, what is between them in f64.

use crate::NoiseScheduler;
use crate::noise_scheduler::{FinalSigmas, TimestepSpacing};

/// The path of a sampler that works with σ.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sigmas {
    /// Noisiest first; between two timesteps of training where σ is.
    pub(super) timesteps: Vec<f32>,
    /// σ at every timestep, and the one at which the last step arrives.
    pub(super) sigmas: Vec<f64>,
}

/// `steps` timesteps, noisiest first (arXiv:2305.08891, table 2).
pub(super) fn timesteps(scheduler: &NoiseScheduler, spacing: TimestepSpacing, steps: usize) -> Vec<f64> {
    let train = scheduler.num_train_timesteps() as usize;
    let last = train - 1;
    match spacing {
        TimestepSpacing::Leading => {
            let offset = scheduler.config().steps_offset;
            (0..steps).rev().map(|i| (i * (train / steps) + offset).min(last) as f64).collect()
        }
        TimestepSpacing::Trailing => trailing(train, steps),
        TimestepSpacing::Linspace if steps == 1 => vec![0.0],
        TimestepSpacing::Linspace => {
            let stride = last as f64 / (steps - 1) as f64;
            (0..steps).rev().map(|i| if i + 1 == steps { last as f64 } else { i as f64 * stride }).collect()
        }
    }
}

/// Even steps from the last timestep downwards.
pub(super) fn trailing(train: usize, steps: usize) -> Vec<f64> {
    let train = train as f64;
    let stride = (train - train / steps as f64) - train; // as numpy.arange takes it: it decides ties
    (0..steps).map(|i| (train + i as f64 * stride).round_ties_even() - 1.0).collect()
}

/// σ of every timestep of training.
pub(super) fn table(scheduler: &NoiseScheduler) -> Vec<f64> {
    // With a zero terminal SNR the last σ would be infinite; diffusers takes the smallest number of 16 bits for ᾱ.
    let floor = if scheduler.config().rescale_betas_zero_snr { 2f32.powi(-24) } else { 0.0 };
    let alphas = scheduler.alphas_cumprod().iter().map(|alpha| (*alpha as f32).max(floor));
    alphas.map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt())).collect()
}

/// σ at any place between the timesteps of training, linear between two of them.
pub(super) fn at(table: &[f64], timestep: f64) -> f64 {
    let low = (timestep.floor() as usize).min(table.len() - 2);
    table[low] + (table[low + 1] - table[low]) * (timestep - low as f64).min(1.0)
}

/// The timestep at which σ is as given, linear in ln σ between two timesteps of training.
pub(super) fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    let log = |sigma: f64| sigma.max(1e-10).ln();
    let low = table.partition_point(|other| *other <= sigma).saturating_sub(1).min(table.len() - 2);
    let (below, above) = (log(table[low]), log(table[low + 1]));
    low as f64 + ((log(sigma) - below) / (above - below)).clamp(0.0, 1.0)
}

/// `steps` noise levels from `most` to `least`, even in σ^(1/7) (arXiv:2206.00364, equation 5).
pub(super) fn karras(most: f64, least: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (first, last) = (most.powf(1.0 / RHO), least.powf(1.0 / RHO));
    let last_step = steps.saturating_sub(1).max(1) as f64;
    (0..steps).map(|i| (first + (last - first) * i as f64 / last_step).powf(RHO)).collect()
}

impl Sigmas {
    /// Appends the last σ and rounds.
    pub(super) fn new(scheduler: &NoiseScheduler, timesteps: Vec<f64>, mut sigmas: Vec<f64>) -> Self {
        sigmas.push(match scheduler.config().final_sigmas_type {
            FinalSigmas::Zero => 0.0,
            FinalSigmas::SigmaMin => table(scheduler)[0],
        });
        let rounded = |values: Vec<f64>| values.into_iter().map(|value| value as f32);
        Self { timesteps: rounded(timesteps).collect(), sigmas: rounded(sigmas).map(f64::from).collect() }
    }
}
