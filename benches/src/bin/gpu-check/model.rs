//! Whole models beside the numbers that diffusers gave (`model/tests/fixtures`, in f64), and beside the CPU.
//!
//! The stored numbers are of models in miniature, with every kind of layer and none of the widths of heads that there are
//! kernels for. So a model of full size is compared as well, with the CPU, at latents that its backward pass can do in seconds.

use crate::support::{Reference, draw, input};
use anyhow::Context as _;
use ballast_model::{Compute, Device, MicroBatch, Preset, StableDiffusion, Trainable, cpu_device, init_model, tensor};
use burn::module::Module as _;
use serde_json::{Value, json};

use crate::device::Formats;

/// Rounding adds up over the depth of a model: in f32; in TF32, which a GPU has for f32 inside products; in bf16, where
/// PyTorch's autocast is as far off (`model/tests/bf16.rs`).
const LIMIT_F32: f64 = 2e-4;
const LIMIT_TF32: f64 = 2e-2;
const LIMIT_BF16: f64 = 1e-1;
/// The worst of a model's parameters, in bf16: through burn's operations on the CPU 0.14 and 0.19.
const LIMIT_WORST_BF16: f64 = 4e-1;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model that is compared with the CPU, by the name of its preset
    #[arg(long, default_value = "sd15")]
    model: String,
    /// Number formats to compare in
    #[arg(long, value_enum, num_args = 1.., default_values = ["bf16", "f32"])]
    format: Vec<Formats>,
    /// Height and width of its latents
    #[arg(long, num_args = 2, default_values_t = [16, 16])]
    hw: Vec<usize>,
}

/// Whether every comparison is within its limit.
pub(crate) fn run(args: &Args, device: &Device) -> anyhow::Result<bool> {
    let preset = Preset::from_name(&args.model).with_context(|| format!("`{}` is no preset", args.model))?;
    let hw = [args.hw[0], args.hw[1]];
    let full = init_model(preset, 1);
    let expected = of_model(&full, hw, &cpu_device(), Compute::F32, false);
    let mut good = true;
    for (format, recomputation) in args.format.iter().flat_map(|format| [(format, false), (format, true)]) {
        let compute = format.compute();
        let limit = match compute {
            Compute::Bf16 => LIMIT_BF16,
            Compute::F32 if *device == cpu_device() => LIMIT_F32,
            Compute::F32 => LIMIT_TF32,
        };
        let limit_worst = if compute == Compute::Bf16 { LIMIT_WORST_BF16 } else { limit };
        let mut say = |name: &str, part: &str, difference: f64, limit: f64| {
            let is_good = difference <= limit; // not so where it is no number
            println!(
                "{}",
                json!({"model": name, "part": part, "format": format!("{compute:?}"), "recomputed": recomputation,
                       "difference": difference, "limit": limit, "good": is_good})
            );
            good &= is_good;
        };
        for name in ["sd1", "sd2"] {
            let reference = Reference::load(name);
            let result = of_fixture(&reference, device, compute, recomputation)?;
            say(name, "losses beside diffusers", losses_off(&reference, &result), limit);
            say(name, "gradient beside diffusers", gradient_off(&reference, &result)?, limit_worst);
        }
        let actual = of_model(&full, hw, device, compute, recomputation);
        say(&args.model, "losses beside the CPU", relative(&actual.losses, &expected.losses), limit);
        say(&args.model, "gradient beside the CPU", relative(&actual.gradient, &expected.gradient), limit);
    }
    Ok(good)
}

/// What a step computes.
struct Computed {
    trainable: Trainable,
    /// `[batch]`
    losses: Vec<f32>,
    /// In the order of the layout.
    gradient: Vec<f32>,
}

fn computed(model: StableDiffusion, batch: MicroBatch, normaliser: f32, recomputation: bool) -> Computed {
    let StableDiffusion { unet, text_encoder, noise_scheduler, .. } = model;
    let trainable = Trainable::new(unet, text_encoder, true);
    let (losses, gradient) = trainable.loss_and_gradient(&noise_scheduler, batch, normaliser, recomputation);
    let losses = losses.without_autodiff().try_into_vec_as::<f32>().expect("losses can be read");
    Computed { trainable, losses, gradient }
}

fn of_fixture(
    reference: &Reference,
    device: &Device,
    compute: Compute,
    recomputation: bool,
) -> anyhow::Result<Computed> {
    let mut model = reference.model_on(device);
    model.compute_in(compute);
    let train = &reference.json["train"];
    let batch = MicroBatch {
        latents: input("train.latents", [4, 4, 8, 8]).to_device(device),
        noise: input("train.noise", [4, 4, 8, 8]).to_device(device),
        timesteps: serde_json::from_value(train["timesteps"].clone())?,
        token_ids: reference.token_ids(),
        weights: serde_json::from_value(train["weights"].clone())?,
    };
    let normaliser = train["normaliser"].as_f64().context("the fixture has a normaliser")? as f32;
    Ok(computed(model, batch, normaliser, recomputation))
}

fn losses_off(reference: &Reference, computed: &Computed) -> f64 {
    relative(&computed.losses, &reference.tensor("train.per_sample").1)
}

/// The largest difference in norm or direction of a parameter's gradient, relative to its norm; gradients that are 0 but for
/// rounding are compared with the largest.
fn gradient_off(reference: &Reference, computed: &Computed) -> anyhow::Result<f64> {
    let names: Vec<String> =
        serde_json::from_value::<Value>(reference.json["grad.names"].clone()).and_then(serde_json::from_value)?;
    let (_, rows) = reference.tensor("grad.summary");
    let largest = rows.chunks(3).map(|row| f64::from(row[0])).fold(0.0, f64::max);
    let mut worst = 0.0f64;
    for (name, row) in names.iter().zip(rows.chunks(3)) {
        let entry = computed.trainable.layout().entries.iter().find(|entry| entry.path == *name);
        let entry = entry.with_context(|| format!("the model has no {name}"))?;
        let values = &computed.gradient[entry.offset..entry.offset + entry.len];
        let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let direction = draw(&format!("direction.{name}"), entry.len);
        let projection: f64 = values.iter().zip(direction).map(|(v, d)| f64::from(*v) * f64::from(d)).sum();
        let scale = f64::from(row[0]).max(1e-2 * largest);
        for (actual, expected) in [(norm, row[0]), (projection, row[1])] {
            let off = (actual - f64::from(expected)).abs() / scale;
            worst = if off > worst || off.is_nan() { off } else { worst };
        }
    }
    Ok(worst)
}

fn of_model(
    model: &StableDiffusion,
    [height, width]: [usize; 2],
    device: &Device,
    compute: Compute,
    recomputation: bool,
) -> Computed {
    let mut model = model.clone();
    model.unet = model.unet.to_device(device);
    model.text_encoder = model.text_encoder.to_device(device);
    model.compute_in(compute);
    let shape = [2, 4, height, width];
    let normal = |name: &str| {
        let values = ballast_model::standard_normal(1, "gpu-check", name, shape.iter().product());
        tensor(values, shape, device)
    };
    let batch = MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![120, 801],
        token_ids: vec![model.tokenizer.encode("a lighthouse at night"), model.tokenizer.encode("")],
        weights: vec![1.0, 0.5],
    };
    computed(model, batch, 2.0, recomputation)
}

/// `‖actual − expected‖ / ‖expected‖`
fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let off: f64 = actual.iter().zip(expected).map(|(a, e)| (f64::from(*a) - f64::from(*e)).powi(2)).sum();
    let size: f64 = expected.iter().map(|e| f64::from(*e).powi(2)).sum();
    (off / size.max(f64::MIN_POSITIVE)).sqrt()
}
