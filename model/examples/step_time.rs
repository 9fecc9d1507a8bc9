//! Times one training step (forward, backward, flat gradient) of the example-sized model on the CPU.
//!
//! `cargo run --release -p ballast-model --example step_time [-- RUNS]`; `RAYON_NUM_THREADS` sets the threads.

use ballast_model::objective::weighted_loss;
use ballast_model::{MicroBatch, Preset, Trainable, cpu_device, init_model, standard_normal, tensor};
use std::time::Instant;

fn main() {
    let runs = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    let model = init_model(Preset::Small, 5);
    for train_text in [false, true] {
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text);
        let mut best = [f64::INFINITY; 3];
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
            let start = Instant::now();
            let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, 4.0);
            let forward = start.elapsed().as_secs_f64();
            let gradient = trainable.gradient(loss.scalar);
            let whole = start.elapsed().as_secs_f64();
            assert_eq!(gradient.len(), trainable.layout().total);
            for (best, time) in best.iter_mut().zip([forward, whole - forward, whole]) {
                *best = best.min(time);
            }
        }
        let [forward, backward, whole] = best.map(|t| t * 1e3);
        println!(
            "batch 4, latents 24x24, text encoder trained: {train_text}: forward {forward:.0} ms, \
             backward {backward:.0} ms, step {whole:.0} ms, {:.1} ms per sample (minimum of {runs})",
            whole / 4.0
        );
    }
}
