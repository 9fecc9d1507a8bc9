//! Group norm over pixels as rows, with SiLU where that follows, as in `cuda/group_norm.cu`.

use super::{Kind, Plan, Slot, word};
use crate::{GROUP_NORM_MAX_CHANNELS, GROUP_NORM_PIXELS, THREADS};

/// Sizes of a group norm. A group has an even number of channels, and there are at most
/// [`GROUP_NORM_MAX_CHANNELS`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupNormShape {
    /// Samples.
    pub batch: u64,
    /// Rows of a sample.
    pub pixels: u64,
    /// Channels of a row.
    pub channels: u64,
    /// Groups of channels.
    pub groups: u64,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl GroupNormShape {
    fn values(&self) -> u64 {
        self.batch * self.pixels * self.channels
    }

    fn pieces(&self) -> u64 {
        self.pixels.div_ceil(u64::from(GROUP_NORM_PIXELS))
    }

    fn covered(&self) -> bool {
        let Self { channels, groups, .. } = *self;
        groups > 0
            && channels.is_multiple_of(2 * groups)
            && (1..=u64::from(GROUP_NORM_MAX_CHANNELS)).contains(&channels)
    }

    fn rows(&self) -> [u64; 2] {
        [self.batch * self.pixels, self.channels]
    }

    fn settings(&self, plan: &mut Plan, [x, dy]: [u64; 2]) -> Option<Slot> {
        let sizes = [word(self.pixels)?, word(self.channels)?, word(self.groups)?, word(self.batch)?];
        word(self.pixels.checked_mul(x.max(dy).max(self.channels))?)?;
        let others = [u32::from(self.silu), self.eps.to_bits(), word(x)?, word(dy)?];
        Some(plan.settings(&[sizes, others].concat()))
    }
}

/// `x` with its stride, `weight`, `bias` → `y`, `statistics` (`[batch, groups, 2]`: mean and 1/deviation).
pub fn group_norm_forward(shape: GroupNormShape, stride: u64) -> Option<Plan> {
    let GroupNormShape { batch, channels, groups, .. } = shape;
    if !shape.covered() {
        return None;
    }
    let mut plan = Plan::new();
    let x = plan.rows("x", shape.rows(), stride, 2)?;
    let [weight, bias] = ["weight", "bias"].map(|name| plan.input(name, Kind::F32, channels));
    let y = plan.output("y", Kind::Bf16, shape.values());
    let statistics = plan.output("statistics", Kind::F32, batch * groups * 2);
    let pieces = plan.temporary("pieces", Kind::F32, batch * shape.pieces() * groups * 2);
    let settings = shape.settings(&mut plan, [stride, 0])?;

    let by_piece = [shape.pieces(), batch, 1];
    plan.launch("group_norm_pieces", by_piece, &[x.read(), pieces.write(), settings.read()])?;
    let arguments = [x.read(), pieces.read(), statistics.write(), settings.read()];
    plan.launch("group_norm_statistics", [groups.div_ceil(THREADS / 32), batch, 1], &arguments)?;
    let arguments = [x.read(), weight.read(), bias.read(), statistics.read(), y.write(), settings.read()];
    plan.launch("group_norm_apply", by_piece, &arguments)?;
    Some(plan)
}

/// `x`, `dy`, with their strides, `weight`, `bias`, `statistics` → `dx`, `dweight`, `dbias`.
pub fn group_norm_backward(shape: GroupNormShape, strides: [u64; 2]) -> Option<Plan> {
    let GroupNormShape { batch, channels, groups, .. } = shape;
    if !shape.covered() {
        return None;
    }
    let mut plan = Plan::new();
    let x = plan.rows("x", shape.rows(), strides[0], 2)?;
    let dy = plan.rows("dy", shape.rows(), strides[1], 2)?;
    let [weight, bias] = ["weight", "bias"].map(|name| plan.input(name, Kind::F32, channels));
    let statistics = plan.input("statistics", Kind::F32, batch * groups * 2);
    let dx = plan.output("dx", Kind::Bf16, shape.values());
    let [dweight, dbias] = ["dweight", "dbias"].map(|name| plan.output(name, Kind::F32, channels));
    let pieces = plan.temporary("pieces", Kind::F32, batch * shape.pieces() * channels * 2);
    let sums = plan.temporary("sums", Kind::F32, batch * channels * 2);
    let means = plan.temporary("means", Kind::F32, batch * groups * 2);
    let settings = shape.settings(&mut plan, strides)?;

    let by_piece = [shape.pieces(), batch, 1];
    let inputs = [x, weight, bias, statistics].map(Slot::read);
    let arguments = [&inputs[..], &[dy.read(), pieces.write(), settings.read()]].concat();
    plan.launch("group_norm_backward_pieces", by_piece, &arguments)?;
    let arguments = [weight.read(), pieces.read(), sums.write(), means.write(), settings.read()];
    plan.launch("group_norm_backward_sums", [groups, batch, 1], &arguments)?;
    let arguments = [&inputs[..], &[means.read(), dy.read(), dx.write(), settings.read()]].concat();
    plan.launch("group_norm_backward_apply", by_piece, &arguments)?;
    let arguments = [sums.read(), dweight.write(), dbias.write(), settings.read()];
    plan.launch("group_norm_backward_weights", [channels.div_ceil(THREADS), 1, 1], &arguments)?;
    Some(plan)
}
