//! The tiny preset from end to end: saving and loading, gradients, flat buffers, sampling.

use ballast_model::objective::weighted_loss;
use ballast_model::sampler::sample;
use ballast_model::{
    MicroBatch, Preset, SampleRequest, SavePrecision, StableDiffusion, Trainable, cpu_device, init_model,
    standard_normal, tensor,
};

fn batch(model: &StableDiffusion) -> MicroBatch {
    let shape = [3, 4, 6, 8];
    let normal = |name| tensor(standard_normal(1, "test", name, shape.iter().product()), shape, &cpu_device());
    MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![10, 500, 999],
        token_ids: ["a red disc", "", "two cats"].map(|text| model.tokenizer.encode(text)).to_vec(),
        weights: vec![1.0, 0.5, 0.0],
    }
}

#[test]
fn a_saved_model_loads_with_the_same_bits() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let model = init_model(preset, 7);
        let folder = tempfile::tempdir().unwrap();
        let files = model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
        assert!(files.iter().all(|file| file.is_file()), "{files:?}");
        let loaded = StableDiffusion::load(folder.path(), &cpu_device()).unwrap();
        let params = |m: StableDiffusion| Trainable::new(m.unet, m.text_encoder, true).params();
        let (before, after) = (params(model), params(loaded));
        assert!(before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}

#[test]
fn the_gradient_agrees_with_a_small_step() {
    let model = init_model(Preset::Tiny, 7);
    let mut trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), true);
    let loss = |t: &Trainable| weighted_loss(&t.unet, &t.text_encoder, &model.noise_scheduler, batch(&model), 4.0);
    let gradient = trainable.gradient(loss(&trainable).scalar);
    assert_eq!(gradient.len(), trainable.layout().total);
    let norm: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let value = |t: &Trainable| f64::from(loss(t).scalar.into_scalar::<f32>());
    let params = trainable.params();
    let step = 2e-3 / norm.sqrt();
    let mut at = |sign: f64| {
        let moved: Vec<f32> =
            params.iter().zip(&gradient).map(|(p, g)| (f64::from(*p) + sign * step * f64::from(*g)) as f32).collect();
        trainable.set_params(&moved);
        assert_eq!(trainable.params(), moved);
        value(&trainable)
    };
    let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 1e-2, "slope {slope}, squared norm of the gradient {norm}");
}

#[test]
fn the_same_seed_draws_the_same_picture() {
    let model = init_model(Preset::Tiny, 7);
    let request = SampleRequest {
        prompt: "a red disc".to_owned(),
        negative_prompt: String::new(),
        seed: 3,
        width: 64,
        height: 48,
        steps: 4,
        ..SampleRequest::default()
    };
    let picture = sample(&model, &request).unwrap();
    assert_eq!(picture.data.len(), 64 * 48 * 3);
    assert_eq!(picture, sample(&model, &request).unwrap());
    assert_ne!(picture, sample(&model, &SampleRequest { seed: 4, ..request }).unwrap());
}
