//! A micro-batch's loss and gradient have the same bits whatever the number of threads, and from run to run.

use ballast_model::objective::weighted_loss;
use ballast_model::{MicroBatch, Preset, StableDiffusion, Trainable, cpu_device, init_model, standard_normal, tensor};

fn loss_and_gradient(model: &StableDiffusion) -> Vec<u32> {
    let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), true);
    let shape = [4, 4, 24, 24];
    let normal = |name| tensor(standard_normal(1, "test", name, shape.iter().product()), shape, &cpu_device());
    let batch = MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![10, 300, 600, 999],
        token_ids: ["a red disc", "", "two cats", "a house"].map(|text| model.tokenizer.encode(text)).to_vec(),
        weights: vec![1.0, 0.5, 2.0, 1.0],
    };
    let loss = weighted_loss(&trainable.unet, &trainable.text_encoder, &model.noise_scheduler, batch, 8.0);
    let value = loss.scalar.clone().without_autodiff().into_scalar::<f32>();
    let mut bits = vec![value.to_bits()];
    bits.extend(trainable.gradient(loss.scalar).iter().map(|g| g.to_bits()));
    bits
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let model = init_model(Preset::Small, 5);
    let with_threads = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| loss_and_gradient(&model))
    };
    let one = with_threads(1);
    for threads in [2, 3, 2] {
        let other = with_threads(threads);
        let different = one.iter().zip(&other).filter(|(a, b)| a != b).count();
        assert_eq!(different, 0, "{threads} threads change {different} of {} numbers", one.len());
    }
    assert_eq!(loss_and_gradient(&model), one, "the global pool");
}
