//! The noise schedule: how much noise a timestep means, and what the model is asked for.
//!
//! The tables are rounded where PyTorch rounds them (`tables`): models were trained with those values.
//! What is computed from them is f64 and rounded once. `ᾱ` is `alphas_cumprod`.

mod tables;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSpacing {
    /// Even steps from the first timestep, plus `steps_offset`.
    Leading,
    /// Even steps from the last timestep downwards.
    Trailing,
    /// Evenly from first to last, both included.
    Linspace,
}

/// Where a sampler that works with σ ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At 0: the latents are clean.
    #[default]
    Zero,
    /// At the σ of timestep 0, the smallest of training.
    SigmaMin,
}

/// The keys of `scheduler/scheduler_config.json` that matter here; defaults are those of diffusers.
///
/// The keys after `rescale_betas_zero_snr` are about sampling alone.
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
    /// Which timesteps a sampler visits. None: leading for DDIM, linspace for the samplers that work with σ.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Whether Euler and DPM++ space σ as arXiv:2206.00364, equation 5.
    pub use_karras_sigmas: bool,
    /// Where Euler and DPM++ end.
    pub final_sigmas_type: FinalSigmas,
    /// Whether DPM++ ends with a step of first order where there are fewer than 15.
    pub lower_order_final: bool,
    /// Whether DPM++ always ends with a step of first order.
    pub euler_at_final: bool,
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
            timestep_spacing: None,
            use_karras_sigmas: false,
            final_sigmas_type: FinalSigmas::Zero,
            lower_order_final: true,
            euler_at_final: false,
        }
    }
}

/// Tables of the forward process, and the choice of target.
#[derive(Clone, Debug)]
pub struct NoiseScheduler {
    config: NoiseSchedulerConfig,
    betas: Vec<f32>,
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
        let betas = tables::betas(&config);
        ensure(NAME, betas.len() == config.num_train_timesteps && config.num_train_timesteps > 1, || {
            format!("{} betas for {} timesteps", betas.len(), config.num_train_timesteps)
        })?;
        ensure(NAME, betas.iter().all(|b| (0.0..1.0).contains(b)), || "a beta is outside 0..1".to_owned())?;
        let betas = if config.rescale_betas_zero_snr { tables::zero_terminal_snr(&betas) } else { betas };
        let alphas_cumprod = tables::alphas_cumprod(&betas).into_iter().map(f64::from).collect();
        Ok(Self { config, betas, alphas_cumprod })
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

    /// β of every timestep, after rescaling to a zero terminal SNR where the configuration asks for it.
    pub fn betas(&self) -> &[f32] {
        &self.betas
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

/// `null` means "the default" in diffusers' configurations.
fn without_nulls(raw: &Value) -> Value {
    match raw {
        Value::Object(map) => {
            Value::Object(map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}
