//! `[optimizer]`: what turns a gradient into a change of the parameters.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// What turns a gradient into a change of the parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// The learning rate.
    pub lr: f64,
    /// The text encoder's learning rate. None: the same as `lr`.
    pub text_encoder_lr: Option<f64>,
    /// Decay of the running mean of the gradient.
    pub beta1: f64,
    /// Decay of the running mean of the squared gradient.
    pub beta2: f64,
    /// Added to the root of the squared gradient, against division by zero.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's global norm is brought down to this. 0: never.
    pub max_grad_norm: f64,
}

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay (arXiv:1711.05101).
    Adamw,
}

impl OptimizerConfig {
    /// Returns the text encoder's learning rate, its own or the common one.
    pub fn text_encoder_lr(&self) -> f64 {
        self.text_encoder_lr.unwrap_or(self.lr)
    }

    pub(super) fn check(&self, check: &mut Check) {
        check.within("lr", self.lr, 0.0..=1.0, "a number from 0 to 1");
        check.optional(self.text_encoder_lr, |check, lr| {
            check.within("text_encoder_lr", lr, 0.0..=1.0, "a number from 0 to 1");
        });
        check.within("beta1", self.beta1, 0.0..1.0, "a number from 0 to below 1");
        check.within("beta2", self.beta2, 0.0..1.0, "a number from 0 to below 1");
        check.within("eps", self.eps, f64::MIN_POSITIVE..=1.0, "a number above 0, up to 1");
        check.within("weight_decay", self.weight_decay, 0.0..=1.0, "a number from 0 to 1");
        check.within("max_grad_norm", self.max_grad_norm, 0.0..f64::INFINITY, "a number, 0 or more (0 = off)");
    }
}
