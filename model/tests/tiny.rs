//! The tiny preset from end to end: saving and loading, gradients, flat buffers, sampling.

use ballast_model::objective::weighted_loss;
use ballast_model::sampler::{SampleError, sample};
use ballast_model::{
    MicroBatch, NoiseScheduler, Preset, SampleRequest, SamplerKind, SavePrecision, StableDiffusion, TextSettings,
    Trainable, cpu_device, init_model, standard_normal, tensor,
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
fn memory_of_an_earlier_gradient_changes_no_bit() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let model = init_model(preset, 7);
        let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), true);
        let same_length = batch(&model);
        // With two lengths of captions each weight is used twice, and its gradients are added.
        let mut two_lengths = same_length.clone();
        two_lengths.token_ids[1] = [same_length.token_ids[1].clone(), same_length.token_ids[2].clone()].concat();
        for (batch, recomputation) in
            [(&same_length, false), (&same_length, true), (&two_lengths, false), (&two_lengths, true)]
        {
            let bits = |memory: Vec<f32>| -> Vec<u32> {
                let scheduler = &model.noise_scheduler;
                let (_, gradient) =
                    trainable.loss_and_gradient_in(memory, scheduler, batch.clone(), 4.0, recomputation);
                gradient.into_iter().map(f32::to_bits).collect()
            };
            let fresh = bits(Vec::new());
            assert!(bits(vec![f32::NAN; fresh.len()]) == fresh, "{preset:?}, recomputation: {recomputation}");
            assert!(bits(vec![1.0; 7]) == fresh, "memory of another size");
        }
    }
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

#[test]
fn every_sampler_draws_and_draws_the_same_again() {
    let model = init_model(Preset::Tiny, 7);
    let base = SampleRequest {
        prompt: "a red disc".to_owned(),
        seed: 3,
        width: 64,
        height: 48,
        steps: 4,
        ..SampleRequest::default()
    };
    let mut pictures = Vec::new();
    for sampler in SamplerKind::ALL {
        let request = SampleRequest { sampler, ..base.clone() }.with_usual_sigmas();
        let picture = sample(&model, &request).unwrap();
        assert_eq!(picture, sample(&model, &request).unwrap(), "{sampler:?}");
        pictures.push(picture);
    }
    let clip_skip = TextSettings { clip_skip: 2, long_prompts: false };
    pictures.push(sample(&model, &SampleRequest { text: clip_skip, ..base.clone() }).unwrap());
    pictures.push(sample(&model, &SampleRequest { guidance_rescale: 0.7, ..base.clone() }).unwrap());
    for (i, picture) in pictures.iter().enumerate() {
        assert!(!pictures[..i].contains(picture), "picture {i} is one of those before");
    }
    let too_much = SampleRequest { text: TextSettings { clip_skip: 99, long_prompts: false }, ..base.clone() };
    assert!(matches!(sample(&model, &too_much), Err(SampleError::ClipSkip(_))));
    let mut without_signal = model.clone();
    let config = serde_json::json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    without_signal.noise_scheduler = NoiseScheduler::from_json(&config).unwrap();
    let error = sample(&without_signal, &base).unwrap_err().to_string();
    assert!(error.contains("not a number everywhere") && error.contains("rescale_betas_zero_snr"), "{error}");
    let config = serde_json::json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing",
                                    "prediction_type": "v_prediction"});
    without_signal.noise_scheduler = NoiseScheduler::from_json(&config).unwrap();
    for sampler in SamplerKind::ALL {
        sample(&without_signal, &SampleRequest { sampler, guidance_rescale: 0.7, ..base.clone() }).unwrap();
    }
    let karras = SampleRequest { karras_sigmas: Some(true), ..base };
    assert!(matches!(sample(&model, &karras), Err(SampleError::Sampler(_))));
}

#[test]
fn the_end_of_a_long_prompt_counts_only_where_it_is_asked_for() {
    let model = init_model(Preset::Tiny, 7);
    let long = "a red disc on the sea ".repeat(40);
    let longer = format!("{long} and a blue bird");
    let all = |prompt: &str, long_prompts: bool| {
        let settings = TextSettings { clip_skip: 1, long_prompts };
        model.encode_prompts(&[prompt, "short"], settings).unwrap()
    };
    let states = |prompt: &str, long_prompts: bool| all(prompt, long_prompts)[0].clone().narrow(0, 0, 1);
    let cut = states(&long, false);
    assert_eq!(cut.dims()[1], 77);
    assert!(cut.into_data() == states(&longer, false).into_data());
    let whole = states(&long, true);
    assert!(whole.dims()[1] > 77 && whole.dims()[1] % 77 == 0);
    assert!(whole.clone().into_data() != states(&longer, true).into_data());
    // A short prompt beside it stays short.
    assert_eq!(all(&long, true)[1].dims()[1], 77);
    // The first chunk's states are those of the cut prompt.
    let first = whole.narrow(1, 0, 77).into_data();
    assert!(first == states(&long, false).into_data());
}

/// Which others are in a batch changes nothing but the order of sums, whatever the size.
#[test]
fn a_batch_is_its_samples_at_any_size() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let model = init_model(preset, 7);
        let prompts = ["a red disc", "", "two cats", "a boat", "a red disc"];
        let text = model.encode_prompts(&prompts, TextSettings::default()).unwrap().remove(0);
        for (batch, [height, width]) in [(2, [1, 1]), (3, [5, 7]), (5, [3, 2]), (4, [9, 6]), (1, [11, 13])] {
            let shape = [batch, 4, height, width];
            let latents = tensor(standard_normal(1, "test", "latents", shape.iter().product()), shape, &cpu_device());
            let timesteps: Vec<f32> = (0..batch).map(|i| (i * 199) as f32).collect();
            let together = model.unet.forward(latents.clone(), &timesteps, text.clone().narrow(0, 0, batch));
            assert_eq!(together.dims(), shape);
            let alone = (0..batch).map(|i| {
                model.unet.forward(latents.clone().narrow(0, i, 1), &timesteps[i..=i], text.clone().narrow(0, i, 1))
            });
            let alone = burn::tensor::Tensor::cat(alone.collect(), 0);
            let off = (together - alone.clone()).abs().max().into_scalar::<f32>();
            let peak = alone.abs().max().into_scalar::<f32>();
            assert!(off <= 2e-6 * peak, "{preset:?}, {batch} of {height}x{width}: off by {}", off / peak);
        }
    }
}
