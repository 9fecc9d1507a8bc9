//! `[sample]`: pictures made during the run.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// Pictures made during the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// One picture each. None: no pictures.
    pub prompts: Vec<String>,
    /// What the pictures should not show.
    pub negative_prompt: String,
    /// The seed of the first prompt's noise; the next has the next number.
    pub seed: u64,
    /// Denoising steps.
    pub steps: u32,
    /// How the steps go from noise to a picture.
    pub sampler: SamplerName,
    /// How strongly the prompt is followed (classifier-free guidance). 1: without guidance.
    pub guidance_scale: f64,
    /// The width in pixels. None: the training resolution.
    pub width: Option<u32>,
    /// The height in pixels. None: the training resolution.
    pub height: Option<u32>,
    /// After every so many steps. 0: only at the start and at the end.
    pub every_steps: u64,
    /// Whether pictures are made before the first step too.
    pub at_start: bool,
}

/// A sampler; `ballast sample --help` says what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SamplerName {
    /// DDIM.
    #[serde(rename = "ddim")]
    Ddim,
    /// Euler's method.
    #[serde(rename = "euler")]
    Euler,
    /// Euler's method with new noise in each step.
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// DPM-Solver++ of second order with Karras' noise levels.
    #[serde(rename = "dpmpp-2m")]
    DpmPlusPlus2M,
}

impl SampleConfig {
    pub(super) fn check(&self, check: &mut Check) {
        check.within(
            "seed",
            self.seed,
            ..=i64::MAX as u64,
            "a whole number from 0 to 9223372036854775807 (TOML's largest)",
        );
        check.within("steps", self.steps, 1..=1000, "a whole number from 1 to 1000");
        check.within("guidance_scale", self.guidance_scale, 0.0..=100.0, "a number from 0 to 100");
        for (key, side) in [("width", self.width), ("height", self.height)] {
            check.optional(side, |check, side| {
                let is_good = side.is_multiple_of(64) && (64..=8192).contains(&side);
                check.that(key, side, is_good, "a multiple of 64 from 64 to 8192");
            });
        }
    }
}
