//! Times one training step (forward, backward, flat gradient) of the example-sized model on the CPU.
//!
//! `cargo run --release -p ballast-model --example step_time [-- RUNS]`; `RAYON_NUM_THREADS` sets the threads. CPU
//! time is that of all threads, from Linux' scheduler: it tells more than the clock on a busy machine.

use ballast_model::objective::weighted_loss;
use ballast_model::{MicroBatch, Preset, Trainable, cpu_device, init_model, standard_normal, tensor};
use std::time::Instant;

fn main() {
    let runs = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let model = init_model(Preset::Small, 5);
    for train_text in [false, true] {
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text);
        let mut best = [f64::INFINITY; 4];
        for _ in 0..runs {
            let shape = [4, 4, 24, 24];
            let normal = |name| tensor(standard_normal(1, "time", name, shape.iter().product()), shape, &cpu_device());
            let batch = MicroBatch {
                latents: normal("latents"),
                noise: normal("noise"),
                timesteps: vec![10, 300, 600, 999],
                token_ids: vec![model.tokenizer.encode("a red disc on a blue field"); 4],
                weights: vec![1.0; 4],
            };
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, 4.0);
            let forward = start.elapsed().as_secs_f64();
            let gradient = trainable.gradient(loss.scalar);
            let whole = start.elapsed().as_secs_f64();
            assert_eq!(gradient.len(), trainable.layout().total);
            let cpu = cpu_seconds() - cpu;
            for (best, time) in best.iter_mut().zip([forward, whole - forward, whole, cpu]) {
                *best = best.min(time);
            }
        }
        let [forward, backward, whole, cpu] = best.map(|t| t * 1e3);
        println!(
            "batch 4, latents 24x24, text encoder trained: {train_text}: forward {forward:.0} ms, \
             backward {backward:.0} ms, step {whole:.0} ms, {:.1} ms per sample; CPU {cpu:.0} ms (minimum of {runs})",
            whole / 4.0
        );
    }
}

/// Seconds that the threads of this process have run; 0 where the system does not say.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}
