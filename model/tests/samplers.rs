//! Noise schedules, samplers and guidance against diffusers: `fixtures/make_samplers.py`.

mod support;

use ballast_model::noise_scheduler::NoiseScheduler;
use ballast_model::sampler::{Guidance, Sampler, SamplerError};
use ballast_model::{SamplerKind, cpu_device, tensor};
use burn::tensor::Tensor;
use serde_json::{Value, json};
use support::analytic::trajectory;
use support::numbers::Numbers;
use support::{fixture_path, input};

/// The tables are rounded as diffusers rounds them.
const TABLE: f64 = 1e-6;
/// diffusers takes its coefficients from f32 tables, ballast in f64.
const TRAJECTORY: f64 = 2e-6;

fn numbers() -> Numbers {
    Numbers::load(&fixture_path("samplers.json"), &fixture_path("samplers.safetensors")).unwrap()
}

fn list(numbers: &Numbers, key: &str) -> Vec<Value> {
    numbers.json[key].as_array().unwrap().clone()
}

#[test]
fn schedules() {
    let numbers = numbers();
    for (i, config) in list(&numbers, "schedules").iter().enumerate() {
        let scheduler = NoiseScheduler::from_json(config).unwrap();
        let snr: Vec<f64> = (0..scheduler.num_train_timesteps()).map(|t| scheduler.snr(t)).collect();
        for (what, table) in [
            ("betas", scheduler.betas().iter().map(|beta| f64::from(*beta)).collect()),
            ("alphas_cumprod", scheduler.alphas_cumprod().to_vec()),
            ("snr", snr),
        ] {
            let error = numbers.error_of(&format!("schedule.{i}.{what}"), &table);
            assert!(error <= TABLE, "{what} of {config}: {error:e}");
        }
    }
}

#[test]
fn trajectories() {
    let numbers = numbers();
    let mut kinds = Vec::new();
    for (i, settings) in list(&numbers, "samplers").iter().enumerate() {
        let scheduler = NoiseScheduler::from_json(&settings["config"]).unwrap();
        let kind: SamplerKind = settings["kind"].as_str().unwrap().parse().unwrap();
        let steps = settings["steps"].as_u64().unwrap() as usize;
        let mut sampler = Sampler::new(kind, &scheduler, None, steps).unwrap();
        let timesteps: Vec<f64> = sampler.timesteps().iter().map(|t| f64::from(*t)).collect();
        let timesteps = numbers.error_of(&format!("sampler.{i}.timesteps"), &timesteps);
        let sigmas = sampler.sigmas().map_or(0.0, |s| numbers.error_of(&format!("sampler.{i}.sigmas"), s));
        let noise = |step| input(&format!("samplers.noise.{step}"), [1, 4, 2, 2]);
        let path = trajectory(&mut sampler, input("samplers.start", [1, 4, 2, 2]), noise);
        let path = numbers.error(&format!("sampler.{i}.path"), Tensor::cat(path, 0));
        println!("{}: timesteps {timesteps:.1e}, sigmas {sigmas:.1e}, path {path:.1e}", settings["kind"]);
        assert!(timesteps <= TABLE && sigmas <= TABLE && path <= TRAJECTORY, "{settings}: {timesteps} {sigmas} {path}");
        kinds.push(kind);
    }
    assert!(SamplerKind::ALL.iter().all(|kind| kinds.contains(kind)));
}

#[test]
fn guidance_and_its_rescaling() {
    let numbers = numbers();
    for (i, pair) in list(&numbers, "guidance").iter().enumerate() {
        let guidance = Guidance { scale: pair[0].as_f64().unwrap(), rescale: pair[1].as_f64().unwrap() };
        let (without, with) = (input("guidance.without", [2, 4, 3, 5]), input("guidance.with", [2, 4, 3, 5]) * 0.5);
        let error = numbers.error(&format!("guidance.{i}"), guidance.join(without, with));
        assert!(error < 1e-6, "{guidance:?}: {error:e}");
    }
}

#[test]
fn every_spacing_visits_as_many_timesteps_as_there_are_steps() {
    for spacing in ["leading", "trailing", "linspace"] {
        let config = json!({"timestep_spacing": spacing, "steps_offset": 1, "beta_schedule": "scaled_linear"});
        let scheduler = NoiseScheduler::from_json(&config).unwrap();
        for kind in SamplerKind::ALL {
            for steps in (1..=100).chain([333, 500, 998]) {
                let sampler = Sampler::new(kind, &scheduler, None, steps).unwrap();
                let timesteps = sampler.timesteps();
                assert_eq!(timesteps.len(), steps);
                let falls = timesteps.windows(2).all(|pair| pair[0] > pair[1]);
                assert!(
                    falls && timesteps.iter().all(|t| (0.0..1000.0).contains(t)),
                    "{kind:?} {spacing} {timesteps:?}"
                );
            }
        }
    }
}

#[test]
fn what_a_sampler_does_not_have_is_refused() {
    let scheduler = NoiseScheduler::from_json(&json!({"beta_schedule": "scaled_linear"})).unwrap();
    let refused = |kind, karras, steps| Sampler::new(kind, &scheduler, karras, steps).unwrap_err();
    for steps in [0, 1001] {
        assert!(matches!(refused(SamplerKind::Euler, None, steps), SamplerError::Steps { most: 1000, .. }));
    }
    assert!(matches!(refused(SamplerKind::DpmPlusPlus2M, None, 1000), SamplerError::Steps { most: 999, .. }));
    for kind in [SamplerKind::Ddim, SamplerKind::EulerAncestral] {
        assert!(refused(kind, Some(true), 5).to_string().contains("dpmpp-2m"));
    }
    assert!("heun".parse::<SamplerKind>().unwrap_err().contains("euler-a"));
}

/// The noise of the steps is the picture's own, so that it is the same however many pictures are drawn.
#[test]
fn pictures_of_a_batch_go_their_own_ways() {
    let scheduler = NoiseScheduler::from_json(&json!({"beta_schedule": "scaled_linear"})).unwrap();
    let values = |seed: u32| (0..32).map(move |i| ((i * 7 + seed * 13) % 11) as f32 / 5.0 - 1.0);
    let batch = |seeds: &[u32]| {
        let values: Vec<f32> = seeds.iter().flat_map(|seed| values(*seed)).collect();
        tensor(values, [seeds.len(), 2, 4, 4], &cpu_device())
    };
    for kind in SamplerKind::ALL {
        let last = |seeds: &[u32]| {
            let mut sampler = Sampler::new(kind, &scheduler, None, 6).unwrap();
            trajectory(&mut sampler, batch(seeds), |step| batch(seeds) * (step as f64 * 0.1)).pop().unwrap()
        };
        let together = last(&[1, 2]);
        let apart = Tensor::cat(vec![last(&[1]), last(&[2])], 0);
        assert!(together.into_data() == apart.into_data(), "{kind:?}");
    }
}
