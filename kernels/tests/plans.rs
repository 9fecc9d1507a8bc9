//! The launches of every operation, run as planned with the kernels' own text on the CPU, against the plain formulas in
//! f64: at shapes that fill tiles and that do not.

use ballast_kernels::emulation::{Emulation, Order};
use ballast_kernels::plan::{
    AttentionShape, GroupNormShape, Kind, LayerNormShape, Plan, attention_backward, attention_forward, geglu_backward,
    geglu_forward, group_norm_backward, group_norm_forward, layer_norm_backward, layer_norm_forward,
};

/// bf16 keeps 8 bits: rounding a result costs about 2e-3 of its norm.
const ROUNDED: f64 = 4e-3;
/// Gradients of queries, keys and values are made of weights that are rounded too.
const TWICE_ROUNDED: f64 = 8e-3;
/// Sums in f32.
const SUMMED: f64 = 1e-5;

#[test]
fn attention() {
    let shape = |[batch, rows, keys, heads]: [u64; 4], causal| (batch, rows, keys, heads, causal);
    let shapes = [
        shape([2, 1, 1, 1], false),
        shape([1, 64, 64, 2], false),
        shape([2, 130, 77, 1], false),
        shape([1, 77, 77, 2], true),
        shape([1, 20, 140, 3], true),
        shape([1, 200, 33, 1], true),
    ];
    for width in ballast_kernels::HEAD_WIDTHS {
        for (batch, rows, keys, heads, causal) in shapes {
            for padding in [0, 24] {
                attention_of(AttentionShape { batch, rows, keys, heads, width: width.into(), causal }, padding);
            }
        }
    }
}

/// `padding`: elements after every row of what is given.
fn attention_of(shape: AttentionShape, padding: usize) {
    let what = format!("{shape:?}");
    let stride = shape.heads * shape.width + padding as u64;
    let forward = attention_forward(shape, [stride; 3]).expect(&what);
    let backward = attention_backward(shape, [stride; 4]).expect(&what);
    let AttentionShape { batch, rows, keys, heads, width, causal } = shape;
    let [batch, rows, keys, heads, width] = [batch, rows, keys, heads, width].map(|size| size as usize);
    let mut numbers = Numbers::new(7);
    let query = numbers.bf16(batch * rows * heads * width, 1.5, 0.0);
    let key = numbers.bf16(batch * keys * heads * width, 1.5, 0.0);
    let value = numbers.bf16(batch * keys * heads * width, 1.0, 0.25);
    let gradient = numbers.bf16(batch * rows * heads * width, 1.0, 0.0);

    let scale = (width as f64).powf(-0.5);
    let mut result = vec![0.0; query.values.len()];
    let mut log_sums = vec![0.0; batch * heads * rows];
    let [mut dquery, mut dkey, mut dvalue] = [&query, &key, &value].map(|x| vec![0.0; x.values.len()]);
    for (b, h, i) in triples(batch, heads, rows) {
        let row = |length: usize, i: usize| {
            ((b * length + i) * heads + h) * width..((b * length + i) * heads + h + 1) * width
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let seen = if causal { (i + 1).min(keys) } else { keys };
        let q = &query.values[row(rows, i)];
        let scores: Vec<f64> = (0..seen).map(|j| dot(q, &key.values[row(keys, j)]) * scale).collect();
        let total: f64 = scores.iter().map(|score| score.exp()).sum();
        log_sums[(b * heads + h) * rows + i] = total.ln();
        let weights: Vec<f64> = scores.iter().map(|score| score.exp() / total).collect();
        let out = &mut result[row(rows, i)];
        for (j, weight) in weights.iter().enumerate() {
            out.iter_mut().zip(&value.values[row(keys, j)]).for_each(|(out, v)| *out += weight * v);
        }
        let dy = &gradient.values[row(rows, i)];
        let mean = dot(out, dy);
        for (j, weight) in weights.iter().enumerate() {
            let dscore = weight * (dot(dy, &value.values[row(keys, j)]) - mean) * scale;
            for d in 0..width {
                dquery[row(rows, i)][d] += dscore * key.values[row(keys, j)][d];
                dkey[row(keys, j)][d] += dscore * q[d];
                dvalue[row(keys, j)][d] += weight * dy[d];
            }
        }
    }

    let [query, key, value, gradient] = [query, key, value, gradient].map(|x| x.padded(heads * width, padding));
    let inputs = [&query[..], &key, &value];
    let outputs = check(&what, &forward, &inputs, &[(&result, ROUNDED), (&log_sums, 1e-6)]);
    let inputs = [&inputs[..], &[&gradient, &outputs[0], &outputs[1]]].concat();
    check(&what, &backward, &inputs, &[&dquery, &dkey, &dvalue].map(|right| (&right[..], TWICE_ROUNDED)));
}

#[test]
fn group_norm() {
    for ([batch, pixels, channels, groups], silu, shift) in [
        ([2, 64, 320, 32], true, 0.0),
        ([1, 100, 64, 32], true, 30.0),
        ([2, 33, 2560, 32], false, -5.0),
        ([1, 1, 640, 32], true, 1.0),
        ([3, 70, 96, 8], false, 0.0),
        ([1, 1100, 32, 4], true, 2.0), // more pieces than lanes
    ] {
        for padding in [0, 16] {
            group_norm_of(GroupNormShape { batch, pixels, channels, groups, eps: 1e-5, silu }, shift, padding);
        }
    }
}

fn group_norm_of(shape: GroupNormShape, shift: f64, padding: usize) {
    let what = format!("{shape:?}");
    let GroupNormShape { batch, pixels, channels, groups, eps, silu } = shape;
    let [batch, pixels, channels, groups] = [batch, pixels, channels, groups].map(|size| size as usize);
    let mut numbers = Numbers::new(8);
    let x = numbers.bf16(batch * pixels * channels, 2.0, shift);
    let dy = numbers.bf16(x.values.len(), 1.0, 0.0);
    let weight = numbers.f32(channels, 0.5, 1.0);
    let bias = numbers.f32(channels, 0.5, 0.0);

    let width = channels / groups;
    let count = (pixels * width) as f64;
    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; x.values.len()]);
    let [mut dweight, mut dbias] = [(); 2].map(|()| vec![0.0; channels]);
    let mut statistics = Vec::new();
    for (b, g) in (0..batch).flat_map(|b| (0..groups).map(move |g| (b, g))) {
        let places = || {
            (0..pixels)
                .flat_map(move |p| (g * width..(g + 1) * width).map(move |c| ((b * pixels + p) * channels + c, c)))
        };
        let mean = places().map(|(i, _)| x.values[i]).sum::<f64>() / count;
        let variance = places().map(|(i, _)| (x.values[i] - mean).powi(2)).sum::<f64>() / count;
        let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
        statistics.extend([mean, inverse]);
        let (mut plain, mut product) = (0.0, 0.0);
        for (i, c) in places() {
            let normal = (x.values[i] - mean) * inverse;
            let z = normal * weight.values[c] + bias.values[c];
            let sigmoid = 1.0 / (1.0 + (-z).exp());
            y[i] = if silu { z * sigmoid } else { z };
            dx[i] = dy.values[i] * if silu { sigmoid * (1.0 + z * (1.0 - sigmoid)) } else { 1.0 };
            dweight[c] += dx[i] * normal;
            dbias[c] += dx[i];
            plain += dx[i] * weight.values[c] / count;
            product += dx[i] * weight.values[c] * normal / count;
        }
        for (i, c) in places() {
            let normal = (x.values[i] - mean) * inverse;
            dx[i] = inverse * (dx[i] * weight.values[c] - plain - normal * product);
        }
    }

    let stride = (channels + padding) as u64;
    let [x, dy] = [x, dy].map(|x| x.padded(channels, padding));
    let plan = group_norm_forward(shape, stride).expect(&what);
    let inputs = [&x[..], &weight.bytes, &bias.bytes];
    let outputs = check(&what, &plan, &inputs, &[(&y, ROUNDED), (&statistics, SUMMED)]);
    let plan = group_norm_backward(shape, [stride; 2]).expect(&what);
    let inputs = [&x[..], &dy, &weight.bytes, &bias.bytes, &outputs[1]];
    check(&what, &plan, &inputs, &[(&dx, ROUNDED), (&dweight, SUMMED), (&dbias, SUMMED)]);
}

#[test]
fn layer_norm() {
    for (rows, width) in [(70, 320), (1, 1280), (130, 34), (2150, 8)] {
        for padding in [0, 6] {
            layer_norm_of(LayerNormShape { rows, width, eps: 1e-5 }, padding);
        }
    }
}

fn layer_norm_of(shape: LayerNormShape, padding: usize) {
    let what = format!("{shape:?}");
    let (rows, width) = (shape.rows as usize, shape.width as usize);
    let mut numbers = Numbers::new(9);
    let x = numbers.bf16(rows * width, 2.0, 3.0);
    let dy = numbers.bf16(rows * width, 1.0, 0.0);
    let weight = numbers.f32(width, 0.5, 1.0);
    let bias = numbers.f32(width, 0.5, 0.0);

    let [mut y, mut dx] = [(); 2].map(|()| vec![0.0; rows * width]);
    let [mut dweight, mut dbias] = [(); 2].map(|()| vec![0.0; width]);
    let mut statistics = Vec::new();
    for row in 0..rows {
        let own = row * width..(row + 1) * width;
        let count = width as f64;
        let mean = x.values[own.clone()].iter().sum::<f64>() / count;
        let variance = x.values[own.clone()].iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let inverse = 1.0 / (variance + f64::from(shape.eps)).sqrt();
        statistics.extend([mean, inverse]);
        let (mut plain, mut product) = (0.0, 0.0);
        for (c, i) in own.clone().enumerate() {
            let normal = (x.values[i] - mean) * inverse;
            y[i] = normal * weight.values[c] + bias.values[c];
            dweight[c] += dy.values[i] * normal;
            dbias[c] += dy.values[i];
            plain += dy.values[i] * weight.values[c] / count;
            product += dy.values[i] * weight.values[c] * normal / count;
        }
        for (c, i) in own.enumerate() {
            let normal = (x.values[i] - mean) * inverse;
            dx[i] = inverse * (dy.values[i] * weight.values[c] - plain - normal * product);
        }
    }

    let stride = (width + padding) as u64;
    let [x, dy] = [x, dy].map(|x| x.padded(width, padding));
    let plan = layer_norm_forward(shape, stride).expect(&what);
    let inputs = [&x[..], &weight.bytes, &bias.bytes];
    let outputs = check(&what, &plan, &inputs, &[(&y, ROUNDED), (&statistics, SUMMED)]);
    let plan = layer_norm_backward(shape, [stride; 2]).expect(&what);
    let inputs = [&x[..], &dy, &weight.bytes, &outputs[1]];
    check(&what, &plan, &inputs, &[(&dx, ROUNDED), (&dweight, SUMMED), (&dbias, SUMMED)]);
}

#[test]
fn geglu() {
    for ([rows, width], padding) in [([5, 320], 0), ([3, 6], 0), ([1, 2], 0), ([5, 100], 28)] {
        let what = format!("GEGLU {rows} x {width}");
        let mut numbers = Numbers::new(10);
        let x = numbers.bf16(rows * width * 2, 1.5, 0.0);
        let dy = numbers.bf16(rows * width, 1.0, 0.0);
        let mut y = Vec::new();
        let mut dx = vec![0.0; rows * width * 2];
        for i in 0..rows * width {
            let hidden = i / width * 2 * width + i % width;
            let (a, z, gradient) = (x.values[hidden], x.values[hidden + width], dy.values[i]);
            let below = 0.5 * (1.0 + error_function(z / 2.0f64.sqrt()));
            let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            y.push(a * z * below);
            dx[hidden] = gradient * z * below;
            dx[hidden + width] = gradient * a * (below + z * density);
        }
        let strides = [2 * width + padding, width + padding].map(|stride| stride as u64);
        let (x, dy) = (x.padded(2 * width, padding), dy.padded(width, padding));
        let sizes = [rows as u64, width as u64];
        let plan = geglu_forward(sizes, strides[0]).expect(&what);
        check(&what, &plan, &[&x], &[(&y, ROUNDED)]);
        let plan = geglu_backward(sizes, strides).expect(&what);
        check(&what, &plan, &[&x, &dy], &[(&dx, ROUNDED)]);
    }
}

/// The error function by its series, good to 1e-12 within ±6.
fn error_function(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Runs a plan with the threads in both orders, and compares its outputs with what is right by the norm of the difference,
/// relative to that of what is right.
fn check(what: &str, plan: &Plan, inputs: &[&[u8]], right: &[(&[f64], f64)]) -> Vec<Vec<u8>> {
    let emulation = Emulation::shared();
    let found = emulation.run(plan, inputs, Order::Forwards);
    assert_eq!(found, emulation.run(plan, inputs, Order::Backwards), "{what}: the order of the threads shows");
    assert_eq!(found.len(), right.len());
    for ((buffer, bytes), (right, allowed)) in plan.outputs().zip(&found).zip(right) {
        let found = decode(buffer.kind, bytes);
        assert_eq!(found.len(), right.len(), "{what}, {}", buffer.name);
        let difference: f64 = found.iter().zip(*right).map(|(a, b)| (a - b).powi(2)).sum();
        // Values below a thousandth count as that.
        let size: f64 = 1e-6 * right.len() as f64 + right.iter().map(|b| b * b).sum::<f64>();
        let error = (difference / size).sqrt();
        assert!(error <= *allowed, "{what}, {}: error {error:.1e}, allowed {allowed:.0e}", buffer.name);
    }
    found
}

fn decode(kind: Kind, bytes: &[u8]) -> Vec<f64> {
    match kind {
        Kind::Bf16 => bytes.as_chunks().0.iter().map(|bytes| of_bf16(u16::from_le_bytes(*bytes))).collect(),
        _ => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect(),
    }
}

fn of_bf16(bits: u16) -> f64 {
    f32::from_bits(u32::from(bits) << 16).into()
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

/// Values, and the bytes a buffer has for them.
struct Values {
    values: Vec<f64>,
    bytes: Vec<u8>,
}

impl Values {
    /// The bytes of bf16 rows of `width`, with NaN between them.
    fn padded(&self, width: usize, padding: usize) -> Vec<u8> {
        let rows = self.bytes.chunks(2 * width).map(<[u8]>::to_vec);
        rows.collect::<Vec<_>>().join(&vec![0xff; 2 * padding][..])
    }
}

/// A fixed generator: the same numbers everywhere.
struct Numbers(u64);

impl Numbers {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self, scale: f64, shift: f64) -> f32 {
        let radius = (-2.0 * (self.uniform() + 1e-300).ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos() * scale + shift) as f32
    }

    fn bf16(&mut self, count: usize, scale: f64, shift: f64) -> Values {
        let round = |value: f32| ((value.to_bits() + 0x7fff + (value.to_bits() >> 16 & 1)) >> 16) as u16;
        let bits: Vec<u16> = (0..count).map(|_| round(self.normal(scale, shift))).collect();
        Values {
            values: bits.iter().map(|bits| of_bf16(*bits)).collect(),
            bytes: bits.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
        }
    }

    fn f32(&mut self, count: usize, scale: f64, shift: f64) -> Values {
        let values: Vec<f32> = (0..count).map(|_| self.normal(scale, shift)).collect();
        Values {
            values: values.iter().map(|value| f64::from(*value)).collect(),
            bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        }
    }
}
