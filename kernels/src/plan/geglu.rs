//! GEGLU, as in `cuda/geglu.cu`.

use super::{Kind, Plan, Slot, word};
use crate::THREADS;

/// `x` (`[rows, 2 · width]`, with its stride) → `y` (`[rows, width]`). `width` is even.
pub fn geglu_forward([rows, width]: [u64; 2], stride: u64) -> Option<Plan> {
    let mut plan = Plan::new();
    let x = plan.rows("x", [rows, 2 * width], stride, 2)?;
    let y = plan.output("y", Kind::Bf16, rows * width);
    let settings = settings(&mut plan, [rows, width, stride, 0])?;
    plan.launch("geglu_forward", grid(rows, width)?, &[x.read(), y.write(), settings.read()])?;
    Some(plan)
}

/// `x`, `dy` (`[rows, width]`), with their strides → `dx`.
pub fn geglu_backward([rows, width]: [u64; 2], strides: [u64; 2]) -> Option<Plan> {
    let mut plan = Plan::new();
    let x = plan.rows("x", [rows, 2 * width], strides[0], 2)?;
    let dy = plan.rows("dy", [rows, width], strides[1], 2)?;
    let dx = plan.output("dx", Kind::Bf16, rows * width * 2);
    let settings = settings(&mut plan, [rows, width, strides[0], strides[1]])?;
    plan.launch("geglu_backward", grid(rows, width)?, &[x.read(), dy.read(), dx.write(), settings.read()])?;
    Some(plan)
}

fn settings(plan: &mut Plan, sizes: [u64; 4]) -> Option<Slot> {
    let [rows, width, of_x, of_dy] = sizes.map(word);
    Some(plan.settings(&[rows?, width?, of_x?, of_dy?]))
}

/// A thread per pair of channels.
fn grid(rows: u64, width: u64) -> Option<[u64; 3]> {
    width.is_multiple_of(2).then(|| [(rows * width / 2).div_ceil(THREADS), 1, 1])
}
