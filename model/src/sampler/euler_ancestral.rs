//! Ancestral sampling with Euler's method: each step goes further down than it should, and new noise brings it back up.
//!
//! The noise added has `σ_up² = σ₊²·(σ² − σ₊²)/σ²`, the variance of the ancestor (DDPM, arXiv:2006.11239, §3.2, in
//! terms of σ); the step before it goes to `σ_down² = σ₊² − σ_up²`.

use super::euler::Euler;
use crate::NoiseScheduler;
use burn::tensor::Tensor;

/// A run of ancestral sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct EulerAncestral {
    pub(super) euler: Euler,
}

impl EulerAncestral {
    pub(super) fn new(scheduler: &NoiseScheduler, steps: usize) -> Self {
        let mut euler = Euler::new(scheduler, false, steps);
        euler.path.sigmas[steps] = 0.0; // it always ends at clean latents
        Self { euler }
    }

    pub(super) fn step(&self, index: usize, prediction: Tensor<4>, latents: Tensor<4>, noise: Tensor<4>) -> Tensor<4> {
        let (from, to) = (self.euler.path.sigmas[index], self.euler.path.sigmas[index + 1]);
        let up_squared = to * to * (from * from - to * to) / (from * from);
        let down = (to * to - up_squared).sqrt();
        self.euler.step_to(index, down, prediction, latents) + noise * up_squared.sqrt()
    }
}
