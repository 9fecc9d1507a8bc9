//! GEGLU, as in `cuda/geglu.cu`.

use super::{Kind, Plan, word};
use crate::THREADS;

/// `x` (`[rows, 2 · width]`) → `y` (`[rows, width]`). `width` is even.
pub fn geglu_forward(rows: u64, width: u64) -> Option<Plan> {
    let mut plan = Plan::new();
    let x = plan.input("x", Kind::Bf16, rows * width * 2);
    let y = plan.output("y", Kind::Bf16, rows * width);
    let settings = plan.settings(&[word(rows)?, word(width)?]);
    plan.launch("geglu_forward", grid(rows, width)?, &[x.read(), y.write(), settings.read()])?;
    Some(plan)
}

/// `x`, `dy` → `dx`.
pub fn geglu_backward(rows: u64, width: u64) -> Option<Plan> {
    let mut plan = Plan::new();
    let x = plan.input("x", Kind::Bf16, rows * width * 2);
    let dy = plan.input("dy", Kind::Bf16, rows * width);
    let dx = plan.output("dx", Kind::Bf16, rows * width * 2);
    let settings = plan.settings(&[word(rows)?, word(width)?]);
    plan.launch("geglu_backward", grid(rows, width)?, &[x.read(), dy.read(), dx.write(), settings.read()])?;
    Some(plan)
}

/// A thread per pair of channels.
fn grid(rows: u64, width: u64) -> Option<[u64; 3]> {
    width.is_multiple_of(2).then(|| [(rows * width / 2).div_ceil(THREADS), 1, 1])
}
