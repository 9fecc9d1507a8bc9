//! One training step of a UNet of full size on the CPU, beside `benches/peer/cpu_step.py`, which does the same in PyTorch.
//!
//! `sd-step --model sd15 --batch 1 --steps 3 [--hw 64 64] [--json FILE]`: random weights, latents and text states as if cached;
//! a step is noise, its addition, the UNet forward, the mean squared error, backward, clipping to norm 1, AdamW.
//! `RAYON_NUM_THREADS` sets the threads. Compare CPU seconds where the machine is shared.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use ballast_benches::{live_cpu_seconds, median, peak_memory};
use ballast_model::adamw::{AdamW, AdamWSettings, Group, Scaled};
use ballast_model::norm::{clip_factor, global_norm};
use ballast_model::objective::weighted_loss_of_text;
use ballast_model::{
    FlatLayout, MicroBatch, Preset, StableDiffusion, TextSettings, Trainable, cpu_device, init_model, tensor,
};
use clap::Parser;
use serde_json::json;

/// What is measured.
#[derive(Parser)]
struct Args {
    /// `sd15`, `sd21` or `small`
    #[arg(long)]
    model: String,
    /// Samples of a step
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Height and width of the latents
    #[arg(long, num_args = 2, default_values_t = [64, 64])]
    hw: Vec<usize>,
    /// Measured steps
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Steps before them
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Stops after the gradient: no clipping, no optimizer, and neither's memory
    #[arg(long)]
    no_update: bool,
    /// Appends the result here, one line of JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

/// CPU and wall seconds of the parts of a step.
#[derive(Clone, Copy, Default)]
struct Times {
    forward: f64,
    backward: f64,
    update: f64,
    cpu: f64,
    wall: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let preset = Preset::from_name(&args.model).context("--model is sd15, sd21 or small")?;
    let mut bench = Bench::new(preset, &args)?;
    let mut measured = Vec::new();
    for i in 0..args.warmup + args.steps {
        let (times, loss) = bench.step(i as u64 + 1, !args.no_update);
        let Times { forward, backward, update, cpu, wall } = times;
        println!(
            "step {i} loss {loss:.4} wall {wall:.3} s cpu {cpu:.3} s (forward {forward:.3}, backward {backward:.3}, \
             update {update:.3}) rss {:.2} GB",
            peak_rss_gib()
        );
        if i >= args.warmup {
            measured.push(times);
        }
    }
    let of = |part: fn(&Times) -> f64| {
        let values: Vec<f64> = measured.iter().map(part).collect();
        (median(values) * 1e3).round() / 1e3
    };
    let result = json!({
        "program": "ballast", "model": args.model, "batch": args.batch, "latent": args.hw, "steps": args.steps,
        "threads": rayon::current_num_threads(), "update": !args.no_update,
        "wall_s_median": of(|t| t.wall), "cpu_s_median": of(|t| t.cpu), "forward_cpu_s": of(|t| t.forward),
        "backward_cpu_s": of(|t| t.backward), "update_cpu_s": of(|t| t.update), "peak_rss_gb": peak_rss_gib(),
    });
    println!("{result}");
    if let Some(path) = &args.json {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{result}")?;
    }
    Ok(())
}

struct Bench {
    model: StableDiffusion,
    layout: FlatLayout,
    /// `[batch, 77, width]`
    text: Vec<f32>,
    text_shape: [usize; 3],
    /// `[batch, 4, height, width]`
    shape: [usize; 4],
    latents: Vec<f32>,
    optimizer: Option<AdamW>,
    /// Memory of the last gradient, for the next one: as a worker does it.
    spare: Vec<f32>,
}

impl Bench {
    fn new(preset: Preset, args: &Args) -> anyhow::Result<Self> {
        let model = init_model(preset, 1);
        let text = model.encode_prompts(&["a photograph of a lighthouse"], TextSettings::default())?;
        let [_, length, width] = text[0].dims();
        let text_shape = [args.batch, length, width];
        let shape = [args.batch, 4, args.hw[0], args.hw[1]];
        Ok(Self {
            layout: model.trained_layout(false),
            model,
            text: normal("text", 0, text_shape.iter().product()),
            text_shape,
            shape,
            latents: normal("latents", 0, shape.iter().product()),
            optimizer: None,
            spare: Vec::new(),
        })
    }

    /// The loss, and what the step took.
    fn step(&mut self, step: u64, update: bool) -> (Times, f32) {
        let start = Instant::now();
        let clock = [live_cpu_seconds()];
        let device = cpu_device();
        let batch = MicroBatch {
            latents: tensor(self.latents.clone(), self.shape, &device),
            noise: tensor(normal("noise", step, self.latents.len()), self.shape, &device),
            timesteps: (0..self.shape[0] as u64).map(|i| ((step * 379 + i * 101) % 1000) as u32).collect(),
            token_ids: Vec::new(),
            weights: vec![1.0; self.shape[0]],
        };
        let text = tensor(self.text.clone(), self.text_shape, &device);
        let normaliser = self.shape[0] as f32;
        let trainable = Trainable::new(self.model.unet.clone(), self.model.text_encoder.clone(), false);
        let loss = weighted_loss_of_text(&trainable.unet, text, &self.model.noise_scheduler, batch, normaliser);
        let value = loss.scalar.clone().without_autodiff().into_scalar::<f32>();
        let forward = live_cpu_seconds();
        let gradient = trainable.gradient_in(std::mem::take(&mut self.spare), loss.scalar);
        drop(trainable); // shares the parameters, which are changed where they are
        let backward = live_cpu_seconds();
        if update {
            self.update(step, &gradient);
        }
        self.spare = gradient;
        let end = live_cpu_seconds();
        let times = Times {
            forward: forward - clock[0],
            backward: backward - forward,
            update: end - backward,
            cpu: end - clock[0],
            wall: start.elapsed().as_secs_f64(),
        };
        (times, value)
    }

    fn update(&mut self, step: u64, gradient: &[f32]) {
        let factor = clip_factor(global_norm(gradient), 1.0);
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2 };
        let optimizer = self.optimizer.get_or_insert_with(|| AdamW::new(settings, gradient.len()));
        let groups = [Group { range: 0..gradient.len(), lr: 1e-5 }];
        self.model.change_trained(&self.layout, &mut |offset, values| {
            optimizer.step_part_scaled(offset, values, Scaled { gradient, factor }, step, &groups);
        });
    }
}

/// The most memory that was resident so far, in GiB, as PyTorch's program counts.
fn peak_rss_gib() -> f64 {
    peak_memory() as f64 / f64::from(1 << 30)
}

fn normal(what: &str, step: u64, count: usize) -> Vec<f32> {
    ballast_model::standard_normal(step, "sd-step", what, count)
}
