//! Pictures from text: how a sampler walks from noise to clean latents, and the drawing of a whole picture.
//!
//! A [`Sampler`] is one run: which timesteps it visits, and how each step moves the latents. It knows nothing of the
//! model, only its predictions; [`sample`] puts the two together.

mod ddim;
mod dpmpp_2m;
mod draw;
mod euler;
mod euler_ancestral;
mod guidance;
mod png;
mod sigmas;

use crate::NoiseScheduler;
use burn::tensor::Tensor;
pub use ddim::Ddim;
pub use dpmpp_2m::DpmPlusPlus2M;
pub use draw::{RgbPixels, SampleError, SampleRequest, denoise, sample};
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use guidance::Guidance;

/// The samplers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplerKind {
    /// DDIM (arXiv:2010.02502), the sampler of old.
    #[default]
    Ddim,
    /// Euler's method in σ (arXiv:2206.00364).
    Euler,
    /// Euler's method with new noise in each step.
    EulerAncestral,
    /// DPM-Solver++ of second order (arXiv:2211.01095): good pictures in 20 steps.
    DpmPlusPlus2M,
}

impl SamplerKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ddim, Self::Euler, Self::EulerAncestral, Self::DpmPlusPlus2M];

    /// What it is called in commands and configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::DpmPlusPlus2M => "dpmpp-2m",
        }
    }

    /// What programs that show pictures call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ddim => "DDIM",
            Self::Euler => "Euler",
            Self::EulerAncestral => "Euler a",
            Self::DpmPlusPlus2M => "DPM++ 2M",
        }
    }

    /// Whether its noise levels can be spaced as arXiv:2206.00364, equation 5.
    pub fn takes_karras_sigmas(self) -> bool {
        matches!(self, Self::Euler | Self::DpmPlusPlus2M)
    }
}

impl std::str::FromStr for SamplerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("`{text}` is none of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// A sampler that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    /// No steps, or more than the sampler can tell apart.
    #[error("cannot sample with {steps} steps: {sampler} takes 1 to {most}")]
    Steps {
        /// Asked for.
        steps: usize,
        /// Its name.
        sampler: &'static str,
        /// Timesteps of training, or one or two fewer.
        most: usize,
    },
    /// Karras' noise levels for a sampler that has none of its own.
    #[error("{sampler} has no Karras noise levels, only euler and dpmpp-2m have")]
    Karras {
        /// Its name.
        sampler: &'static str,
    },
}

/// One run of a sampler: its path, and what it remembers between steps.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Sampler {
    /// See [`SamplerKind::Ddim`].
    Ddim(Ddim),
    /// See [`SamplerKind::Euler`].
    Euler(Euler),
    /// See [`SamplerKind::EulerAncestral`].
    EulerAncestral(EulerAncestral),
    /// See [`SamplerKind::DpmPlusPlus2M`].
    DpmPlusPlus2M(DpmPlusPlus2M),
}

impl Sampler {
    /// Plans a run of `steps` steps. `karras`: the spacing of the noise levels; `None`: as the model's scheduler
    /// configuration says.
    ///
    /// # Errors
    ///
    /// On step counts, and on Karras' noise levels, that the sampler does not have.
    pub fn new(
        kind: SamplerKind,
        scheduler: &NoiseScheduler,
        karras: Option<bool>,
        steps: usize,
    ) -> Result<Self, SamplerError> {
        let train = scheduler.num_train_timesteps() as usize;
        // DPM++ divides by the way from one noise level to the next, and looks one step further.
        let offset = scheduler.config().steps_offset;
        let most = if kind == SamplerKind::DpmPlusPlus2M { train.saturating_sub(1 + offset) } else { train };
        if !(1..=most).contains(&steps) {
            return Err(SamplerError::Steps { steps, sampler: kind.name(), most });
        }
        if karras == Some(true) && !kind.takes_karras_sigmas() {
            return Err(SamplerError::Karras { sampler: kind.name() });
        }
        let karras = karras.unwrap_or(scheduler.config().use_karras_sigmas);
        Ok(match kind {
            SamplerKind::Ddim => Self::Ddim(Ddim::new(scheduler, steps)),
            SamplerKind::Euler => Self::Euler(Euler::new(scheduler, karras, steps)),
            SamplerKind::EulerAncestral => Self::EulerAncestral(EulerAncestral::new(scheduler, steps)),
            SamplerKind::DpmPlusPlus2M => Self::DpmPlusPlus2M(DpmPlusPlus2M::new(scheduler, karras, steps)),
        })
    }

    /// The timestep that the model is told at each step, noisiest first; between two timesteps of training where
    /// the sampler's noise level is.
    pub fn timesteps(&self) -> &[f32] {
        match self {
            Self::Ddim(ddim) => &ddim.timesteps,
            Self::Euler(Euler { path, .. })
            | Self::EulerAncestral(EulerAncestral { euler: Euler { path, .. } })
            | Self::DpmPlusPlus2M(DpmPlusPlus2M { path, .. }) => &path.timesteps,
        }
    }

    /// σ at every step and at the end, of the samplers that work with it.
    pub fn sigmas(&self) -> Option<&[f64]> {
        match self {
            Self::Ddim(_) => None,
            Self::Euler(Euler { path, .. })
            | Self::EulerAncestral(EulerAncestral { euler: Euler { path, .. } })
            | Self::DpmPlusPlus2M(DpmPlusPlus2M { path, .. }) => Some(&path.sigmas),
        }
    }

    /// What standard normal noise is multiplied by to be the first latents.
    pub fn init_noise_sigma(&self) -> f64 {
        match self {
            Self::Ddim(_) | Self::DpmPlusPlus2M(_) => 1.0,
            Self::Euler(euler) | Self::EulerAncestral(EulerAncestral { euler }) => euler.init_noise_sigma(),
        }
    }

    /// The latents as the model knows them. Shapes stay.
    pub fn scale_model_input(&self, index: usize, latents: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Ddim(_) | Self::DpmPlusPlus2M(_) => latents,
            Self::Euler(euler) | Self::EulerAncestral(EulerAncestral { euler }) => {
                euler.scale_model_input(index, latents)
            }
        }
    }

    /// Moves the latents by step `index`, to be taken in order from 0.
    ///
    /// `prediction`: the model's answer for the latents at `timesteps()[index]`; `noise`: called by the samplers that add
    /// some, for standard normal noise. All `[batch, 4, height/8, width/8]`.
    pub fn step(
        &mut self,
        index: usize,
        prediction: Tensor<4>,
        latents: Tensor<4>,
        noise: impl FnOnce() -> Tensor<4>,
    ) -> Tensor<4> {
        match self {
            Self::Ddim(ddim) => ddim.step(index, prediction, latents),
            Self::Euler(euler) => euler.step(index, prediction, latents),
            Self::EulerAncestral(euler) => euler.step(index, prediction, latents, noise()),
            Self::DpmPlusPlus2M(solver) => solver.step(index, prediction, latents),
        }
    }
}
