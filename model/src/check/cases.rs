//! The operations with the sizes that Stable Diffusion has them in.

use crate::kernels::conv::Geometry;
use crate::ops::{AttentionShape, GroupNormShape, attention, conv2d, geglu, group_norm, layer_norm, linear, upsample};
use burn::tensor::Tensor;

/// How large the operations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Those of SD 1.5 and 2.1 at latents of 64x64, two samples: seconds on a machine with a GPU.
    Real,
    /// The same kinds with few rows, for tests on a CPU.
    Small,
}

/// One of the tensors that go in.
pub(super) struct Input {
    pub(super) name: &'static str,
    pub(super) shape: Vec<usize>,
    /// Whether it is a norm's weight or bias.
    pub(super) stays_f32: bool,
}

type Operation = dyn Fn(&[Tensor<1>]) -> Tensor<1>;

/// An operation on flat tensors, which it gives their shapes.
pub(super) struct Case {
    pub(super) name: String,
    pub(super) inputs: Vec<Input>,
    pub(super) run: Box<Operation>,
}

impl Case {
    fn new(
        name: String,
        inputs: Vec<(&'static str, Vec<usize>)>,
        run: impl Fn(&[Tensor<1>]) -> Tensor<1> + 'static,
    ) -> Self {
        let input = |(name, shape)| Input { name, shape, stays_f32: false };
        Self { name, inputs: inputs.into_iter().map(input).collect(), run: Box::new(run) }
    }

    /// The inputs from the second on are kept in f32.
    fn of_norm(mut self) -> Self {
        self.inputs[1..].iter_mut().for_each(|input| input.stays_f32 = true);
        self
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    tensor.reshape([-1])
}

/// Every operation, the kernels' widths of heads among them.
pub(super) fn cases(sizes: Sizes) -> Vec<Case> {
    let rows = |real: usize, small: usize| if sizes == Sizes::Real { real } else { small };
    let mut cases = vec![
        attention_of(2, rows(4096, 130), rows(4096, 130), 8, 40, false),
        attention_of(2, rows(4096, 70), 77, 8, 40, false),
        attention_of(2, rows(4096, 130), rows(4096, 130), 5, 64, false),
        attention_of(2, rows(1024, 70), rows(1024, 70), 8, 80, false),
        attention_of(2, rows(256, 66), rows(256, 66), 8, 160, false),
        attention_of(2, 64, 77, 8, 160, false),
        // A picture of 5:7, whose rows fill no tile, and the text encoders.
        attention_of(1, 63, 77, 8, 80, false),
        attention_of(2, 77, 77, rows(12, 3), 64, true),
        layer_norm_of(2, rows(4096, 130), 320),
        layer_norm_of(2, 77, rows(1280, 192)),
        geglu_of(2, rows(4096, 70), 1280),
        geglu_of(2, rows(64, 9), rows(5120, 640)),
        linear_of(rows(8192, 130), 320, rows(2560, 320), true),
        linear_of(154, rows(768, 96), 320, false),
        upsample_of(rows(640, 32), [16, 16], [32, 32]),
        upsample_of(rows(1280, 32), [5, 7], [9, 14]),
    ];
    for silu in [false, true] {
        cases.push(group_norm_of(2, rows(4096, 100), 320, silu));
        cases.push(group_norm_of(2, rows(64, 33), rows(2560, 640), silu));
    }
    let same = Geometry { kernel: 3, stride: 1, before: 1, after: 1 };
    let halving = Geometry { stride: 2, ..same };
    let pointwise = Geometry { kernel: 1, stride: 1, before: 0, after: 0 };
    cases.extend([
        conv_of([2, rows(64, 12), rows(64, 9)], 4, 320, same),
        conv_of([2, rows(64, 12), rows(64, 9)], rows(320, 64), rows(320, 64), same),
        conv_of([2, rows(16, 5), rows(16, 7)], rows(1280, 96), rows(1280, 64), same),
        conv_of([2, rows(64, 12), rows(64, 9)], rows(320, 64), rows(320, 64), halving),
        conv_of([2, rows(32, 6), rows(32, 5)], rows(960, 96), rows(640, 64), pointwise),
        conv_of([2, rows(64, 12), rows(64, 9)], rows(320, 64), 4, same),
    ]);
    cases
}

fn attention_of(batch: usize, rows: usize, keys: usize, heads: usize, width: usize, causal: bool) -> Case {
    let channels = heads * width;
    let shape = AttentionShape { heads, causal };
    let order = if causal { ", causal" } else { "" };
    let (query, key) = ([batch, rows, channels], [batch, keys, channels]);
    Case::new(
        format!("attention {batch}x{rows}x{keys}, {heads} heads of {width}{order}"),
        vec![("query", query.to_vec()), ("key", key.to_vec()), ("value", key.to_vec())],
        move |inputs| {
            let [q, k, v] = [(0, query), (1, key), (2, key)].map(|(i, dims)| inputs[i].clone().reshape(dims));
            flat(attention(q, k, v, shape))
        },
    )
}

fn group_norm_of(batch: usize, pixels: usize, channels: usize, silu: bool) -> Case {
    let dims = [batch, pixels, channels];
    let shape = GroupNormShape { groups: 32, eps: 1e-5, silu };
    let then = if silu { " and SiLU" } else { "" };
    Case::new(
        format!("group norm{then} {batch}x{pixels}x{channels}"),
        vec![("x", dims.to_vec()), ("scale", vec![channels]), ("bias", vec![channels])],
        move |inputs| flat(group_norm(inputs[0].clone().reshape(dims), inputs[1].clone(), inputs[2].clone(), shape)),
    )
    .of_norm()
}

fn layer_norm_of(batch: usize, rows: usize, width: usize) -> Case {
    let dims = [batch, rows, width];
    Case::new(
        format!("layer norm {batch}x{rows}x{width}"),
        vec![("x", dims.to_vec()), ("scale", vec![width]), ("bias", vec![width])],
        move |inputs| flat(layer_norm(inputs[0].clone().reshape(dims), inputs[1].clone(), inputs[2].clone(), 1e-5)),
    )
    .of_norm()
}

fn geglu_of(batch: usize, rows: usize, width: usize) -> Case {
    let dims = [batch, rows, 2 * width];
    Case::new(format!("GEGLU {batch}x{rows}x{width}"), vec![("x", dims.to_vec())], move |inputs| {
        flat(geglu(inputs[0].clone().reshape(dims)))
    })
}

fn linear_of(rows: usize, inputs_width: usize, outputs: usize, bias: bool) -> Case {
    let mut inputs = vec![("x", vec![rows, inputs_width]), ("weight", vec![outputs, inputs_width])];
    inputs.extend(bias.then(|| ("bias", vec![outputs])));
    Case::new(format!("linear {rows}x{inputs_width} to {outputs}"), inputs, move |inputs| {
        let x = inputs[0].clone().reshape([rows, inputs_width]);
        flat(linear(x, inputs[1].clone().reshape([outputs, inputs_width]), inputs.get(2).cloned()))
    })
}

fn conv_of([batch, height, width]: [usize; 3], channels: usize, outputs: usize, geometry: Geometry) -> Case {
    let Geometry { kernel, stride, .. } = geometry;
    let (x, weight) = ([batch, height, width, channels], [outputs, channels, kernel, kernel]);
    Case::new(
        format!("convolution {kernel}x{kernel}, stride {stride}, {batch}x{height}x{width}x{channels} to {outputs}"),
        vec![("x", x.to_vec()), ("weight", weight.to_vec()), ("bias", vec![outputs])],
        move |inputs| {
            let bias = inputs[2].clone().reshape([1, outputs]);
            flat(conv2d(inputs[0].clone().reshape(x), inputs[1].clone().reshape(weight), bias, geometry))
        },
    )
}

fn upsample_of(channels: usize, from: [usize; 2], to: [usize; 2]) -> Case {
    let dims = [2, from[0], from[1], channels];
    Case::new(
        format!("upsampling {}x{} to {}x{}, {channels} channels", from[0], from[1], to[0], to[1]),
        vec![("x", dims.to_vec())],
        move |inputs| flat(upsample(inputs[0].clone().reshape(dims), to)),
    )
}
