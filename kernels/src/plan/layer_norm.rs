//! Layer norm over the last dimension, as in `cuda/layer_norm.cu`.

use super::{Kind, Plan, Slot, word};
use crate::{LAYER_NORM_ROWS, THREADS};

/// Sizes of a layer norm; `width` is even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNormShape {
    /// Rows, each normalised by itself.
    pub rows: u64,
    /// Channels of a row.
    pub width: u64,
    /// Added to the variance.
    pub eps: f32,
}

impl LayerNormShape {
    /// `None` when no kernel covers the width.
    fn settings(&self, plan: &mut Plan, [x, dy]: [u64; 2]) -> Option<Slot> {
        let words = [word(self.rows)?, word(self.width)?, self.eps.to_bits(), word(x)?, word(dy)?];
        self.width.is_multiple_of(2).then(|| plan.settings(&words))
    }
}

/// `x` with its stride, `weight`, `bias` → `y`, `statistics` (`[rows, 2]`: mean and 1/deviation).
pub fn layer_norm_forward(shape: LayerNormShape, stride: u64) -> Option<Plan> {
    let LayerNormShape { rows, width, .. } = shape;
    let mut plan = Plan::new();
    let x = plan.rows("x", [rows, width], stride, 2)?;
    let [weight, bias] = ["weight", "bias"].map(|name| plan.input(name, Kind::F32, width));
    let y = plan.output("y", Kind::Bf16, rows * width);
    let statistics = plan.output("statistics", Kind::F32, rows * 2);
    let settings = shape.settings(&mut plan, [stride, 0])?;
    let arguments = [x.read(), weight.read(), bias.read(), y.write(), statistics.write(), settings.read()];
    plan.launch("layer_norm_forward", [rows.div_ceil(THREADS / 32), 1, 1], &arguments)?;
    Some(plan)
}

/// `x`, `dy`, with their strides, `weight`, `statistics` → `dx`, `dweight`, `dbias`.
pub fn layer_norm_backward(shape: LayerNormShape, strides: [u64; 2]) -> Option<Plan> {
    let LayerNormShape { rows, width, .. } = shape;
    let count = rows.div_ceil(u64::from(LAYER_NORM_ROWS));
    let mut plan = Plan::new();
    let x = plan.rows("x", [rows, width], strides[0], 2)?;
    let dy = plan.rows("dy", [rows, width], strides[1], 2)?;
    let weight = plan.input("weight", Kind::F32, width);
    let statistics = plan.input("statistics", Kind::F32, rows * 2);
    let dx = plan.output("dx", Kind::Bf16, rows * width);
    let [dweight, dbias] = ["dweight", "dbias"].map(|name| plan.output(name, Kind::F32, width));
    let pieces = plan.temporary("pieces", Kind::F32, count * 2 * width);
    let settings = shape.settings(&mut plan, strides)?;
    let inputs = [x, weight, statistics, dy].map(Slot::read);
    let arguments = [&inputs[..], &[dx.write(), pieces.write(), settings.read()]].concat();
    plan.launch("layer_norm_backward", [count, 1, 1], &arguments)?;
    let arguments = [pieces.read(), dweight.write(), dbias.write(), settings.read()];
    plan.launch("layer_norm_backward_weights", [(2 * width).div_ceil(THREADS / 32), 1, 1], &arguments)?;
    Some(plan)
}
