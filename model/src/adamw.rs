//! AdamW on flat buffers.
//!
//! Every worker moves its own copy of the parameters by the same reduced gradient, so the arithmetic has to give the
//! same bits whatever the number of threads: elements are independent of each other.

use crate::kernels::math::vectorised;
use rayon::prelude::*;
use std::ops::Range;

/// Elements that one thread handles at a time.
const CHUNK: usize = 1 << 16;

/// A part of the flat buffer that shares a learning rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Elements of the flat buffer.
    pub range: Range<usize>,
    /// Learning rate of this step.
    pub lr: f64,
}

/// AdamW (arXiv:1711.05101), with the formula of `torch.optim.AdamW`: decoupled decay, bias correction, ε outside the root.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    settings: AdamWSettings,
    /// Running mean of the gradient.
    pub exp_avg: Vec<f32>,
    /// Running mean of the squared gradient.
    pub exp_avg_sq: Vec<f32>,
}

/// A gradient that is meant to be multiplied by a factor: the one that brings its norm down, or 1.
#[derive(Debug, Clone, Copy)]
pub struct Scaled<'a> {
    /// Of the whole layout.
    pub gradient: &'a [f32],
    /// What each element is multiplied by, in f32.
    pub factor: f32,
}

/// What [`AdamW`] can be told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Share of the running mean of the gradient that is kept in a step.
    pub beta1: f64,
    /// Share of the running mean of the squared gradient that is kept in a step.
    pub beta2: f64,
    /// Added to the root of the second mean.
    pub eps: f64,
    /// Share of each parameter that is taken away in a step, times the learning rate.
    pub weight_decay: f64,
}

impl AdamWSettings {
    /// The scalars of a step, which is 1 for the first move.
    pub(crate) fn factors(self, step: u64, lr: f64) -> Factors {
        Factors::new(self, step, lr)
    }
}

impl AdamW {
    /// Starts an optimizer for `elements` parameters.
    pub fn new(settings: AdamWSettings, elements: usize) -> Self {
        Self { settings, exp_avg: vec![0.0; elements], exp_avg_sq: vec![0.0; elements] }
    }

    /// Moves the parameters. `step` is 1 for the first move; parameters outside all groups stay as they are.
    ///
    /// # Panics
    ///
    /// When the buffers differ in length or a group lies outside them.
    pub fn step(&mut self, params: &mut [f32], gradient: &[f32], step: u64, groups: &[Group]) {
        assert!(params.len() == self.exp_avg.len(), "all buffers have one layout");
        assert!(groups.iter().all(|group| group.range.end <= params.len()), "groups lie within the buffers");
        self.step_part(0, params, gradient, step, groups);
    }

    /// Moves the parameters of which the first is element `offset` of the layout: a step is made of such parts, in any
    /// order, each element once. `gradient` is that of the whole layout.
    ///
    /// # Panics
    ///
    /// When the part reaches beyond the layout, or the gradient has not its length.
    pub fn step_part(&mut self, offset: usize, params: &mut [f32], gradient: &[f32], step: u64, groups: &[Group]) {
        self.step_part_scaled(offset, params, Scaled { gradient, factor: 1.0 }, step, groups);
    }

    /// [`step_part`](Self::step_part) with a gradient that is multiplied by a factor on the way: the bits are those of
    /// multiplying it before, which would read and write all of it once more.
    ///
    /// # Panics
    ///
    /// As [`step_part`](Self::step_part).
    pub fn step_part_scaled(
        &mut self,
        offset: usize,
        params: &mut [f32],
        Scaled { gradient, factor }: Scaled<'_>,
        step: u64,
        groups: &[Group],
    ) {
        assert!(gradient.len() == self.exp_avg.len(), "all buffers have one layout");
        for Group { range, lr } in groups {
            let factors = self.settings.factors(step, *lr);
            let (start, end) = (range.start.max(offset), range.end.min(offset + params.len()));
            if start >= end {
                continue;
            }
            params[start - offset..end - offset]
                .par_chunks_mut(CHUNK)
                .zip(gradient[start..end].par_chunks(CHUNK))
                .zip(self.exp_avg[start..end].par_chunks_mut(CHUNK))
                .zip(self.exp_avg_sq[start..end].par_chunks_mut(CHUNK))
                .for_each(|(((params, gradient), exp_avg), exp_avg_sq)| {
                    factors.apply(params, Scaled { gradient, factor }, exp_avg, exp_avg_sq);
                });
        }
    }
}

/// The scalars of one step, computed in `f64` and rounded once, as PyTorch does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) decay: f32,
    pub(crate) one_minus_beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) one_minus_beta2: f32,
    pub(crate) bias_correction2_sqrt: f32,
    pub(crate) eps: f32,
    pub(crate) step_size: f32,
}

impl Factors {
    fn new(settings: AdamWSettings, step: u64, lr: f64) -> Self {
        let AdamWSettings { beta1, beta2, eps, weight_decay } = settings;
        // Multiplication is exactly rounded everywhere; `powf` is the platform's own.
        let power = |base: f64| integer_power(base, step);
        Self {
            decay: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            bias_correction2_sqrt: (1.0 - power(beta2)).sqrt() as f32,
            eps: eps as f32,
            step_size: (lr / (1.0 - power(beta1))) as f32,
        }
    }

    fn apply(&self, params: &mut [f32], gradient: Scaled<'_>, exp_avg: &mut [f32], exp_avg_sq: &mut [f32]) {
        type State<'a> = (&'a mut [f32], &'a mut [f32]);
        let (factors, state) = (*self, (exp_avg, exp_avg_sq));
        vectorised!((f: Factors = factors, params: &mut [f32] = params, scaled: Scaled<'_> = gradient, state: State<'_> = state) {
            let Scaled { gradient, factor } = scaled;
            for (((param, gradient), exp_avg), exp_avg_sq) in params.iter_mut().zip(gradient).zip(state.0).zip(state.1) {
                let gradient = gradient * factor;
                *exp_avg += (gradient - *exp_avg) * f.one_minus_beta1;
                *exp_avg_sq = *exp_avg_sq * f.beta2 + gradient * gradient * f.one_minus_beta2;
                let denominator = exp_avg_sq.sqrt() / f.bias_correction2_sqrt + f.eps;
                *param = *param * f.decay - f.step_size * (*exp_avg / denominator);
            }
        });
    }
}

fn integer_power(mut base: f64, mut exponent: u64) -> f64 {
    let mut power = 1.0;
    while exponent > 0 {
        if exponent % 2 == 1 {
            power *= base;
        }
        base *= base;
        exponent /= 2;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };

    /// PyTorch's own numbers:
    ///
    /// ```python
    /// p = torch.tensor([1.0, -2.0, 0.5, 3.0], requires_grad=True)  # torch 2.9.1, float32
    /// o = torch.optim.AdamW([p], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, foreach=False)
    /// for g in ([0.1, -0.2, 3.0, 0.0], [0.3, 0.1, -1.0, 1e-4], [-0.5, 0.0, 2.0, 0.0]):
    ///     p.grad = torch.tensor(g); o.step(); print(p.tolist())
    /// print(o.state[p]["exp_avg"].tolist(), o.state[p]["exp_avg_sq"].tolist())
    /// ```
    #[test]
    fn three_steps_agree_with_pytorch() {
        let gradients = [[0.1, -0.2, 3.0, 0.0], [0.3, 0.1, -1.0, 1e-4], [-0.5, 0.0, 2.0, 0.0]];
        let expected = [
            [0.9890000224113464, -1.9880000352859497, 0.4895000159740448, 2.996999979019165],
            [0.9788332581520081, -1.9833487272262573, 0.4850083291530609, 2.986562728881836],
            [0.9794635772705078, -1.979306697845459, 0.47849246859550476, 2.977825164794922],
        ];
        let mut optimizer = AdamW::new(AdamWSettings { weight_decay: 0.1, ..SETTINGS }, 4);
        let mut params = vec![1.0, -2.0, 0.5, 3.0];
        for (step, (gradient, expected)) in (1..).zip(gradients.iter().zip(expected)) {
            optimizer.step(&mut params, gradient, step, &[Group { range: 0..4, lr: 1e-2 }]);
            assert_close(&params, &expected);
        }
        assert_close(
            &optimizer.exp_avg,
            &[-0.01489999983459711, -0.007200000341981649, 0.3530000150203705, 8.999999408842996e-06],
        );
        assert_close(
            &optimizer.exp_avg_sq,
            &[0.00034989003324881196, 4.99100424349308e-05, 0.013981008902192116, 9.990000146564704e-12],
        );
    }

    fn assert_close(found: &[f32], expected: &[f64]) {
        // Two roundings of f32: PyTorch may fuse multiplications and additions.
        let close = |(found, expected): (&f32, &f64)| (f64::from(*found) - expected).abs() <= 2.4e-7 * expected.abs();
        assert!(found.iter().zip(expected).all(close), "{found:?}, not {expected:?}");
    }

    #[test]
    fn a_step_in_parts_is_the_same_step() {
        let gradient: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin()).collect();
        let groups = [Group { range: 0..640, lr: 0.5 }, Group { range: 640..1000, lr: 0.25 }];
        let (mut whole, mut parts) = (vec![1.0; 1000], vec![1.0; 1000]);
        let mut optimizers = [AdamW::new(SETTINGS, 1000), AdamW::new(SETTINGS, 1000)];
        for step in 1..3 {
            optimizers[0].step(&mut whole, &gradient, step, &groups);
            for offset in [700, 0, 300] {
                let end = if offset == 300 { 700 } else { (offset + 300).min(1000) };
                optimizers[1].step_part(offset, &mut parts[offset..end], &gradient, step, &groups);
            }
        }
        assert!(whole == parts && optimizers[0] == optimizers[1]);
    }

    #[test]
    fn a_scaled_gradient_gives_the_bits_of_one_multiplied_before() {
        let gradient: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.7).sin() * 1e3).collect();
        let factor = 0.123_456_79;
        let multiplied: Vec<f32> = gradient.iter().map(|value| value * factor).collect();
        let groups = [Group { range: 0..1000, lr: 0.5 }];
        let (mut before, mut on_the_way) = (vec![1.0; 1000], vec![1.0; 1000]);
        let mut optimizers = [AdamW::new(SETTINGS, 1000), AdamW::new(SETTINGS, 1000)];
        for step in 1..3 {
            optimizers[0].step(&mut before, &multiplied, step, &groups);
            let scaled = Scaled { gradient: &gradient, factor };
            optimizers[1].step_part_scaled(0, &mut on_the_way, scaled, step, &groups);
        }
        assert!(before == on_the_way && optimizers[0] == optimizers[1]);
    }

    #[test]
    fn groups_have_their_own_rates_and_the_rest_stays() {
        let mut optimizer = AdamW::new(SETTINGS, 3);
        let mut params = vec![1.0; 3];
        let groups = [Group { range: 0..1, lr: 0.5 }, Group { range: 1..2, lr: 0.25 }];
        optimizer.step(&mut params, &[2.0; 3], 1, &groups);
        let moved = params.iter().map(|param| 1.0 - param);
        assert!(moved.zip([0.5, 0.25, 0.0]).all(|(found, wanted)| (found - wanted).abs() < 1e-6), "{params:?}");
    }
}
