//! The time of a training step, beside `tests/gpu/gpu_baseline.py`, which does the same in PyTorch.
//!
//! A step is: noise drawn on the host and brought over, captions through the text encoder (which the other program is spared),
//! the UNet forward and backward, the gradient in one row and its digest, clipping to norm 1, AdamW on f32 parameters. Steps
//! follow each other and wait for the device where they do so in training (`learner.rs`).

use std::time::Instant;

use anyhow::Context as _;
use ballast_benches::{live_cpu_seconds, peak_memory};
use ballast_model::{Compute, Device, FlatLayout, MicroBatch, Preset, StableDiffusion, init_model_on, tensor};
use serde_json::json;

use crate::device::Formats;
use crate::learner::{self, Learner};

/// Multiplications and additions of one image, forward and backward, at latents of 64x64, as PyTorch's counter has them
/// (`gpu_baseline.py`, which writes `tflop_per_image`).
const FLOP: [(&str, f64); 2] = [("sd15", 2_406_773_063_680.0), ("sd21", 2_408_741_109_760.0)];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `sd15`, `sd21`, `small` or `tiny`
    #[arg(long)]
    model: String,
    /// Images of a step; several are timed one after the other, smaller ones first
    #[arg(long, num_args = 1.., default_values_t = [1])]
    batch: Vec<usize>,
    /// Number format of the activations; parameters are f32 in either. bf16 on a GPU, f32 on the CPU unless given
    #[arg(long, value_enum)]
    format: Option<Formats>,
    /// Height and width of the latents
    #[arg(long, num_args = 2, default_values_t = [64, 64])]
    hw: Vec<usize>,
    /// Steps that are timed
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Steps before them, the first apart
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Keeps few activations and computes the others again
    #[arg(long)]
    recompute: bool,
    /// On the CPU: collects and moves as on a GPU, on an accelerator that is simulated
    #[arg(long)]
    simulated: bool,
    /// Waits for the device after each part of a step, and says what each takes
    #[arg(long)]
    parts: bool,
    /// Says how long each kernel runs in a step, from three more steps
    #[arg(long)]
    kernels: bool,
    /// Writes what autotune and the compiler have found to this file, for other machines with the same card
    #[arg(long)]
    save_kernels: Option<std::path::PathBuf>,
}

/// Seconds of the parts of a step.
#[derive(Clone, Copy, Default)]
struct Parts {
    gradient: f64,
    update: f64,
}

/// Prints one result for each batch.
pub(crate) fn run(args: &Args, device: &Device) -> anyhow::Result<bool> {
    let started = Instant::now();
    let preset = Preset::from_name(&args.model).with_context(|| format!("`{}` is no preset", args.model))?;
    let mut bench = Bench::new(preset, args, device);
    bench.sync()?;
    let load_s = started.elapsed().as_secs_f64();
    let mut good = true;
    for batch in &args.batch {
        bench.set_batch(*batch);
        let mut result = time(&mut bench, args)?;
        result["load_s"] = json!(load_s);
        good &= result["last_loss"].as_f64().is_some_and(f64::is_finite);
        println!("{result}");
    }
    if let Some(path) = &args.save_kernels {
        save_kernels(path)?;
    }
    Ok(good)
}

fn time(bench: &mut Bench, args: &Args) -> anyhow::Result<serde_json::Value> {
    let batch = bench.shape[0];
    let mut next = 1;
    let mut steps = |bench: &mut Bench, count: usize| -> anyhow::Result<(f32, f64)> {
        let started = Instant::now();
        let mut loss = f32::NAN;
        for _ in 0..count {
            loss = bench.step(next)?;
            next += 1;
        }
        bench.sync()?;
        Ok((loss, started.elapsed().as_secs_f64()))
    };
    let (_, first_step_s) = steps(bench, 1)?;
    steps(bench, args.warmup)?;
    bench.parts = Parts::default();
    let cpu = live_cpu_seconds();
    let (loss, seconds) = steps(bench, args.steps)?;
    let per_step = |seconds: f64| seconds / args.steps as f64 * 1e3;
    let (ms, cpu_ms) = (per_step(seconds), per_step(live_cpu_seconds() - cpu));
    let flop = FLOP.iter().find(|(name, _)| *name == args.model && args.hw == [64, 64]).map(|(_, flop)| *flop);
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let usage = bench.device.memory_pool_usage();
    let mut result = json!({
        "program": "ballast", "format": format!("{:?}", bench.model.unet.compute()), "model": args.model, "batch": batch, "latent": args.hw, "grad_ckpt": args.recompute,
        "steps": args.steps, "ms_per_step": ms, "images_per_s": batch as f64 / ms * 1e3, "cpu_ms_per_step": cpu_ms,
        "first_step_s": first_step_s, "last_loss": loss, "parameters": bench.layout.total,
        "tflops": flop.map(|flop| flop * batch as f64 / ms / 1e9),
        "peak_host_gib": gib(peak_memory()),
        // Pages are not given back within a run, so that what is reserved at its end is the most there was.
        "peak_reserved_gib": usage.map(|usage| gib(usage.bytes_reserved)),
        "in_use_gib": usage.map(|usage| gib(usage.bytes_in_use)),
    });
    if args.parts {
        result["parts_ms"] = json!({"forward, backward, gather": per_step(bench.parts.gradient),
                                    "clip, AdamW": per_step(bench.parts.update)});
    }
    if args.kernels {
        result["kernels"] = kernels(bench, 3)?;
    }
    Ok(result)
}

struct Bench {
    model: StableDiffusion,
    layout: FlatLayout,
    learner: Box<dyn Learner>,
    device: Device,
    recompute: bool,
    waits: bool,
    /// `[batch, 4, height, width]`
    shape: [usize; 4],
    latents: Vec<f32>,
    token_ids: Vec<Vec<i32>>,
    parts: Parts,
}

impl Bench {
    fn new(preset: Preset, args: &Args, device: &Device) -> Self {
        let mut model = init_model_on(preset, 1, device);
        model.compute_in(args.format.map_or_else(|| Compute::usual(device), Formats::compute));
        let layout = model.trained_layout(false);
        Self {
            learner: learner::of(&mut model, layout.clone(), device, args.simulated),
            token_ids: Vec::new(),
            latents: Vec::new(),
            model,
            layout,
            device: device.clone(),
            recompute: args.recompute,
            waits: args.parts,
            shape: [0, 4, args.hw[0], args.hw[1]],
            parts: Parts::default(),
        }
    }

    /// Has steps of so many images follow; what the steps before held is given back.
    fn set_batch(&mut self, batch: usize) {
        self.shape[0] = batch;
        self.latents = normal("latents", 0, self.shape.iter().product());
        self.token_ids = vec![self.model.tokenizer.encode("a photograph of a lighthouse"); batch];
        self.device.memory_cleanup();
    }

    /// Makes a step, from 1 on, and returns its loss.
    fn step(&mut self, step: u64) -> anyhow::Result<f32> {
        let started = Instant::now();
        let batch = MicroBatch {
            latents: tensor(self.latents.clone(), self.shape, &self.device),
            noise: tensor(normal("noise", step, self.latents.len()), self.shape, &self.device),
            timesteps: (0..self.shape[0] as u64).map(|i| ((step * 379 + i * 101) % 1000) as u32).collect(),
            token_ids: self.token_ids.clone(),
            weights: vec![1.0; self.shape[0]],
        };
        let (waits, device) = (self.waits, self.device.clone());
        let mut gradient = 0.0;
        let mut between = || {
            if waits {
                wait(&device)?;
            }
            gradient = started.elapsed().as_secs_f64();
            Ok(())
        };
        let losses = self.learner.step(&mut self.model, batch, self.recompute, step, &mut between)?;
        if waits {
            self.sync()?;
        }
        self.parts.gradient += gradient;
        self.parts.update += started.elapsed().as_secs_f64() - gradient;
        Ok(losses.iter().sum::<f32>() / losses.len() as f32)
    }

    fn sync(&self) -> anyhow::Result<()> {
        wait(&self.device)
    }
}

fn wait(device: &Device) -> anyhow::Result<()> {
    device.sync().map_err(|error| anyhow::anyhow!("{error:?}"))
}

#[cfg(feature = "cuda")]
fn kernels(bench: &mut Bench, steps: u64) -> anyhow::Result<serde_json::Value> {
    let (result, times) = ballast_model::cuda::observe::kernels(|| {
        (0..steps).try_for_each(|step| bench.step(1000 + step).map(|_| ())).and_then(|()| bench.sync())
    });
    result?;
    let of = |time: ballast_model::cuda::observe::KernelTime| {
        json!({"name": time.name, "launches": time.launches as f64 / steps as f64, "unmeasured": time.unmeasured,
               "ms": time.seconds / steps as f64 * 1e3})
    };
    Ok(times.into_iter().map(of).collect())
}

#[cfg(not(feature = "cuda"))]
fn kernels(_: &mut Bench, _: u64) -> anyhow::Result<serde_json::Value> {
    anyhow::bail!("--kernels: this build has no CUDA, and so no kernels")
}

#[cfg(feature = "cuda")]
fn save_kernels(path: &std::path::Path) -> anyhow::Result<()> {
    ballast_model::cuda::environment::save_bundle(path).context("the kernels of this machine are not saved")
}

#[cfg(not(feature = "cuda"))]
fn save_kernels(_: &std::path::Path) -> anyhow::Result<()> {
    anyhow::bail!("--save-kernels: this build has no CUDA, and so no kernels")
}

fn normal(what: &str, step: u64, count: usize) -> Vec<f32> {
    ballast_model::standard_normal(step, "gpu-check", what, count)
}
