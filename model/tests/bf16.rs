//! bf16 activations with f32 parameters: how far from f32, and no further than PyTorch's autocast is
//! (`fixtures/make_bf16.py`). The CPU computes bf16 through burn's operations, as a GPU does where it has no kernel of
//! ours: the places where something is rounded are the same, the order of sums is not.

pub mod support;

use ballast_model::adamw::{AdamW, AdamWSettings, Group};
use ballast_model::sampler::{denoise, sample};
use ballast_model::{
    Compute, FlatLayout, MicroBatch, ParamGroup, Preset, SampleRequest, StableDiffusion, TextSettings, Trainable,
    cpu_device, init_model, standard_normal, tensor,
};
use burn::tensor::DType;
use serde_json::Value;
use support::{Reference, fixture_path, input};

/// A model in both formats; the parameters are shared.
fn both(model: StableDiffusion) -> [StableDiffusion; 2] {
    let mut bf16 = model.clone();
    bf16.compute_in(Compute::Bf16);
    [model, bf16]
}

/// Losses and gradient of a batch.
fn computed(
    model: &StableDiffusion,
    batch: &MicroBatch,
    train_text_encoder: bool,
    recomputation: bool,
) -> (Vec<f32>, Vec<f32>) {
    let trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text_encoder);
    let normaliser = batch.weights.len() as f32;
    let (losses, gradient) =
        trainable.loss_and_gradient(&model.noise_scheduler, batch.clone(), normaliser, recomputation);
    (losses.try_into_vec_as().unwrap(), gradient)
}

/// Squares of the difference and of what is expected, added up.
fn squares(actual: &[f32], expected: &[f32]) -> [f64; 2] {
    assert_eq!(actual.len(), expected.len());
    actual.iter().zip(expected).fold([0.0; 2], |[off, all], (a, e)| {
        [off + (f64::from(*a) - f64::from(*e)).powi(2), all + f64::from(*e).powi(2)]
    })
}

fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    let [off, all] = squares(actual, expected);
    (off / all).sqrt()
}

fn reference_batch(reference: &Reference, index: usize, timesteps: &Value) -> MicroBatch {
    MicroBatch {
        latents: input(&format!("bf16.{index}.latents"), [4, 4, 8, 8]),
        noise: input(&format!("bf16.{index}.noise"), [4, 4, 8, 8]),
        timesteps: serde_json::from_value(timesteps.clone()).unwrap(),
        token_ids: reference.token_ids(),
        weights: vec![1.0; 4],
    }
}

#[test]
fn errors_are_no_larger_than_those_of_pytorch() {
    let pytorch: Value = serde_json::from_slice(&std::fs::read(fixture_path("bf16.json")).unwrap()).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    for name in ["sd1", "sd2"] {
        let (reference, theirs) = (Reference::load(name), &pytorch[name]);
        let models = both(reference.model());
        let layout = models[0].trained_layout(true);
        let mut by_parameter = vec![[0.0; 2]; layout.entries.len()];
        for (index, theirs) in theirs["batches"].as_array().unwrap().iter().enumerate() {
            let batch = reference_batch(&reference, index, &pytorch[name]["timesteps"]);
            let [(full, gradient), (losses, found)] =
                models.each_ref().map(|model| computed(model, &batch, true, false));
            let worst = losses.iter().zip(&full).map(|(a, e)| f64::from((a - e).abs() / e)).fold(0.0, f64::max);
            println!("{name} {index}: losses {worst:.1e}, PyTorch {}", theirs["losses"]);
            assert!(worst <= 4e-3, "{name}, batch {index}: losses {losses:?} instead of {full:?}");
            for group in [ParamGroup::Unet, ParamGroup::TextEncoder] {
                let range = layout.group_range(group);
                let ours = relative(&found[range.clone()], &gradient[range]);
                let theirs = number(&theirs[group.name()]);
                println!("{name} {index}: {} {ours:.4}, PyTorch {theirs:.4}", group.name());
                assert!(ours <= 1.5 * theirs, "{name}, batch {index}, {group:?}: {ours} from f32, PyTorch {theirs}");
            }
            for (sum, entry) in by_parameter.iter_mut().zip(&layout.entries) {
                let range = entry.offset..entry.offset + entry.len;
                let here = squares(&found[range.clone()], &gradient[range]);
                *sum = [sum[0] + here[0], sum[1] + here[1]];
            }
        }
        compare_parameters(&reference, &layout, &by_parameter, theirs["parameters"].as_array().unwrap());
    }
}

fn compare_parameters(reference: &Reference, layout: &FlatLayout, ours: &[[f64; 2]], theirs: &[Value]) {
    let names: Vec<String> = serde_json::from_value(reference.json["grad.names"].clone()).unwrap();
    assert_eq!(names.len(), theirs.len());
    let largest = ours.iter().map(|[_, all]| *all).fold(0.0, f64::max);
    let mut logarithms = Vec::new();
    let mut worst = (0.0, String::new());
    for (name, theirs) in names.iter().zip(theirs) {
        let place = layout.entries.iter().position(|entry| entry.path == *name).unwrap();
        let [off, all] = ours[place];
        // Gradients that are 0 but for rounding: biases of keys.
        if all < 1e-10 * largest {
            continue;
        }
        let ratio = (off / all).sqrt() / theirs.as_f64().unwrap();
        logarithms.push(ratio.ln());
        if ratio > worst.0 {
            worst = (ratio, format!("{name}: {:.4}, PyTorch {theirs}", (off / all).sqrt()));
        }
    }
    let typical = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
    println!(
        "{} parameters, typically {typical:.3} of PyTorch's error; the worst {:.2}: {}",
        names.len(),
        worst.0,
        worst.1
    );
    assert!(typical <= 1.15, "typically {typical} of PyTorch's error");
    assert!(worst.0 <= 3.0, "{}", worst.1);
}

/// Captions of one length, or of two.
fn batch(model: &StableDiffusion, long: bool) -> MicroBatch {
    let shape = [3, 4, 6, 8];
    let normal = |name| tensor(standard_normal(1, "bf16", name, shape.iter().product()), shape, &cpu_device());
    let settings = TextSettings { clip_skip: 1, long_prompts: true };
    let second = if long { "two cats on the sea ".repeat(30) } else { "two cats".to_owned() };
    MicroBatch {
        latents: normal("latents"),
        noise: normal("noise"),
        timesteps: vec![10, 500, 999],
        token_ids: ["a red disc", &second, ""].map(|text| model.tokenizer.encode_with(text, settings)).to_vec(),
        weights: vec![1.0, 0.5, 2.0],
    }
}

#[test]
fn every_way_to_compute_a_gradient_gives_the_same_bits_and_is_near_f32() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let models = both(init_model(preset, 7));
        for long in [false, true] {
            let batch = batch(&models[0], long);
            let mut gradients = Vec::new();
            for train_text_encoder in [true, false] {
                let [full, kept] = models.each_ref().map(|model| computed(model, &batch, train_text_encoder, false));
                let recomputed = computed(&models[1], &batch, train_text_encoder, true);
                assert!(kept == recomputed, "{preset:?}, long captions {long}: recomputation changes bits");
                let off = relative(&kept.1, &full.1);
                println!("{preset:?}, long {long}, text encoder {train_text_encoder}: {off:.4}");
                assert!(off > 1e-4, "nothing was rounded");
                assert!(off < 0.06, "{preset:?}, long captions {long}, {train_text_encoder}: {off} from f32");
                gradients.push(kept.1);
            }
            // The UNet does not see whether the text encoder is trained.
            let unet = models[0].trained_layout(false).total;
            assert!(gradients[0][..unet] == gradients[1][..]);
        }
    }
}

#[test]
fn what_goes_in_and_comes_out_is_f32() {
    let [_, model] = both(init_model(Preset::Tiny, 7));
    let batch = batch(&model, false);
    let states = model.text_encoder.encode(&batch.token_ids, &cpu_device());
    assert_eq!(states.dtype(), DType::BF16);
    let prediction = model.unet.forward(batch.latents.clone(), &[10.0, 500.0, 999.0], states);
    assert_eq!(prediction.dtype(), DType::F32);
    assert_eq!(model.vae.decode(batch.latents).dtype(), DType::F32);
    let values: Vec<f32> = prediction.try_into_vec_as().unwrap();
    assert!(values.iter().all(|value| value.to_bits() & 0xFFFF == 0), "the last convolution's result is rounded");
}

#[test]
fn a_picture_is_drawn_alike() {
    let models = both(init_model(Preset::Tiny, 7));
    let request =
        SampleRequest { prompt: "a red disc".to_owned(), width: 64, height: 48, steps: 8, ..SampleRequest::default() };
    let noise = || tensor(standard_normal(3, "bf16", "start", 4 * 6 * 8), [1, 4, 6, 8], &cpu_device());
    let [full, found] = models
        .each_ref()
        .map(|model| -> Vec<f32> { denoise(model, &request, noise()).unwrap().try_into_vec_as().unwrap() });
    let off = relative(&found, &full);
    println!("latents after 8 steps with guidance: {off:.4}");
    assert!(off > 1e-5 && off < 0.05, "latents are {off} from those of f32");
    let [full, found] = models.each_ref().map(|model| sample(model, &request).unwrap().data);
    let mean = full.iter().zip(&found).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / full.len() as f64;
    assert!(mean < 3.0, "pixels differ by {mean} of 255 on average");
}

/// The same batch again and again, until it is known: the losses stay together, so small updates are not lost to rounding
/// (the parameters are f32).
#[test]
fn learning_follows_f32() {
    let curves = both(init_model(Preset::Tiny, 7)).map(|mut model| {
        let (layout, batch) = (model.trained_layout(true), batch(&model, false));
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let mut optimizer = AdamW::new(settings, layout.total);
        let groups = [Group { range: 0..layout.total, lr: 1e-3 }];
        let mut curve = Vec::new();
        for step in 1..=40 {
            let (losses, gradient) = computed(&model, &batch, true, step % 2 == 0);
            curve.push(losses.iter().zip(&batch.weights).map(|(loss, weight)| f64::from(loss * weight)).sum::<f64>());
            model.change_trained(&layout, &mut |offset, values| {
                optimizer.step_part(offset, values, &gradient, step, &groups);
            });
        }
        curve
    });
    let [full, found] = &curves;
    println!("f32 {full:?}\nbf16 {found:?}");
    assert!(full[39] < 0.7 * full[0], "f32 learns: {full:?}");
    for (step, (a, e)) in found.iter().zip(full).enumerate() {
        assert!((a / e - 1.0).abs() < 0.02, "step {step}: {a} instead of {e}");
    }
}
