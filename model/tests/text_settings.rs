//! Clip skip and long prompts against diffusers and transformers: see `fixtures/make_text_settings.py`.
//!
//! Tolerances as in `parity`.

mod support;

use ballast_model::objective::weighted_loss;
use ballast_model::sampler::denoise;
use ballast_model::{MicroBatch, Preset, SampleRequest, StableDiffusion, TextSettings, Trainable, init_model};
use burn::tensor::Tensor;
use support::numbers::Numbers;
use support::{Reference, draw, fixture_path, input};

const FORWARD: f64 = 2e-5;
const GRADIENT: f64 = 2e-4;

const SETTINGS: TextSettings = TextSettings { clip_skip: 2, long_prompts: true };

/// A pipeline, and what it does with these settings.
struct Case {
    model: StableDiffusion,
    numbers: Numbers,
    prompts: Vec<String>,
}

fn each(check: impl Fn(&Case)) {
    for name in ["sd1", "sd2"] {
        println!("{name}");
        let file = |ending: &str| fixture_path(&format!("text_settings_{name}.{ending}"));
        let numbers = Numbers::load(&file("json"), &file("safetensors")).unwrap();
        let prompts = serde_json::from_value(numbers.json["prompts"].clone()).unwrap();
        check(&Case { model: Reference::load(name).model(), numbers, prompts });
    }
}

impl Case {
    #[track_caller]
    fn assert_close<const D: usize>(&self, name: &str, actual: Tensor<D>, tolerance: f64) {
        let error = self.numbers.error(name, actual);
        assert!(error <= tolerance, "{name}: off by {error:e} of the largest");
        println!("{name}: {error:e}");
    }

    /// Three samples, whose captions have two chunks, one, and three.
    fn batch(&self, samples: &[usize]) -> MicroBatch {
        let train = &self.numbers.json["train"];
        let list = |key: &str| -> Vec<f64> { serde_json::from_value(train[key].clone()).unwrap() };
        let [latents, noise] = ["latents", "noise"].map(|what| {
            let all: Tensor<4> = input(&format!("train.{what}"), [3, 4, 8, 8]);
            Tensor::cat(samples.iter().map(|i| all.clone().narrow(0, *i, 1)).collect(), 0)
        });
        let of = |values: Vec<f64>| samples.iter().map(move |i| values[*i]);
        MicroBatch {
            latents,
            noise,
            timesteps: of(list("timesteps")).map(|t| t as u32).collect(),
            token_ids: samples.iter().map(|i| self.model.tokenizer.encode_with(&self.prompts[*i], SETTINGS)).collect(),
            weights: of(list("weights")).map(|w| w as f32).collect(),
        }
    }

    fn normaliser(&self) -> f32 {
        self.numbers.json["train"]["normaliser"].as_f64().unwrap() as f32
    }

    fn trainable(&self) -> Trainable {
        let text_encoder = self.model.text_encoder.clone().with_clip_skip(SETTINGS.clip_skip).unwrap();
        Trainable::new(self.model.unet.clone(), text_encoder, true)
    }
}

#[test]
fn chunks_have_the_ids_of_transformers() {
    each(|case| {
        let chunks: Vec<Vec<Vec<i32>>> = serde_json::from_value(case.numbers.json["chunks"].clone()).unwrap();
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 3]);
        for (prompt, chunks) in case.prompts.iter().zip(chunks) {
            assert_eq!(case.model.tokenizer.encode_long(prompt), chunks.concat());
        }
    });
}

#[test]
fn states_of_long_prompts_and_of_the_layer_before_the_last() {
    each(|case| {
        let states = |prompt: &str, clip_skip: usize| {
            let settings = TextSettings { clip_skip, long_prompts: true };
            case.model.encode_prompts(&[prompt], settings).unwrap().remove(0)
        };
        case.assert_close("states.skip1.0", states(&case.prompts[0], 1), FORWARD);
        for (i, prompt) in case.prompts.iter().enumerate() {
            case.assert_close(&format!("states.skip2.{i}"), states(prompt, 2), FORWARD);
        }
    });
}

#[test]
fn a_long_prompt_is_guided_away_from_a_short_one() {
    each(|case| {
        let factor = case.model.vae.factor();
        let request = SampleRequest {
            prompt: case.prompts[0].clone(),
            negative_prompt: case.prompts[1].clone(),
            width: 8 * factor,
            height: 6 * factor,
            steps: 4,
            guidance_scale: 7.5,
            text: SETTINGS,
            ..SampleRequest::default()
        };
        let latents = denoise(&case.model, &request, input("pipe.latents", [1, 4, 6, 8])).unwrap();
        case.assert_close("picture", latents, 1e-4);
    });
}

#[test]
fn a_step_with_captions_of_three_lengths() {
    each(|case| {
        let trainable = case.trainable();
        let scheduler = &case.model.noise_scheduler;
        let loss = weighted_loss(
            &trainable.unet,
            &trainable.text_encoder,
            scheduler,
            case.batch(&[0, 1, 2]),
            case.normaliser(),
        );
        case.assert_close("train.per_sample", loss.per_sample, FORWARD);
        let gradient = trainable.gradient(loss.scalar);
        let strings = |key: &str| -> Vec<String> { serde_json::from_value(case.numbers.json[key].clone()).unwrap() };
        let (_, rows) = case.numbers.values("grad.summary");
        let largest = rows.chunks(2).map(|row| row[0]).fold(0.0, f64::max);
        let part = |name: &str| {
            let entry = trainable.layout().entries.iter().find(|entry| entry.path == name).unwrap();
            &gradient[entry.offset..entry.offset + entry.len]
        };
        for (name, row) in strings("grad.names").iter().zip(rows.chunks(2)) {
            let values = part(name);
            let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let direction = draw(&format!("direction.{name}"), values.len());
            let projection: f64 = values.iter().zip(direction).map(|(v, d)| f64::from(*v) * f64::from(d)).sum();
            let scale = row[0].max(1e-3 * largest);
            for (actual, expected) in [(norm, row[0]), (projection, row[1])] {
                assert!((actual - expected).abs() < GRADIENT * scale, "{name}: {actual:e} instead of {expected:e}");
            }
        }
        let none = strings("grad.none");
        assert!(!none.is_empty());
        for name in none {
            assert!(part(&name).iter().all(|value| *value == 0.0), "{name} belongs to a layer that is skipped");
            assert!(!trainable.text_encoder.uses(name.trim_start_matches("text_encoder.")), "{name}");
        }
    });
}

/// What a caption means does not depend on which others are in its micro-batch.
#[test]
fn a_sample_has_the_same_loss_beside_any_other() {
    each(|case| {
        let trainable = case.trainable();
        let losses = |samples: &[usize]| -> Vec<f32> {
            let Trainable { unet, text_encoder, .. } = &trainable;
            let loss = weighted_loss(unet, text_encoder, &case.model.noise_scheduler, case.batch(samples), 1.0);
            loss.per_sample.without_autodiff().try_into_vec_as().unwrap()
        };
        let alone: Vec<f32> = (0..3).map(|sample| losses(&[sample])[0]).collect();
        for samples in [&[0, 1][..], &[2, 1], &[1, 2, 0], &[1, 0, 1, 2]] {
            for (sample, loss) in samples.iter().zip(losses(samples)) {
                assert!((loss / alone[*sample] - 1.0).abs() < 1e-6, "{sample} in {samples:?}: {loss}, {alone:?}");
            }
        }
    });
}

#[test]
fn a_model_says_how_it_was_trained_in_every_form() {
    let mut model = init_model(Preset::Tiny, 1);
    assert_eq!(model.text_settings(), TextSettings::default());
    model.set_text_settings(SETTINGS).unwrap();
    let too_much = TextSettings { clip_skip: 3, ..SETTINGS };
    let error = model.set_text_settings(too_much).unwrap_err();
    assert_eq!(error.to_string(), "a clip skip of 3 is too much for a text encoder of 2 layers: 1 (none) to 2");
    let place = tempfile::tempdir().unwrap();
    let [folder, single, again] = ["a", "b.safetensors", "c"].map(|name| place.path().join(name));
    let precision = ballast_model::SavePrecision::Fp32;
    let open = |path: &std::path::Path| ballast_model::Checkpoint::open(path, &Default::default()).unwrap();
    model.save_diffusers(&folder, precision).unwrap();
    open(&folder).write_single_file(&single, precision, &Default::default(), false).unwrap();
    open(&single).write_diffusers(&again, precision, false).unwrap();
    for path in [&folder, &single, &again] {
        assert_eq!(open(path).text_settings(), SETTINGS, "{}", path.display());
        assert_eq!(open(path).load(&ballast_model::cpu_device()).unwrap().text_settings(), SETTINGS);
    }
    // One that its own model is too small for is refused where it stands.
    let config = folder.join("text_encoder/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"ballast_clip_skip\": 2", "\"ballast_clip_skip\": 9")).unwrap();
    let error = ballast_model::Checkpoint::open(&folder, &Default::default()).err().expect("nine of two layers");
    let told = ballast_common::error_chain(&error);
    assert!(told.contains("text_encoder/config.json") && told.contains("clip skip of 9"), "{told}");
}
