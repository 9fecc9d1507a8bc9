//! The model's operations and a training step in bf16 with the CUDA kernels under them, emulated on the CPU: the same
//! plans, autodiff rules and shapes as on a GPU, rows padded as CubeCL pads them there.
//!
//! Inputs are bf16 numbers, so that what is compared is what the operations do, not how their inputs were rounded.

use ballast_model::emulation::{Step, attention, geglu, group_norm, layer_norm, step, unet, with_kernels};
use ballast_model::unet::{BlockType, UNetConfig};
use ballast_model::{Compute, cpu_device, standard_normal, tensor};
use burn::tensor::{DType, Tensor};

/// bf16 keeps 8 bits: rounding a result costs about 2e-3 of its norm.
const ROUNDED: f64 = 4e-3;
/// Weights and the gradients of scores are rounded on the way to gradients of queries, keys and values.
const TWICE_ROUNDED: f64 = 8e-3;
/// Gradients of a norm's weight and bias stay f32, but for the rounded gradient that they are sums of.
const SUMMED: f64 = 4e-3;

#[test]
fn attention_of_every_width_agrees_with_the_formula() {
    for (width, heads, rows, keys, causal) in [
        (40, 2, 100, 100, false),
        (40, 1, 70, 77, false), // text
        (64, 2, 77, 77, true),  // the text encoder
        (64, 1, 130, 130, false),
        (80, 2, 65, 77, false),
        (80, 1, 1, 1, false),
        (160, 1, 64, 77, false),
        (160, 2, 33, 33, false),
    ] {
        let channels = heads * width;
        let launched = agree(
            &format!("attention of {heads} x {width}, {rows} rows, {keys} keys, causal: {causal}"),
            [vec![2, rows, channels], vec![2, keys, channels], vec![2, keys, channels]],
            |inputs, dtype| attention(inputs.map(|x| shaped(x).cast(dtype)), heads, causal).reshape([-1]),
            &[ROUNDED, TWICE_ROUNDED, TWICE_ROUNDED, TWICE_ROUNDED],
        );
        let backward = if width == 160 { 2 } else { 1 };
        assert_eq!(launched, 3 + backward);
    }
}

#[test]
fn group_norm_agrees_with_the_formula() {
    for (pixels, channels, groups, silu) in [(70, 320, 32, true), (33, 64, 32, false), (1, 640, 32, true)] {
        let launched = agree(
            &format!("group norm of {pixels} x {channels}, SiLU: {silu}"),
            [vec![2, pixels, channels], vec![channels], vec![channels]],
            |[x, weight, bias], dtype| {
                group_norm(shaped(x).cast(dtype), [weight, bias].map(shaped), groups, silu).reshape([-1])
            },
            &[ROUNDED, ROUNDED, SUMMED, SUMMED],
        );
        assert_eq!(launched, 7);
    }
}

#[test]
fn layer_norm_agrees_with_the_formula() {
    for (rows, width) in [(77, 320), (5, 34), (130, 1280)] {
        let launched = agree(
            &format!("layer norm of {rows} x {width}"),
            [vec![2, rows, width], vec![width], vec![width]],
            |[x, weight, bias], dtype| layer_norm(shaped(x).cast(dtype), [weight, bias].map(shaped)).reshape([-1]),
            &[ROUNDED, ROUNDED, SUMMED, SUMMED],
        );
        assert_eq!(launched, 3);
    }
}

#[test]
fn geglu_agrees_with_the_formula() {
    for (rows, width) in [(77, 100), (3, 1280), (1, 2)] {
        let launched = agree(
            &format!("GEGLU of {rows} x {width}"),
            [vec![2, rows, 2 * width]],
            |[x], dtype| geglu(shaped(x).cast(dtype)).reshape([-1]),
            &[ROUNDED, ROUNDED],
        );
        assert_eq!(launched, 2);
    }
}

#[test]
fn shapes_without_a_kernel_are_computed_by_other_operations() {
    let whole = [vec![1, 9, 24], vec![1, 9, 24], vec![1, 9, 24]];
    let formula = |inputs: [Leaf; 3], dtype| attention(inputs.map(|x| shaped(x).cast(dtype)), 2, false).reshape([-1]);
    assert_eq!(agree("heads of 12", whole, formula, &[1e-2, 2e-2, 2e-2, 2e-2]), 0);
    let odd = |[x]: [Leaf; 1], dtype| geglu(shaped(x).cast(dtype)).reshape([-1]);
    assert_eq!(agree("an odd width", [vec![1, 4, 6]], odd, &[2e-2, 2e-2]), 0);
}

#[test]
fn a_training_step_agrees_with_f32_as_well_as_burns_operations_do() {
    let config = UNetConfig {
        block_out_channels: vec![64, 128],
        layers_per_block: 1,
        down_block_types: vec![BlockType::CrossAttention; 2],
        up_block_types: vec![BlockType::CrossAttention; 2],
        attention_head_dim: serde_json::from_str("[1, 2]").unwrap(),
        cross_attention_dim: 32,
        ..UNetConfig::default()
    };
    let unet = unet(&config);
    let normal = |name: &str, count| bf16_numbers(standard_normal(2, "step", name, count));
    let latents = |name| tensor(normal(name, 2 * 4 * 8 * 6), [2, 4, 8, 6], &cpu_device());
    let run = |compute| {
        let text = tensor(normal("text", 2 * 77 * 32), [2, 77, 32], &cpu_device());
        step(&unet, latents("latents"), latents("target"), text, compute)
    };
    let exact = run(Compute::F32);
    let burns = run(Compute::Bf16);
    let (ours, launched) = with_kernels(|| run(Compute::Bf16));

    for (kernel, least) in [
        ("attention_forward_64", 8),
        ("attention_backward_query_64", 8),
        ("attention_backward_key_64", 8),
        ("group_norm_apply", 12),
        ("group_norm_backward_apply", 12),
        ("layer_norm_backward", 12),
        ("geglu_backward", 4),
    ] {
        let found = launched.get(kernel).copied().unwrap_or_default();
        assert!(found >= least, "{kernel} ran {found} times, of {least} at least: {launched:?}");
    }
    let [by_burn, by_kernels, apart] = [distance(&burns, &exact), distance(&ours, &exact), distance(&ours, &burns)];
    println!("from f32: burn's operations {by_burn:.2e}, kernels {by_kernels:.2e}; from each other {apart:.2e}");
    println!("loss: f32 {}, burn's operations {}, kernels {}", exact.loss, burns.loss, ours.loss);
    assert!(by_burn < 0.05, "bf16 by burn's operations: {by_burn}");
    assert!(by_kernels < 1.2 * by_burn, "bf16 by kernels is {by_kernels} off, by burn's operations {by_burn}");
    assert!((ours.loss / exact.loss - 1.0).abs() < 0.01, "{} instead of {}", ours.loss, exact.loss);
}

/// The norm of the difference of all gradients, relative to that of `right`.
fn distance(found: &Step, right: &Step) -> f64 {
    let values = |step: &Step| step.gradients.values().flatten().copied().collect::<Vec<f32>>();
    relative(&values(found), &values(right))
}

fn relative(found: &[f32], right: &[f32]) -> f64 {
    assert_eq!(found.len(), right.len());
    let square = |x: f32| f64::from(x).powi(2);
    let difference: f64 = found.iter().zip(right).map(|(a, b)| square(a - b)).sum();
    // Values below a thousandth count as that.
    let size = 1e-6 * right.len() as f64 + right.iter().map(|b| square(*b)).sum::<f64>();
    (difference / size).sqrt()
}

/// An input of any rank.
#[derive(Clone)]
struct Leaf {
    flat: Tensor<1>,
    shape: Vec<usize>,
}

fn shaped<const D: usize>(leaf: Leaf) -> Tensor<D> {
    let shape: [usize; D] = leaf.shape.try_into().expect("the rank of the shape");
    leaf.flat.reshape(shape)
}

fn bf16_numbers(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|value| half::bf16::from_f32(value).to_f32()).collect()
}

/// Compares the result and the gradients of all inputs, computed by kernels in bf16, with f32. Returns how many kernels
/// were launched.
fn agree<const N: usize>(
    what: &str,
    shapes: [Vec<usize>; N],
    operation: impl Fn([Leaf; N], DType) -> Tensor<1>,
    allowed: &[f64],
) -> usize {
    let evaluate = |dtype| {
        let leaves: [Leaf; N] = std::array::from_fn(|i| {
            let values = bf16_numbers(standard_normal(1, "emulation", &i.to_string(), shapes[i].iter().product()));
            let flat = Tensor::from_floats(&values[..], &cpu_device()).autodiff().require_grad();
            Leaf { flat, shape: shapes[i].clone() }
        });
        let result = operation(leaves.clone(), dtype).cast(DType::F32);
        let direction = bf16_numbers(standard_normal(1, "emulation", "direction", result.dims()[0]));
        let direction = Tensor::<1>::from_floats(&direction[..], &cpu_device());
        let gradients = (result.clone() * direction).sum().backward();
        let mut values = vec![result.without_autodiff().try_into_vec_as::<f32>().unwrap()];
        values.extend(leaves.map(|leaf| leaf.flat.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap()));
        values
    };
    let right = evaluate(DType::F32);
    let (found, launched) = with_kernels(|| evaluate(DType::BF16));
    for (i, ((found, right), allowed)) in found.iter().zip(&right).zip(allowed).enumerate() {
        let error = relative(found, right);
        assert!(error <= *allowed, "{what}, number {i} (0: result, then gradients): {error:.1e} of {allowed:.0e}");
    }
    launched.values().sum()
}
