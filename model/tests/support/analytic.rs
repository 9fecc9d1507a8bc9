//! Samplers without a UNet: on a model that is a formula, as in the reference scripts.

use ballast_model::sampler::Sampler;
use burn::tensor::Tensor;

/// The latents before, between and after the steps, on the model `tanh(input/2)·(0.5 + t/2000)`. `noise` gives what a
/// step may add.
pub fn trajectory(sampler: &mut Sampler, start: Tensor<4>, noise: impl Fn(usize) -> Tensor<4>) -> Vec<Tensor<4>> {
    let mut path = vec![start * sampler.init_noise_sigma()];
    for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let latents = path[index].clone();
        let input = sampler.scale_model_input(index, latents.clone());
        let prediction = (input * 0.5).tanh() * (0.5 + f64::from(timestep) / 2000.0);
        path.push(sampler.step(index, prediction, latents, || noise(index)));
    }
    path
}
