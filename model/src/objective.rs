//! What training minimises: the weighted squared error of the UNet's prediction.
//!
//! One normaliser for every sample of a step, whatever its micro-batch: `Σᵢ wᵢ·ℓᵢ / normaliser`, with ℓᵢ the mean
//! over channels and pixels. Entries that only fill a micro-batch up have weight 0.

pub(crate) mod groups;

use crate::{ClipTextModel, NoiseScheduler, PredictionType, UNet};
use burn::tensor::{Tensor, TensorData};

/// What goes through the model in one forward pass.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Clean, scaled latents: `[batch, 4, height/8, width/8]`.
    pub latents: Tensor<4>,
    /// Standard normal noise, shaped as `latents`.
    pub noise: Tensor<4>,
    /// One per sample, in `0..num_train_timesteps`.
    pub timesteps: Vec<u32>,
    /// One row of ids per sample: 77, or a multiple of it for a long caption.
    pub token_ids: Vec<Vec<i32>>,
    /// wᵢ of each sample; 0 for padding.
    pub weights: Vec<f32>,
}

/// The losses of one micro-batch.
#[derive(Clone, Debug)]
pub struct Loss {
    /// `Σᵢ wᵢ·ℓᵢ / normaliser`, to be backpropagated: `[1]`.
    pub scalar: Tensor<1>,
    /// ℓᵢ, unweighted: `[batch]`.
    pub per_sample: Tensor<1>,
}

/// Returns the min-SNR weight of a timestep (arXiv:2303.09556, section 3.4): `min(snr, γ) / snr` for ε,
/// `min(snr, γ) / (snr + 1)` for v. Without γ every timestep weighs 1.
pub fn min_snr_weight(snr: f64, gamma: Option<f64>, prediction_type: PredictionType) -> f64 {
    let Some(gamma) = gamma else { return 1.0 };
    match prediction_type {
        // Also the limit for an SNR of 0, where the fraction itself is undefined.
        PredictionType::Epsilon if snr <= gamma => 1.0,
        PredictionType::Epsilon => gamma / snr,
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
    }
}

/// Computes the losses of a micro-batch.
///
/// `normaliser` is the global batch size: never the sum of the weights. Samples whose captions have other lengths go
/// through the UNet one length after the other, so that none sees another's padding.
pub fn weighted_loss(
    unet: &UNet,
    text_encoder: &ClipTextModel,
    noise_scheduler: &NoiseScheduler,
    batch: MicroBatch,
    normaliser: f32,
) -> Loss {
    groups::each(batch, |batch| {
        let text = text_encoder.encode(&batch.token_ids, &batch.latents.device());
        weighted_loss_of_text(unet, text, noise_scheduler, batch, normaliser)
    })
}

/// [`weighted_loss`] for text states computed before: `encoder_hidden_states` is `[batch, length, width]`.
pub fn weighted_loss_of_text(
    unet: &UNet,
    encoder_hidden_states: Tensor<3>,
    noise_scheduler: &NoiseScheduler,
    batch: MicroBatch,
    normaliser: f32,
) -> Loss {
    let inputs = Inputs::new(noise_scheduler, batch, normaliser);
    let prediction = unet.forward(inputs.noisy.clone(), &inputs.timesteps, encoder_hidden_states);
    inputs.loss(prediction)
}

/// What goes into the UNet, and what its prediction is compared with.
pub(crate) struct Inputs {
    /// `[batch, 4, height/8, width/8]`
    pub(crate) noisy: Tensor<4>,
    pub(crate) timesteps: Vec<f32>,
    target: Tensor<4>,
    /// wᵢ / normaliser: `[batch]`
    weights: Tensor<1>,
}

impl Inputs {
    pub(crate) fn new(noise_scheduler: &NoiseScheduler, batch: MicroBatch, normaliser: f32) -> Self {
        let MicroBatch { latents, noise, timesteps, weights, .. } = batch;
        let (count, device) = (weights.len(), latents.device());
        let noisy = noise_scheduler.add_noise(latents.clone(), noise.clone(), &timesteps);
        let target = noise_scheduler.target(latents, noise, &timesteps);
        let timesteps = timesteps.iter().map(|t| *t as f32).collect();
        let weights: Vec<f32> = weights.iter().map(|w| w / normaliser).collect();
        let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), &device);
        Self { noisy, timesteps, target, weights }
    }

    pub(crate) fn loss(self, prediction: Tensor<4>) -> Loss {
        let count = self.timesteps.len();
        let error = (prediction - self.target).square().reshape([count as i64, -1]); // [batch, 4 * pixels]
        let per_sample = error.mean_dim(1).reshape([count]);
        let scalar = (per_sample.clone() * self.weights).sum();
        Loss { scalar, per_sample: per_sample.detach() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PredictionType::{Epsilon, VPrediction};

    #[test]
    fn the_formula_of_the_paper() {
        assert_eq!(min_snr_weight(100.0, None, Epsilon), 1.0);
        assert_eq!(min_snr_weight(20.0, Some(5.0), Epsilon), 0.25);
        assert_eq!(min_snr_weight(3.0, Some(5.0), Epsilon), 1.0);
        assert_eq!(min_snr_weight(0.0, Some(5.0), Epsilon), 1.0);
        assert_eq!(min_snr_weight(19.0, Some(5.0), VPrediction), 0.25);
        assert_eq!(min_snr_weight(3.0, Some(5.0), VPrediction), 0.75);
        assert_eq!(min_snr_weight(0.0, Some(5.0), VPrediction), 0.0);
    }
}
