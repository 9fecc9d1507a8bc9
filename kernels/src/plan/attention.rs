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

    /// `strides`: of query, key, value and, in the backward pass, the gradient.
    fn settings(&self, plan: &mut Plan, strides: &[u64]) -> Option<Slot> {
        let scale = (self.width as f32).powf(-0.5);
        let sizes = [word(self.heads)?, word(self.rows)?, word(self.keys)?, u32::from(self.causal), scale.to_bits()];
        let strides = strides.iter().map(|stride| word(*stride)).collect::<Option<Vec<_>>>()?;
        Some(plan.settings(&[&sizes[..], &strides].concat()))
    }

    /// Query, key and value. Their rows are read 16 bytes at a time.
    fn inputs(&self, plan: &mut Plan, strides: [u64; 3]) -> Option<[Slot; 3]> {
        let channels = self.heads * self.width;
        let (rows, keys) = ([self.batch * self.rows, channels], [self.batch * self.keys, channels]);
        Some([
            plan.rows("query", rows, strides[0], 8)?,
            plan.rows("key", keys, strides[1], 8)?,
            plan.rows("value", keys, strides[2], 8)?,
        ])
    }
}

/// `query`, `key`, `value`, with their strides → `result`, `log_sums` (`[batch, heads, rows]`).
pub fn attention_forward(shape: AttentionShape, strides: [u64; 3]) -> Option<Plan> {
    let mut plan = Plan::new();
    let [query, key, value] = shape.inputs(&mut plan, strides)?;
    let result = plan.output("result", Kind::Bf16, shape.queries());
    let log_sums = plan.output("log_sums", Kind::F32, shape.sums());
    let settings = shape.settings(&mut plan, &[&strides[..], &[0]].concat())?;
    let arguments = [query.read(), key.read(), value.read(), result.write(), log_sums.write(), settings.read()];
    plan.launch(&format!("attention_forward_{}", shape.width), shape.grid(shape.rows), &arguments)?;
    Some(plan)
}

/// `query`, `key`, `value`, `gradient` (of the result), with their strides, `result`, `log_sums` → `dquery`, `dkey`,
/// `dvalue`.
pub fn attention_backward(shape: AttentionShape, strides: [u64; 4]) -> Option<Plan> {
    let AttentionShape { width, heads, .. } = shape;
    let mut plan = Plan::new();
    let [of_query, of_key, of_value, of_gradient] = strides;
    let [query, key, value] = shape.inputs(&mut plan, [of_query, of_key, of_value])?;
    let gradient = plan.rows("gradient", [shape.batch * shape.rows, heads * width], of_gradient, 8)?;
    let result = plan.input("result", Kind::Bf16, shape.queries());
    let log_sums = plan.input("log_sums", Kind::F32, shape.sums());
    let dquery = plan.output("dquery", Kind::Bf16, shape.queries());
    let [dkey, dvalue] = ["dkey", "dvalue"].map(|name| plan.output(name, Kind::Bf16, shape.values()));
    let means = plan.temporary("means", Kind::F32, shape.sums());
    let settings = shape.settings(&mut plan, &strides)?;

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
