//! The noise schedule: how much noise a timestep means, what the model is asked for, and DDIM's timesteps.
//!
//! The tables are f64; what leaves them is rounded once. `ᾱ` is `alphas_cumprod`.

use crate::config::{self, ConfigError, ensure};
use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;
use serde_json::{Value, json};

/// What the UNet predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise ε.
    #[default]
    Epsilon,
    /// The velocity `v = sqrt(ᾱ)·ε − sqrt(1−ᾱ)·x₀` (arXiv:2202.00512).
    VPrediction,
}

/// Which of the training timesteps a sampler visits (names of arXiv:2305.08891, table 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Even steps from the first timestep, plus `steps_offset`.
    #[default]
    Leading,
    /// Even steps from the last timestep downwards.
    Trailing,
    /// Evenly from first to last, both included.
    Linspace,
}

/// The keys of `scheduler/scheduler_config.json` that matter here; defaults are those of diffusers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct NoiseSchedulerConfig {
    /// Number of timesteps in training.
    pub num_train_timesteps: usize,
    /// First β.
    pub beta_start: f64,
    /// Last β.
    pub beta_end: f64,
    /// `linear`, or `scaled_linear` (linear in sqrt β, as in Stable Diffusion).
    pub beta_schedule: String,
    /// All β, instead of the above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the UNet predicts.
    pub prediction_type: PredictionType,
    /// Whether the schedule is rescaled so that the last timestep is pure noise (arXiv:2305.08891, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// Added to every timestep of leading spacing.
    pub steps_offset: usize,
    /// Whether the last step of a sampler goes to ᾱ = 1 instead of ᾱ₀.
    pub set_alpha_to_one: bool,
    /// Which timesteps a sampler visits.
    pub timestep_spacing: TimestepSpacing,
}

impl Default for NoiseSchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: "linear".to_owned(),
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            rescale_betas_zero_snr: false,
            steps_offset: 0,
            set_alpha_to_one: true,
            timestep_spacing: TimestepSpacing::Leading,
        }
    }
}

/// Tables of the forward process, and the choice of target.
#[derive(Clone, Debug)]
pub struct NoiseScheduler {
    config: NoiseSchedulerConfig,
    alphas_cumprod: Vec<f64>,
}

impl NoiseScheduler {
    /// Reads and checks a `scheduler/scheduler_config.json` of any diffusers scheduler.
    ///
    /// # Errors
    ///
    /// On wrong types and on β outside 0..1.
    pub fn from_json(raw: &Value) -> Result<Self, ConfigError> {
        const NAME: &str = "scheduler";
        config::refuse_unsupported(
            NAME,
            raw,
            &[
                ("beta_schedule", &["linear".into(), "scaled_linear".into()]),
                ("prediction_type", &["epsilon".into(), "v_prediction".into()]),
                ("thresholding", &[json!(false)]),
            ],
        )?;
        let config: NoiseSchedulerConfig = config::parse(NAME, &without_nulls(raw))?;
        let betas = betas(&config);
        ensure(NAME, betas.len() == config.num_train_timesteps && config.num_train_timesteps > 1, || {
            format!("{} betas for {} timesteps", betas.len(), config.num_train_timesteps)
        })?;
        ensure(NAME, betas.iter().all(|b| (0.0..1.0).contains(b)), || "a beta is outside 0..1".to_owned())?;
        let mut alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        if config.rescale_betas_zero_snr {
            rescale_to_zero_terminal_snr(&mut alphas_cumprod);
        }
        Ok(Self { config, alphas_cumprod })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &NoiseSchedulerConfig {
        &self.config
    }

    /// Number of timesteps in training: timesteps are in `0..num_train_timesteps`.
    pub fn num_train_timesteps(&self) -> u32 {
        self.alphas_cumprod.len() as u32
    }

    /// What the UNet predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.config.prediction_type
    }

    /// ᾱ of every timestep.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// Signal-to-noise ratio ᾱ / (1 − ᾱ) of a timestep.
    pub fn snr(&self, timestep: u32) -> f64 {
        let alpha = self.alphas_cumprod[timestep as usize];
        alpha / (1.0 - alpha)
    }

    /// Diffuses clean latents to each sample's timestep: `sqrt(ᾱ)·x₀ + sqrt(1−ᾱ)·ε` (DDPM eq. 4, arXiv:2006.11239).
    ///
    /// `latents`, `noise`: `[batch, 4, height/8, width/8]`; `timesteps`: one per sample.
    pub fn add_noise(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[u32]) -> Tensor<4> {
        let (signal, sigma) = self.scales(timesteps, &latents);
        latents * signal + noise * sigma
    }

    /// The velocity `sqrt(ᾱ)·ε − sqrt(1−ᾱ)·x₀` (arXiv:2202.00512). Shapes as [`add_noise`](Self::add_noise).
    pub fn velocity(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[u32]) -> Tensor<4> {
        let (signal, sigma) = self.scales(timesteps, &latents);
        noise * signal - latents * sigma
    }

    /// What the UNet should have said: noise or velocity. Shapes as [`add_noise`](Self::add_noise).
    pub fn target(&self, latents: Tensor<4>, noise: Tensor<4>, timesteps: &[u32]) -> Tensor<4> {
        match self.config.prediction_type {
            PredictionType::Epsilon => noise,
            PredictionType::VPrediction => self.velocity(latents, noise, timesteps),
        }
    }

    /// The timesteps that a sampler of `steps` steps visits, noisiest first.
    ///
    /// # Panics
    ///
    /// When `steps` is 0 or more than the timesteps of training.
    pub fn sampling_timesteps(&self, steps: usize) -> Vec<u32> {
        let train = self.alphas_cumprod.len();
        assert!((1..=train).contains(&steps), "between 1 and {train} sampling steps");
        let last = train - 1;
        let visited: Vec<usize> = match self.config.timestep_spacing {
            TimestepSpacing::Leading => {
                (0..steps).rev().map(|i| (i * (train / steps) + self.config.steps_offset).min(last)).collect()
            }
            TimestepSpacing::Trailing => (0..steps)
                .map(|i| (train as f64 - i as f64 * train as f64 / steps as f64).round_ties_even() as usize - 1)
                .collect(),
            TimestepSpacing::Linspace if steps == 1 => vec![0],
            TimestepSpacing::Linspace => (0..steps)
                .rev()
                .map(|i| (i as f64 * last as f64 / (steps - 1) as f64).round_ties_even() as usize)
                .collect(),
        };
        visited.into_iter().map(|t| t as u32).collect()
    }

    /// One deterministic DDIM step (arXiv:2010.02502, eq. 12, η = 0) of a sampler of `steps` steps.
    ///
    /// `prediction` is the UNet's answer for `latents` at `timestep`; both `[batch, 4, height/8, width/8]`.
    pub fn ddim_step(&self, prediction: Tensor<4>, latents: Tensor<4>, timestep: u32, steps: usize) -> Tensor<4> {
        let alpha = self.alphas_cumprod[timestep as usize];
        let previous = (timestep as usize).checked_sub(self.alphas_cumprod.len() / steps);
        let alpha_previous = match previous {
            Some(t) => self.alphas_cumprod[t],
            None if self.config.set_alpha_to_one => 1.0,
            None => self.alphas_cumprod[0],
        };
        let (signal, sigma) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (clean, noise) = match self.config.prediction_type {
            PredictionType::Epsilon => ((latents - prediction.clone() * sigma) / signal, prediction),
            PredictionType::VPrediction => {
                (latents.clone() * signal - prediction.clone() * sigma, prediction * signal + latents * sigma)
            }
        };
        clean * alpha_previous.sqrt() + noise * (1.0 - alpha_previous).sqrt()
    }

    /// `sqrt(ᾱ)` and `sqrt(1−ᾱ)` of each sample: `[batch, 1, 1, 1]`.
    fn scales(&self, timesteps: &[u32], like: &Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let batch = timesteps.len();
        assert_eq!(batch, like.dims()[0], "one timestep per sample");
        let column = |f: &dyn Fn(f64) -> f64| {
            let values: Vec<f32> =
                timesteps.iter().map(|t| f(self.alphas_cumprod[*t as usize]).sqrt() as f32).collect();
            Tensor::<4>::from_data(TensorData::new(values, [batch, 1, 1, 1]), &like.device())
        };
        (column(&|alpha| alpha), column(&|alpha| 1.0 - alpha))
    }
}

fn betas(config: &NoiseSchedulerConfig) -> Vec<f64> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let scaled = config.beta_schedule == "scaled_linear";
    let curve = |beta: f64| if scaled { beta.sqrt() } else { beta };
    let (first, last) = (curve(config.beta_start), curve(config.beta_end));
    let steps = config.num_train_timesteps.saturating_sub(1).max(1) as f64;
    let linear = (0..config.num_train_timesteps).map(|i| first + (last - first) * i as f64 / steps);
    if scaled { linear.map(|x| x * x).collect() } else { linear.collect() }
}

/// Shifts and scales `sqrt(ᾱ)` so that the last is 0 and the first stays (arXiv:2305.08891, algorithm 1).
fn rescale_to_zero_terminal_snr(alphas_cumprod: &mut [f64]) {
    let first = alphas_cumprod[0].sqrt();
    let last = alphas_cumprod[alphas_cumprod.len() - 1].sqrt();
    for alpha in alphas_cumprod.iter_mut() {
        let root = (alpha.sqrt() - last) * first / (first - last);
        *alpha = root * root;
    }
}

/// `null` means "the default" in diffusers' configurations.
fn without_nulls(raw: &Value) -> Value {
    match raw {
        Value::Object(map) => {
            Value::Object(map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}
