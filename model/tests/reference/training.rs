//! The loss, every parameter's gradient, and weights after steps of AdamW.

use crate::case::{OpenCase, list};
use crate::fixtures::support::numbers::relative_to_peak;
use crate::report::{FORWARD, GRADIENT, Report};
use ballast_model::adamw::{AdamW, AdamWSettings, Group};
use ballast_model::noise_scheduler::NoiseScheduler;
use ballast_model::objective::{Loss, weighted_loss};
use ballast_model::{MicroBatch, Trainable};
use burn::tensor::Tensor;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Of a parameter's weights, in the L2 norm: they move by 1e-4 and more.
const WEIGHTS: f64 = 1e-3;
/// Of all updates, in the L2 norm: a gradient near AdamW's ε may turn its element's update round, and few are.
const UPDATES: f64 = 1e-2;
/// Elements whose first update is off by more than a ten-thousandth of the learning rate and four roundings.
const STRAYS: f64 = 1e-2;

/// Losses at the starting weights: min-SNR weighting, zero terminal SNR.
pub(crate) fn weighted(case: &OpenCase, report: &mut Report) {
    let json = &case.numbers.json;
    let (trainable, _) = start(case);
    let minsnr = &json["train.minsnr"];
    let loss = loss(case, &trainable, &case.scheduler(&json!({})), 0, list(&minsnr["weights"]));
    report.note_number("losses", FORWARD, "train.minsnr loss", scalar(&loss), number(&minsnr["loss"]));
    let gradient = trainable.gradient(loss.scalar);
    let expected = number(&minsnr["grad_norm_unet"]);
    report.note_number("gradient norms", GRADIENT, "train.minsnr unet", norm(&trainable, &gradient, "unet."), expected);
    let name = "train.minsnr.grad.unet.conv_in.weight";
    let error = case.numbers.error_of(name, &part(&trainable, &gradient, "unet.conv_in.weight"));
    report.note("gradients", GRADIENT, name, error);

    if let Some(zsnr) = json.get("train.zsnr") {
        let scheduler = case.scheduler(&json!({"rescale_betas_zero_snr": true}));
        let loss = self::loss(case, &trainable, &scheduler, 0, list(&case.parity["loss_weights"]));
        report.note_number("losses", FORWARD, "train.zsnr loss", scalar(&loss), number(&zsnr["loss"]));
        let per_sample: Vec<f64> = list(&zsnr["per_sample"]);
        report.note("losses", FORWARD, "train.zsnr per sample", relative_to_peak(&host(loss.per_sample), &per_sample));
    }
}

/// As many AdamW steps as there are batches.
pub(crate) fn steps(case: &OpenCase, report: &mut Report) {
    let train = &case.numbers.json["train"];
    let (mut trainable, mut optimizer) = start(case);
    let initial = trainable.params();
    let mut params = initial.clone();
    let steps: Vec<Value> = list(&train["steps"]);
    for (index, step) in steps.iter().enumerate() {
        let weights = list(&case.parity["loss_weights"]);
        let loss = loss(case, &trainable, &case.scheduler(&json!({})), index, weights);
        let name = format!("step {}", index + 1);
        let per_sample: Vec<f64> = list(&step["per_sample_mse"]);
        report.note("losses", FORWARD, &name, relative_to_peak(&host(loss.per_sample.clone()), &per_sample));
        report.note_number("losses", FORWARD, &name, scalar(&loss), number(&step["loss"]));
        let gradient = trainable.gradient(loss.scalar);
        for (key, prefix) in [("total", ""), ("unet", "unet."), ("te0", "text_encoder.")] {
            let expected = number(&step[format!("grad_norm_{key}")]);
            let actual = norm(&trainable, &gradient, prefix);
            report.note_number("gradient norms", GRADIENT, &format!("{name} {key}"), actual, expected);
        }
        if index == 0 {
            gradients(case, &trainable, &gradient, report);
        }
        let groups = [Group { range: 0..params.len(), lr: number(&train["adamw"]["lr"]) }];
        optimizer.step(&mut params, &gradient, index as u64 + 1, &groups);
        trainable.set_params(&params);
        if index == 0 || index + 1 == steps.len() {
            after(case, &trainable, &initial, index + 1, report);
        }
    }
}

fn gradients(case: &OpenCase, trainable: &Trainable, gradient: &[f32], report: &mut Report) {
    let zero = exact_zeros(case);
    for entry in &trainable.layout().entries {
        let theirs = theirs(&entry.path);
        let name = format!("train.grad.{theirs}");
        let error = case.numbers.error_of(&name, &part(trainable, gradient, &entry.path));
        if !zero.contains(&theirs) {
            report.note("gradients", GRADIENT, &name, error);
        }
    }
}

/// Compares the weights themselves, and how far they have moved.
fn after(case: &OpenCase, trainable: &Trainable, initial: &[f32], step: usize, report: &mut Report) {
    let zero = exact_zeros(case);
    let lr = number(&case.numbers.json["train"]["adamw"]["lr"]);
    let params = trainable.params();
    let (mut off, mut moved) = (0.0, 0.0);
    let (mut strays, mut elements) = (0, 0);
    for entry in &trainable.layout().entries {
        let theirs = theirs(&entry.path);
        let name = format!("train.after{step}.{theirs}");
        let (_, expected) = case.numbers.values(&name);
        if zero.contains(&theirs) {
            continue;
        }
        let actual = part(trainable, &params, &entry.path);
        let (mut difference, mut size) = (0.0, 0.0);
        for ((actual, expected), before) in actual.iter().zip(&expected).zip(&initial[entry.offset..]) {
            difference += (actual - expected).powi(2);
            size += expected.powi(2);
            moved += (expected - f64::from(*before)).powi(2);
            let roundings = 4.0 * f64::from(f32::EPSILON) * expected.abs();
            strays += usize::from((actual - expected).abs() > 1e-4 * lr + roundings);
        }
        elements += entry.len;
        off += difference;
        report.note("weights after AdamW", WEIGHTS, &name, (difference / size).sqrt());
    }
    report.note("updates by AdamW", UPDATES, &format!("train.after{step}"), (off / moved).sqrt());
    if step == 1 {
        let share = strays as f64 / elements as f64;
        report.note("stray updates", STRAYS, &format!("{strays} of {elements} elements"), share);
    }
}

fn start(case: &OpenCase) -> (Trainable, AdamW) {
    let trainable = Trainable::new(case.model.unet.clone(), case.model.text_encoder.clone(), true);
    let adamw = &case.numbers.json["train"]["adamw"];
    let settings = AdamWSettings {
        beta1: number(&adamw["betas"][0]),
        beta2: number(&adamw["betas"][1]),
        eps: number(&adamw["eps"]),
        weight_decay: number(&adamw["weight_decay"]),
    };
    let optimizer = AdamW::new(settings, trainable.layout().total);
    (trainable, optimizer)
}

fn loss(case: &OpenCase, trainable: &Trainable, scheduler: &Value, step: usize, weights: Vec<f32>) -> Loss {
    let numbers = &case.numbers;
    let prompts: Vec<usize> = list(&numbers.json["train"]["steps"][step]["prompt_index"]);
    let at_step = |name: &str| numbers.tensor::<5>(name).narrow(0, step, 1).squeeze_dim::<4>(0);
    let normaliser = weights.len() as f32;
    let batch = MicroBatch {
        latents: at_step("in.train.latents"),
        noise: at_step("in.train.noise"),
        timesteps: list(&case.parity["train_timesteps"][step]),
        token_ids: case.token_ids(&prompts),
        weights,
    };
    let scheduler = NoiseScheduler::from_json(scheduler).expect("a scheduler of the case");
    weighted_loss(&trainable.unet, &trainable.text_encoder, &scheduler, batch, normaliser)
}

/// Parameters whose true gradient is 0: AdamW makes a step of full size of the rounding noise.
fn exact_zeros(case: &OpenCase) -> BTreeSet<String> {
    list::<String>(&case.numbers.json["train.exact_zero_grad"]).into_iter().collect()
}

fn theirs(path: &str) -> String {
    path.strip_prefix("text_encoder.").map_or_else(|| path.to_owned(), |key| format!("te0.{key}"))
}

fn part(trainable: &Trainable, flat: &[f32], path: &str) -> Vec<f64> {
    let entry = trainable.layout().entries.iter().find(|entry| entry.path == path).expect("a parameter");
    flat[entry.offset..entry.offset + entry.len].iter().map(|value| f64::from(*value)).collect()
}

fn norm(trainable: &Trainable, flat: &[f32], prefix: &str) -> f64 {
    let entries = trainable.layout().entries.iter().filter(|entry| entry.path.starts_with(prefix));
    let squares =
        entries.flat_map(|entry| &flat[entry.offset..entry.offset + entry.len]).map(|v| f64::from(*v).powi(2));
    squares.sum::<f64>().sqrt()
}

fn scalar(loss: &Loss) -> f64 {
    f64::from(loss.scalar.clone().without_autodiff().into_scalar::<f32>())
}

fn host(values: Tensor<1>) -> Vec<f64> {
    let values: Vec<f32> = values.without_autodiff().try_into_vec_as().expect("losses are readable");
    values.into_iter().map(f64::from).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}
