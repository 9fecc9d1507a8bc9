//! The drawing of a whole picture: noise, denoising with guidance, decoding.

use super::{Guidance, Sampler, SamplerError, SamplerKind};
use crate::checkpoint::StableDiffusion;
use crate::clip::{ClipSkipError, TextSettings};
use crate::rng::standard_normal;
use crate::{NoiseScheduler, PredictionType};
use burn::tensor::Tensor;

/// What to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// What the picture should show.
    pub prompt: String,
    /// What it should not show; empty for nothing in particular.
    pub negative_prompt: String,
    /// Chooses the initial noise, and that of the steps: the same seed gives the same picture.
    pub seed: u64,
    /// Pixels, a multiple of the autoencoder's factor (8).
    pub width: usize,
    /// Pixels, a multiple of the autoencoder's factor (8).
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// The sampler.
    pub sampler: SamplerKind,
    /// Whether its noise levels are spaced as Karras et al. do; `None`: as the model's scheduler configuration says.
    pub karras_sigmas: Option<bool>,
    /// How far to go beyond the unconditional prediction; 1 turns guidance off.
    pub guidance_scale: f64,
    /// How much of the spread that guidance adds is taken back, 0..=1.
    pub guidance_rescale: f64,
    /// How the prompts become text states.
    pub text: TextSettings,
}

impl Default for SampleRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            seed: 1,
            width: 512,
            height: 512,
            steps: 30,
            sampler: SamplerKind::Ddim,
            karras_sigmas: None,
            guidance_scale: 5.0,
            guidance_rescale: 0.0,
            text: TextSettings::default(),
        }
    }
}

impl SampleRequest {
    /// Takes the noise levels that a sampler is best known with: Karras' for DPM++ 2M, and for the others whatever the
    /// model's scheduler configuration says.
    pub fn with_usual_sigmas(mut self) -> Self {
        self.karras_sigmas = (self.sampler == SamplerKind::DpmPlusPlus2M).then_some(true);
        self
    }
}

/// An 8-bit picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbPixels {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Red, green, blue of each pixel, row by row.
    pub data: Vec<u8>,
}

/// A [`SampleRequest`] that cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Width or height is 0 or no multiple of the autoencoder's factor.
    #[error("cannot draw {width}x{height} pixels: sides are multiples of {factor}")]
    Size {
        /// Asked for.
        width: usize,
        /// Asked for.
        height: usize,
        /// What both must be a multiple of.
        factor: usize,
    },
    /// The sampler does not do what is asked for.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The text encoder has too few layers.
    #[error(transparent)]
    ClipSkip(#[from] ClipSkipError),
    /// The picture has places that are no colour.
    #[error("the picture is not a number everywhere: {reason}")]
    NotFinite {
        /// Why, as far as that is known.
        reason: &'static str,
    },
}

/// Draws a picture. The model should be without autodiff.
///
/// # Errors
///
/// On sizes that the model does not have, and settings that the sampler does not have.
pub fn sample(model: &StableDiffusion, request: &SampleRequest) -> Result<RgbPixels, SampleError> {
    let factor = model.vae.factor();
    let SampleRequest { width, height, .. } = *request;
    if width == 0 || height == 0 || !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
        return Err(SampleError::Size { width, height, factor });
    }
    let shape = [1, model.vae.latent_channels(), height / factor, width / factor];
    let noise = standard_normal(request.seed, "sampler", "latents", shape.iter().product());
    let latents = denoise(model, request, crate::tensor(noise, shape, &model.device()))?;
    to_pixels(model.vae.decode(latents)).ok_or_else(|| not_finite(&model.noise_scheduler))
}

fn not_finite(scheduler: &NoiseScheduler) -> SampleError {
    let is_without_signal =
        scheduler.prediction_type() == PredictionType::Epsilon && scheduler.config().rescale_betas_zero_snr;
    let reason = if is_without_signal {
        "a model that predicts the noise cannot start from noise alone, as its scheduler_config.json says \
         (rescale_betas_zero_snr)"
    } else {
        "its weights, or the guidance, are beyond what can be computed with"
    };
    SampleError::NotFinite { reason }
}

/// Runs the sampler from the given standard normal noise to clean, scaled latents, both `[1, 4, height/8, width/8]`.
///
/// # Errors
///
/// On settings that the sampler or the text encoder does not have.
pub fn denoise(model: &StableDiffusion, request: &SampleRequest, noise: Tensor<4>) -> Result<Tensor<4>, SampleError> {
    let mut sampler = Sampler::new(request.sampler, &model.noise_scheduler, request.karras_sigmas, request.steps)?;
    let guidance = Guidance { scale: request.guidance_scale, rescale: request.guidance_rescale };
    let prompts: &[&str] =
        if guidance.is_on() { &[&request.negative_prompt, &request.prompt] } else { &[&request.prompt] };
    let text = model.encode_prompts(prompts, request.text)?;
    let shape = noise.dims();
    let device = noise.device();
    let mut latents = match sampler.init_noise_sigma() {
        1.0 => noise,
        sigma => noise * sigma,
    };
    for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let input = sampler.scale_model_input(index, latents.clone());
        let predict = |text: &Tensor<3>| {
            let count = text.dims()[0];
            let input = Tensor::cat(vec![input.clone(); count], 0);
            model.unet.forward(input, &vec![timestep; count], text.clone())
        };
        let output = Tensor::cat(text.iter().map(predict).collect(), 0);
        let prediction = if guidance.is_on() {
            guidance.join(output.clone().narrow(0, 0, 1), output.narrow(0, 1, 1))
        } else {
            output
        };
        let fresh = || {
            let name = format!("step {index}");
            crate::tensor(standard_normal(request.seed, "sampler", &name, shape.iter().product()), shape, &device)
        };
        latents = sampler.step(index, prediction, latents, fresh);
    }
    Ok(latents)
}

/// `[1, 3, height, width]` in -1..=1 → 8 bits per channel. None for what is no number.
fn to_pixels(image: Tensor<4>) -> Option<RgbPixels> {
    let [_, _, height, width] = image.dims();
    let values: Vec<f32> = image.try_into_vec_as().expect("an image is on a readable device");
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let plane = width * height;
    let byte = |v: f32| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    let data = (0..plane).flat_map(|i| (0..3).map(move |c| c * plane + i)).map(|i| byte(values[i])).collect();
    Some(RgbPixels { width, height, data })
}
