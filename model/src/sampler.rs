//! Pictures from text: DDIM with classifier-free guidance.

use crate::checkpoint::StableDiffusion;
use crate::rng::standard_normal;
use burn::tensor::Tensor;

/// What to draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// What the picture should show.
    pub prompt: String,
    /// What it should not show; empty for nothing in particular.
    pub negative_prompt: String,
    /// Chooses the initial noise: the same seed gives the same picture.
    pub seed: u64,
    /// Pixels, a multiple of the autoencoder's factor (8).
    pub width: usize,
    /// Pixels, a multiple of the autoencoder's factor (8).
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// How far to go beyond the unconditional prediction; 1 turns guidance off.
    pub guidance_scale: f64,
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
    /// No steps, or more than the timesteps of training.
    #[error("cannot sample with {steps} steps: between 1 and {most}")]
    Steps {
        /// Asked for.
        steps: usize,
        /// Timesteps of training.
        most: usize,
    },
}

/// Draws a picture. The model should be without autodiff.
///
/// # Errors
///
/// On sizes and step counts that the model does not have.
pub fn sample(model: &StableDiffusion, request: &SampleRequest) -> Result<RgbPixels, SampleError> {
    let factor = model.vae.factor();
    let SampleRequest { width, height, steps, .. } = *request;
    if width == 0 || height == 0 || !width.is_multiple_of(factor) || !height.is_multiple_of(factor) {
        return Err(SampleError::Size { width, height, factor });
    }
    let most = model.noise_scheduler.num_train_timesteps() as usize;
    if !(1..=most).contains(&steps) {
        return Err(SampleError::Steps { steps, most });
    }
    let shape = [1, model.vae.latent_channels(), height / factor, width / factor];
    let noise = standard_normal(request.seed, "sampler", "latents", shape.iter().product());
    let latents = denoise(model, request, crate::tensor(noise, shape, &model.device()));
    Ok(to_pixels(model.vae.decode(latents)))
}

/// Runs the sampler from the given initial noise to clean, scaled latents, both `[1, 4, height/8, width/8]`.
pub fn denoise(model: &StableDiffusion, request: &SampleRequest, noise: Tensor<4>) -> Tensor<4> {
    let guided = request.guidance_scale != 1.0;
    let prompts: &[&str] = if guided { &[&request.negative_prompt, &request.prompt] } else { &[&request.prompt] };
    let ids: Vec<Vec<i32>> = prompts.iter().map(|prompt| model.tokenizer.encode(prompt)).collect();
    let text = model.text_encoder.encode(&ids, &noise.device());
    let mut latents = noise;
    for timestep in model.noise_scheduler.sampling_timesteps(request.steps) {
        let input = Tensor::cat(vec![latents.clone(); prompts.len()], 0);
        let output = model.unet.forward(input, &vec![timestep; prompts.len()], text.clone());
        let prediction = if guided {
            let unconditional = output.clone().narrow(0, 0, 1);
            let conditional = output.narrow(0, 1, 1);
            unconditional.clone() + (conditional - unconditional) * request.guidance_scale
        } else {
            output
        };
        latents = model.noise_scheduler.ddim_step(prediction, latents, timestep, request.steps);
    }
    latents
}

/// `[1, 3, height, width]` in -1..=1 → 8 bits per channel.
fn to_pixels(image: Tensor<4>) -> RgbPixels {
    let [_, _, height, width] = image.dims();
    let values: Vec<f32> = image.try_into_vec_as().expect("an image is on a readable device");
    let plane = width * height;
    let byte = |v: f32| ((v * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
    let data = (0..plane).flat_map(|i| (0..3).map(move |c| c * plane + i)).map(|i| byte(values[i])).collect();
    RgbPixels { width, height, data }
}
