//! Noise schedules, samplers on the analytic model `tanh(x/2)·(0.5 + t/2000)`, and a whole picture.

use crate::case::OpenCase;
use crate::fixtures::support::analytic::trajectory;
use crate::report::{FORWARD, Report, TABLE};
use ballast_model::noise_scheduler::NoiseScheduler;
use ballast_model::objective::min_snr_weight;
use ballast_model::sampler::{Sampler, denoise};
use ballast_model::{PredictionType, SampleRequest, SamplerKind};
use burn::tensor::Tensor;
use serde_json::{Value, json};

/// Ten steps of f32.
const TRAJECTORY: f64 = 1e-5;

fn noise_scheduler(config: &Value) -> NoiseScheduler {
    NoiseScheduler::from_json(config).unwrap_or_else(|error| panic!("{config}: {error}"))
}

pub(crate) fn tables(case: &OpenCase, report: &mut Report) {
    let numbers = &case.numbers;
    let gamma = case.parity["min_snr_gamma"].as_f64();
    let timesteps: Vec<u32> = numbers.values("in.sched.t").1.into_iter().map(|t| t as u32).collect();
    for (prefix, zero_snr) in [("", false), ("zsnr_", true)] {
        let scheduler = noise_scheduler(&case.scheduler(&json!({"rescale_betas_zero_snr": zero_snr})));
        let every = |f: &dyn Fn(u32) -> f64| (0..scheduler.num_train_timesteps()).map(f).collect::<Vec<f64>>();
        let weight = |kind| every(&|t| min_snr_weight(scheduler.snr(t), gamma, kind));
        for (what, table) in [
            ("betas", every(&|t| f64::from(scheduler.betas()[t as usize]))),
            ("alphas_cumprod", scheduler.alphas_cumprod().to_vec()),
            ("snr", every(&|t| scheduler.snr(t))),
            ("minsnr_w_eps", weight(PredictionType::Epsilon)),
            ("minsnr_w_v", weight(PredictionType::VPrediction)),
        ] {
            let name = format!("sched.{prefix}{what}");
            if numbers.has(&name) {
                report.note("noise schedule tables", TABLE, &name, numbers.error_of(&name, &table));
            }
        }
        let (latents, noise) = (numbers.tensor::<4>("in.sched.x0"), numbers.tensor::<4>("in.sched.noise"));
        for (what, mixed) in [
            ("add_noise", scheduler.add_noise(latents.clone(), noise.clone(), &timesteps)),
            ("velocity", scheduler.velocity(latents, noise, &timesteps)),
        ] {
            let name = format!("sched.{prefix}{what}");
            report.note("noise and velocity", TABLE, &name, numbers.error(&name, mixed));
        }
    }
}

pub(crate) fn samplers(case: &OpenCase, report: &mut Report) {
    let numbers = &case.numbers;
    let start = numbers.tensor::<4>("in.sched.start");
    let step_noise = numbers.tensor::<5>("in.sched.step_noise");
    for (name, settings) in numbers.json["samplers"].as_object().expect("samplers by name") {
        let kind = match settings["cls"].as_str().expect("the name of a class") {
            "DDIMScheduler" => SamplerKind::Ddim,
            "EulerDiscreteScheduler" => SamplerKind::Euler,
            "EulerAncestralDiscreteScheduler" => SamplerKind::EulerAncestral,
            "DPMSolverMultistepScheduler" => SamplerKind::DpmPlusPlus2M,
            _ => continue, // listed as without a counterpart
        };
        let steps = settings["steps"].as_u64().expect("a number of steps") as usize;
        let scheduler = noise_scheduler(&settings["config"]);
        let mut sampler = Sampler::new(kind, &scheduler, None, steps).expect("a good number of steps");
        let noise = |index: usize| step_noise.clone().narrow(0, index, 1).squeeze_dim(0);
        let path = trajectory(&mut sampler, start.clone(), noise);
        let path: Tensor<5> = Tensor::stack(path, 0);
        let at = format!("sched.{name}.traj");
        report.note("sampler trajectories", TRAJECTORY, &at, numbers.error(&at, path));
        let f64s = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<f64>>();
        let at = format!("sched.{name}.timesteps");
        report.note("sampler tables", TABLE, &at, numbers.error_of(&at, &f64s(sampler.timesteps())));
        if let Some(sigmas) = sampler.sigmas() {
            let at = format!("sched.{name}.sigmas");
            report.note("sampler tables", TABLE, &at, numbers.error_of(&at, sigmas));
        }
        let expected = settings["init_noise_sigma"].as_f64().expect("a number");
        report.note_number(
            "sampler tables",
            TABLE,
            &format!("{name} init_noise_sigma"),
            sampler.init_noise_sigma(),
            expected,
        );
    }
}

pub(crate) fn pipeline(case: &OpenCase, report: &mut Report) {
    let (numbers, pipe) = (&case.numbers, &case.numbers.json["pipe"]);
    let mut model = case.model.clone();
    model.noise_scheduler = noise_scheduler(
        &case.scheduler(&json!({"set_alpha_to_one": false, "steps_offset": 1, "timestep_spacing": "leading"})),
    );
    let text = |key: &str| pipe[key].as_str().expect("a prompt").to_owned();
    let request = SampleRequest {
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        steps: pipe["steps"].as_u64().expect("a number of steps") as usize,
        guidance_scale: pipe["guidance"].as_f64().expect("a number"),
        ..SampleRequest::default()
    };
    let latents = denoise(&model, &request, numbers.tensor("in.pipe.latents")).expect("a good number of steps");
    report.note("whole pictures", FORWARD, "pipe.latents", numbers.error("pipe.latents", latents.clone()));
    let picture = (model.vae.decode(latents) * 0.5 + 0.5).clamp(0.0, 1.0).permute([0, 2, 3, 1]);
    report.note("whole pictures", FORWARD, "pipe.image", numbers.error("pipe.image", picture));
}
