//! Scaled dot-product attention, as in `cuda/attention.cu`.

use super::{Kind, Plan, Slot, word};
use crate::ATTENTION_ROWS;

/// Sizes of an attention; the heads' channels lie side by side in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Samples.
    pub batch: u64,
    /// Rows of the queries.
    pub rows: u64,
    /// Rows of keys and values.
    pub keys: u64,
    /// Heads.
    pub heads: u64,
    /// Channels of a head, one of [`crate::HEAD_WIDTHS`].
    pub width: u64,
    /// Whether row `i` sees the keys `0..=i` only.
    pub causal: bool,
}

impl AttentionShape {
    fn queries(&self) -> u64 {
        self.batch * self.rows * self.heads * self.width
    }

    fn values(&self) -> u64 {
        self.batch * self.keys * self.heads * self.width
    }

    fn sums(&self) -> u64 {
        self.batch * self.heads * self.rows
    }

    /// The blocks for `rows` rows of every head.
    fn grid(&self, rows: u64) -> [u64; 3] {
        [rows.div_ceil(u64::from(ATTENTION_ROWS)), self.heads, self.batch]
    }

    fn settings(&self, plan: &mut Plan) -> Option<Slot> {
        let scale = (self.width as f32).powf(-0.5);
        let stride = word(self.heads * self.width)?;
        let causal = u32::from(self.causal);
        let [heads, rows, keys] = [word(self.heads)?, word(self.rows)?, word(self.keys)?];
        Some(plan.settings(&[heads, rows, keys, causal, scale.to_bits(), stride, stride, stride]))
    }
}

/// `query`, `key`, `value` → `result`, `log_sums`.
pub fn attention_forward(shape: AttentionShape) -> Option<Plan> {
    let mut plan = Plan::new();
    let query = plan.input("query", Kind::Bf16, shape.queries());
    let [key, value] = ["key", "value"].map(|name| plan.input(name, Kind::Bf16, shape.values()));
    let result = plan.output("result", Kind::Bf16, shape.queries());
    let log_sums = plan.output("log_sums", Kind::F32, shape.sums());
    let settings = shape.settings(&mut plan)?;
    let arguments = [query.read(), key.read(), value.read(), result.write(), log_sums.write(), settings.read()];
    plan.launch(&format!("attention_forward_{}", shape.width), shape.grid(shape.rows), &arguments)?;
    Some(plan)
}

/// `query`, `key`, `value`, `result`, `log_sums`, `gradient` → `dquery`, `dkey`, `dvalue`.
pub fn attention_backward(shape: AttentionShape) -> Option<Plan> {
    let width = shape.width;
    let mut plan = Plan::new();
    let query = plan.input("query", Kind::Bf16, shape.queries());
    let [key, value] = ["key", "value"].map(|name| plan.input(name, Kind::Bf16, shape.values()));
    let result = plan.input("result", Kind::Bf16, shape.queries());
    let log_sums = plan.input("log_sums", Kind::F32, shape.sums());
    let gradient = plan.input("gradient", Kind::Bf16, shape.queries());
    let dquery = plan.output("dquery", Kind::Bf16, shape.queries());
    let [dkey, dvalue] = ["dkey", "dvalue"].map(|name| plan.output(name, Kind::Bf16, shape.values()));
    let means = plan.temporary("means", Kind::F32, shape.sums());
    let settings = shape.settings(&mut plan)?;

    let rows = shape.grid(shape.rows);
    let arguments = [result.read(), gradient.read(), means.write(), settings.read()];
    plan.launch(&format!("attention_means_{width}"), rows, &arguments)?;

    let inputs = [query, key, value, gradient, log_sums, means].map(Slot::read);
    let arguments = [&inputs[..], &[dquery.write(), settings.read()]].concat();
    plan.launch(&format!("attention_backward_query_{width}"), rows, &arguments)?;

    let arguments = [&inputs[..], &[dkey.write(), dvalue.write(), settings.read()]].concat();
    for kernel in crate::attention(u32::try_from(width).ok()?)?.backward_key {
        plan.launch(&kernel.name, shape.grid(shape.keys), &arguments)?;
    }
    Some(plan)
}
