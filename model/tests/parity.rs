//! Block by block against diffusers: see `fixtures/make_parity.py` for how the numbers were made (in f64). The same
//! for models of one's own is `reference`.
//!
//! Tolerances are relative to the largest element. This crate computes in f32, whose noise is about 2e-6 of the peak
//! for a forward pass through these models and 1e-5 for a gradient.

pub mod support;

use ballast_model::noise_scheduler::NoiseScheduler;
use ballast_model::objective::weighted_loss;
use ballast_model::sampler::{Sampler, denoise};
use ballast_model::{MicroBatch, SampleRequest, SamplerKind, Trainable, cpu_device};
use serde_json::json;
use support::{Reference, draw, input};

const FORWARD: f64 = 2e-5;
const TABLE: f64 = 1e-6;
const GRADIENT: f64 = 2e-4;

fn each(check: impl Fn(&Reference)) {
    for name in ["sd1", "sd2"] {
        println!("{name}");
        check(&Reference::load(name));
    }
}

#[test]
fn token_ids() {
    each(|reference| {
        let model = reference.model();
        for (prompt, ids) in reference.prompts().iter().zip(reference.token_ids()) {
            assert_eq!(model.tokenizer.encode(prompt), ids, "{prompt}");
        }
    });
}

#[test]
fn text_states() {
    each(|reference| {
        let states = reference.model().text_encoder.encode(&reference.token_ids(), &cpu_device());
        reference.assert_close("text.states", states, FORWARD);
    });
}

#[test]
fn autoencoder() {
    each(|reference| {
        let vae = reference.model().vae;
        let factor = vae.factor();
        let posterior = vae.encode(input("vae.image", [1, 3, 4 * factor, 6 * factor]) * 0.5);
        reference.assert_close("vae.mean", posterior.mean, FORWARD);
        reference.assert_close("vae.logvar", posterior.logvar, FORWARD);
        reference.assert_close("vae.decoded", vae.decode(input("vae.latents", [1, 4, 3, 5])), FORWARD);
    });
}

#[test]
fn unet_at_several_sizes_and_timesteps() {
    each(|reference| {
        let model = reference.model();
        let text = model.text_encoder.encode(&reference.token_ids()[..2], &cpu_device());
        for [height, width] in [[8, 8], [5, 7], [6, 11]] {
            for timesteps in [[0.0, 1.0], [250.0, 999.0]] {
                let latents = input(&format!("unet.{height}x{width}"), [2, 4, height, width]);
                let out = model.unet.forward(latents, &timesteps, text.clone());
                reference.assert_close(&format!("unet.{height}x{width}.{}", timesteps[0]), out, FORWARD);
            }
        }
    });
}

#[test]
fn noise_schedules() {
    each(|reference| {
        for (label, zero_snr) in [("plain", false), ("zsnr", true)] {
            let mut config = reference.json["config"]["scheduler"].clone();
            config["rescale_betas_zero_snr"] = json!(zero_snr);
            let scheduler = NoiseScheduler::from_json(&config).unwrap();
            let table: Vec<f32> = scheduler.alphas_cumprod().iter().step_by(37).map(|a| *a as f32).collect();
            let shape = [table.len()];
            reference.assert_close(
                &format!("sched.{label}.alphas_cumprod"),
                ballast_model::tensor(table, shape, &cpu_device()),
                TABLE,
            );
            let (latents, noise) = (input("sched.latents", [3, 4, 2, 2]), input("sched.noise", [3, 4, 2, 2]));
            let timesteps = [0, 500, 999];
            let noisy = scheduler.add_noise(latents.clone(), noise.clone(), &timesteps);
            reference.assert_close(&format!("sched.{label}.noisy"), noisy, FORWARD);
            let velocity = scheduler.velocity(latents, noise, &timesteps);
            reference.assert_close(&format!("sched.{label}.velocity"), velocity, FORWARD);
        }
    });
}

#[test]
fn ddim_trajectories() {
    each(|reference| {
        for (i, case) in reference.json["ddim"].as_array().unwrap().iter().enumerate() {
            let scheduler = NoiseScheduler::from_json(&case["config"]).unwrap();
            let mut sampler = Sampler::new(SamplerKind::Ddim, &scheduler, None, 7).unwrap();
            let timesteps: Vec<u32> = sampler.timesteps().iter().map(|t| *t as u32).collect();
            assert_eq!(json!(timesteps), case["timesteps"], "{case}");
            let mut path = vec![input("ddim.start", [1, 4, 2, 2])];
            for (step, timestep) in timesteps.into_iter().enumerate() {
                let latents = path[step].clone();
                let prediction = (latents.clone() * 0.5).tanh() * (0.5 + f64::from(timestep) / 2000.0);
                path.push(sampler.step(step, prediction, latents, || unreachable!("DDIM adds no noise")));
            }
            reference.assert_close(&format!("ddim.{i}"), burn::tensor::Tensor::cat(path, 0), FORWARD);
        }
    });
}

#[test]
fn guided_sampling() {
    each(|reference| {
        let model = reference.model();
        let prompts = reference.prompts();
        let factor = model.vae.factor();
        let request = SampleRequest {
            prompt: prompts[0].clone(),
            negative_prompt: prompts[2].clone(),
            seed: 0,
            width: 8 * factor,
            height: 6 * factor,
            steps: 5,
            guidance_scale: 7.5,
            ..SampleRequest::default()
        };
        // Guidance multiplies the rounding of five passes.
        let latents = denoise(&model, &request, input("pipe.latents", [1, 4, 6, 8])).unwrap();
        reference.assert_close("pipe.latents", latents, 1e-4);
    });
}

#[test]
fn training_loss_and_every_gradient() {
    each(|reference| {
        let model = reference.model();
        let trainable = Trainable::new(model.unet, model.text_encoder, true);
        let train = &reference.json["train"];
        let batch = MicroBatch {
            latents: input("train.latents", [4, 4, 8, 8]),
            noise: input("train.noise", [4, 4, 8, 8]),
            timesteps: serde_json::from_value(train["timesteps"].clone()).unwrap(),
            token_ids: reference.token_ids(),
            weights: serde_json::from_value(train["weights"].clone()).unwrap(),
        };
        let normaliser = train["normaliser"].as_f64().unwrap() as f32;
        let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, normaliser);
        reference.assert_close("train.per_sample", loss.per_sample, FORWARD);
        let scalar = f64::from(loss.scalar.clone().without_autodiff().into_scalar::<f32>());
        assert!((scalar - train["loss"].as_f64().unwrap()).abs() < 1e-5, "{scalar}");
        check_gradient(reference, &trainable, &trainable.gradient(loss.scalar));
    });
}

fn check_gradient(reference: &Reference, trainable: &Trainable, gradient: &[f32]) {
    let names: Vec<String> = serde_json::from_value(reference.json["grad.names"].clone()).unwrap();
    let (_, rows) = reference.tensor("grad.summary");
    let entries = &trainable.layout().entries;
    assert_eq!(entries.len(), names.len());
    let largest = rows.chunks(3).map(|row| f64::from(row[0])).fold(0.0, f64::max);
    let mut worst = 0.0f64;
    for (name, row) in names.iter().zip(rows.chunks(3)) {
        let entry = entries.iter().find(|e| e.path == *name).unwrap_or_else(|| panic!("no {name}"));
        let values = &gradient[entry.offset..entry.offset + entry.len];
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let direction = draw(&format!("direction.{name}"), entry.len);
        let projection: f64 = values.iter().zip(direction).map(|(v, d)| f64::from(*v) * f64::from(d)).sum();
        // Some gradients are 0 but for rounding (biases of keys): they are compared with the largest.
        let scale = f64::from(row[0]).max(1e-3 * largest);
        for (what, actual, expected) in [
            ("norm", norm, f64::from(row[0])),
            ("projection", projection, f64::from(row[1])),
            ("first", f64::from(values[0]), f64::from(row[2])),
        ] {
            let off = (actual - expected).abs() / scale;
            assert!(off < GRADIENT, "{name}: {what} {actual:e} instead of {expected:e}");
            worst = worst.max(off);
        }
    }
    println!("gradient: {worst:e}");
    let whole = [
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "unet.up_blocks.1.resnets.1.norm1.weight",
        "unet.conv_in.weight",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight",
    ];
    for name in whole {
        let entry = entries.iter().find(|e| e.path == name).unwrap();
        let values = gradient[entry.offset..entry.offset + entry.len].to_vec();
        let (shape, expected) = reference.tensor(&format!("grad.{name}"));
        assert_eq!(entry.shape, shape);
        let peak = expected.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
        let off = values.iter().zip(&expected).map(|(a, e)| (a - e).abs()).fold(0.0f32, f32::max) / peak;
        assert!(f64::from(off) < GRADIENT, "{name}: {off:e}");
    }
}
