//! Classifier-free guidance: beyond what the prompt adds to the prediction (arXiv:2207.12598, equation 6).

use burn::tensor::Tensor;

/// How predictions with and without the prompt are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// How far to go beyond the unconditional prediction; 1 turns guidance off.
    pub scale: f64,
    /// How much of the spread that guidance adds is taken back, 0..=1 (φ of arXiv:2305.08891, §3.4).
    pub rescale: f64,
}

impl Guidance {
    /// Whether a prediction without the prompt is needed at all.
    pub fn is_on(&self) -> bool {
        self.scale != 1.0
    }

    /// Joins the two predictions, both `[batch, 4, height/8, width/8]`.
    pub fn join(&self, unconditional: Tensor<4>, conditional: Tensor<4>) -> Tensor<4> {
        let guided = unconditional.clone() + (conditional.clone() - unconditional) * self.scale;
        if self.rescale == 0.0 {
            return guided;
        }
        // Equations 15 and 16: the spread of the conditional prediction, sample by sample.
        let ratio = spread(conditional) / spread(guided.clone());
        guided.clone() * ratio * self.rescale + guided * (1.0 - self.rescale)
    }
}

/// Standard deviation over all but the first dimension: `[batch, 1, 1, 1]`.
fn spread(x: Tensor<4>) -> Tensor<4> {
    let batch = x.dims()[0];
    let flat: Tensor<2> = x.reshape([batch as i64, -1]);
    let centred = flat.clone() - flat.mean_dim(1);
    centred.square().mean_dim(1).sqrt().reshape([batch, 1, 1, 1])
}
