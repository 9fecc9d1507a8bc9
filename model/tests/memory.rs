//! How much memory a training step takes, counted in bytes that are allocated and not yet freed.
//!
//! One test: the count is of the whole process.

use ballast_model::adamw::{AdamW, AdamWSettings, Group};
use ballast_model::{MicroBatch, Preset, StableDiffusion, Trainable, cpu_device, init_model, standard_normal, tensor};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Returns the result of `work`, and how many bytes more than at the beginning were allocated at the worst moment.
fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let result = work();
    (result, HEAP.peak_usage() - before)
}

fn batch(model: &StableDiffusion) -> MicroBatch {
    let shape = [4, 4, 32, 32];
    let normal = |name| tensor(standard_normal(1, "memory", name, shape.iter().product()), shape, &cpu_device());
    MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![10, 300, 600, 999],
        token_ids: vec![model.tokenizer.encode("a red disc on a blue field"); 4],
        weights: vec![1.0; 4],
    }
}

#[test]
fn a_step_holds_everything_once_and_recomputation_spares_activations() {
    let mut model = init_model(Preset::Small, 5);
    let layout = model.trained_layout(true);
    let buffer = layout.total * 4;
    let mut gradients = Vec::new();
    let peaks = [false, true].map(|recomputation| {
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), true);
        let batch = batch(&model);
        let compute = || trainable.loss_and_gradient(&model.noise_scheduler, batch, 4.0, recomputation).1;
        let (gradient, peak) = peak(compute);
        gradients.push(gradient);
        peak
    });
    println!("flat gradient {buffer}, peak with all activations {}, recomputing {}", peaks[0], peaks[1]);
    assert!(gradients[0] == gradients[1]);
    // Beside the flat buffer: the inputs of all stages, and the inside and the gradients of one.
    let [kept, recomputed] = peaks.map(|peak| peak - buffer);
    assert!(recomputed * 2 < kept, "{recomputed} of {kept}");

    let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut optimizer = AdamW::new(settings, layout.total);
    let groups = [Group { range: 0..layout.total, lr: 1e-3 }];
    let ((), moving) = peak(|| {
        model.change_trained(&layout, &mut |offset, values| {
            optimizer.step_part(offset, values, &gradients[0], 1, &groups);
        });
    });
    assert!(moving < buffer / 20, "moving {buffer} bytes of parameters takes {moving} more");
}
