//! What is written is what is read.

use super::{files, open, refusal, store, stored, told, weights};
use ballast_model::checkpoint::Form;
use ballast_model::{
    Checkpoint, OpenOptions, PredictionType, Preset, SavePrecision, Trainable, cpu_device, init_model,
};
use std::collections::BTreeMap;
use std::path::Path;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn with_config(dir: &Path) -> OpenOptions {
    OpenOptions { config: Some(dir.to_owned()), ..OpenOptions::default() }
}

#[test]
fn every_form_gives_back_the_same_bits() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let model = init_model(preset, 3);
        let expected = weights(&model);
        let place = tempfile::tempdir().unwrap();
        let [folder, single, folder_again, single_again] =
            ["a", "b.safetensors", "c", "d.safetensors"].map(|name| place.path().join(name));
        model.save_diffusers(&folder, SavePrecision::Fp32).unwrap();
        model.save_single_file(&single, SavePrecision::Fp32, &BTreeMap::new()).unwrap();
        let opened = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
        opened(&single).write_diffusers(&folder_again, SavePrecision::Fp32, false).unwrap();
        opened(&folder).write_single_file(&single_again, SavePrecision::Fp32, &BTreeMap::new(), false).unwrap();
        assert!(files(&folder) == files(&folder_again), "a single file carries all of a folder");
        assert!(std::fs::read(&single).unwrap() == std::fs::read(&single_again).unwrap());
        assert_eq!((opened(&folder).form(), opened(&single).form()), (Form::Diffusers, Form::SingleFile));
        let ids = [model.tokenizer.encode("a red boat on the sea")];
        let text_states = |model: &ballast_model::StableDiffusion| {
            model
                .text_encoder
                .encode(&ids, &cpu_device())
                .without_autodiff()
                .into_data()
                .as_slice::<f32>()
                .unwrap()
                .to_vec()
        };
        for path in [&folder, &single] {
            assert_eq!(opened(path).notes(), [""; 0].as_slice());
            let again = open(path, &OpenOptions::default()).unwrap();
            assert!(weights(&again) == expected, "{}", path.display());
            assert_eq!(text_states(&again), text_states(&model));
            assert_eq!(again.noise_scheduler.config(), model.noise_scheduler.config());
            assert_eq!(again.tokenizer.encode("two cats"), model.tokenizer.encode("two cats"));
        }
    }
}

#[test]
fn sixteen_bits_are_rounded_once_and_kept_by_default() {
    let model = init_model(Preset::Tiny, 4);
    let exact = weights(&model);
    let fp16: fn(u32) -> u32 = |bits| half::f16::from_f32(f32::from_bits(bits)).to_f32().to_bits();
    let bf16: fn(u32) -> u32 = |bits| half::bf16::from_f32(f32::from_bits(bits)).to_f32().to_bits();
    let cases = [(SavePrecision::Fp16, fp16, "float16"), (SavePrecision::Bf16, bf16, "bfloat16")];
    for (precision, round, name) in cases {
        let place = tempfile::tempdir().unwrap();
        let [folder, single, again] = ["a", "b.safetensors", "c.safetensors"].map(|name| place.path().join(name));
        model.save_diffusers(&folder, precision).unwrap();
        model.save_single_file(&single, precision, &BTreeMap::new()).unwrap();
        let text = std::fs::read_to_string(folder.join("text_encoder/config.json")).unwrap();
        assert!(text.contains(&format!(r#""torch_dtype": "{name}""#)), "{text}");
        let rounded: BTreeMap<_, Vec<u32>> =
            exact.iter().map(|(key, bits)| (key.clone(), bits.iter().map(|b| round(*b)).collect())).collect();
        for path in [&folder, &single] {
            assert!(weights(&open(path, &OpenOptions::default()).unwrap()) == rounded, "{}", path.display());
            assert_eq!(Checkpoint::open(path, &OpenOptions::default()).unwrap().precision(), precision);
        }
        let checkpoint = Checkpoint::open(&single, &OpenOptions::default()).unwrap();
        checkpoint.write_single_file(&again, precision, &BTreeMap::new(), false).unwrap();
        assert!(std::fs::read(&single).unwrap() == std::fs::read(&again).unwrap());
    }
}

#[test]
fn a_value_beyond_half_precision_is_refused_and_leaves_nothing() {
    let mut model = init_model(Preset::Tiny, 1);
    let mut trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), false);
    let mut values = trainable.params();
    values[trainable.layout().entries[5].offset] = 70_000.0;
    trainable.set_params(&values);
    model.unet = trainable.unet;
    let place = tempfile::tempdir().unwrap();
    model.save_diffusers(&place.path().join("a"), SavePrecision::Fp32).unwrap();
    let checkpoint = Checkpoint::open(&place.path().join("a"), &OpenOptions::default()).unwrap();
    let error = checkpoint.write_diffusers(&place.path().join("b"), SavePrecision::Fp16, false).unwrap_err();
    assert!(told(&error).contains("±65504"), "{}", told(&error));
    let single = place.path().join("b.safetensors");
    checkpoint.write_single_file(&single, SavePrecision::Fp16, &BTreeMap::new(), false).unwrap_err();
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["a"], "nothing half-written stays");
    checkpoint.write_single_file(&single, SavePrecision::Bf16, &BTreeMap::new(), false).unwrap();
}

#[test]
fn a_file_of_other_tools_is_described_by_its_shapes_or_by_a_folder() {
    for preset in [Preset::Tiny, Preset::TinyV2] {
        let model = init_model(preset, 5);
        let place = tempfile::tempdir().unwrap();
        let [folder, path] = ["a", "b.safetensors"].map(|name| place.path().join(name));
        model.save_diffusers(&folder, SavePrecision::Fp32).unwrap();
        model.save_single_file(&path, SavePrecision::Fp32, &BTreeMap::new()).unwrap();
        let mut tensors = stored(&path);
        if preset == Preset::Tiny {
            // The names of transformers 5, in which a text encoder lacks its prefix.
            let start = "cond_stage_model.transformer.";
            let renamed = |key: String| key.replace(&format!("{start}text_model."), start);
            tensors = tensors.into_iter().map(|(key, tensor)| (renamed(key), tensor)).collect();
        }
        tensors.insert("somebodys.note".to_owned(), (vec![1], vec![0]));
        store(&path, &tensors, &[("ss_comment", "by another tool")]);
        let derived = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
        let notes = derived.notes().join("\n");
        assert!(notes.contains("attention heads in the text encoder"), "{notes}");
        assert!(notes.contains("ignored: `somebodys.note`"), "{notes}");
        assert!(weights(&derived.load(&cpu_device()).unwrap()) == weights(&model));
        let told_by_folder = Checkpoint::open(&path, &with_config(&folder)).unwrap();
        assert!(!told_by_folder.notes().iter().any(|note| note.contains("guess")));
        let again = place.path().join("c");
        told_by_folder.write_diffusers(&again, SavePrecision::Fp32, false).unwrap();
        assert!(files(&folder) == files(&again));
        let described = told_by_folder.describe();
        assert_eq!(described.metadata["ss_comment"], "by another tool");
        let single = place.path().join("d.safetensors");
        let given = BTreeMap::from([("modelspec.date".to_owned(), "2026-01-01".to_owned())]);
        told_by_folder.write_single_file(&single, SavePrecision::Fp32, &given, false).unwrap();
        let kept = Checkpoint::open(&single, &OpenOptions::default()).unwrap().describe().metadata;
        assert_eq!((kept["ss_comment"].as_str(), kept["modelspec.date"].as_str()), ("by another tool", "2026-01-01"));
        assert!(!stored(&single).contains_key("somebodys.note"));
    }
}

#[test]
fn what_a_model_predicts_is_said_by_a_person_or_a_file() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("v2.safetensors");
    init_model(Preset::TinyV2, 1).save_single_file(&path, SavePrecision::Fp32, &BTreeMap::new()).unwrap();
    let tensors = stored(&path);
    let predicts = |options: &OpenOptions| {
        let checkpoint = Checkpoint::open(&path, options).unwrap();
        let asked = checkpoint.notes().iter().any(|note| note.contains("--prediction-type v"));
        (checkpoint.describe().prediction_type, asked)
    };
    let nothing = OpenOptions::default();
    let v = OpenOptions { prediction_type: Some(PredictionType::VPrediction), ..OpenOptions::default() };
    assert_eq!(predicts(&nothing), ("v_prediction", false), "our own file carries it");
    store(&path, &tensors, &[]);
    assert_eq!(predicts(&nothing), ("epsilon", true));
    assert_eq!(predicts(&v), ("v_prediction", false));
    store(&path, &tensors, &[("modelspec.prediction_type", "v")]);
    assert_eq!(predicts(&nothing), ("v_prediction", false));
    store(&path, &tensors, &[]);
    let yaml = place.path().join("v2.yaml");
    std::fs::write(&yaml, "model:\n  params:\n    parameterization: \"v\"\n").unwrap();
    assert_eq!(predicts(&nothing), ("v_prediction", false));
    std::fs::write(&yaml, "model:\n  params:\n    linear_start: 0.00085\n").unwrap();
    assert_eq!(predicts(&nothing), ("epsilon", false));
}

/// Divides the file of a UNet's folder into two with an index: their names, and which tensor is in which.
pub(super) fn divide(unet: &Path) -> ([&'static str; 2], serde_json::Map<String, serde_json::Value>) {
    let whole = unet.join("diffusion_pytorch_model.safetensors");
    let tensors = stored(&whole);
    std::fs::remove_file(whole).unwrap();
    let names = ["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"];
    let (mut shards, mut map) = ([BTreeMap::new(), BTreeMap::new()], serde_json::Map::new());
    for (number, (key, tensor)) in tensors.into_iter().enumerate() {
        map.insert(key.clone(), names[number % 2].into());
        shards[number % 2].insert(key, tensor);
    }
    names.iter().zip(&shards).for_each(|(name, shard)| store(&unet.join(name), shard, &[]));
    let index = serde_json::json!({"metadata": {}, "weight_map": map}).to_string();
    std::fs::write(unet.join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    (names, map)
}

#[test]
fn shards_and_variants_are_read_and_the_full_precision_is_preferred() {
    let model = init_model(Preset::Tiny, 6);
    let expected = weights(&model);
    let place = tempfile::tempdir().unwrap();
    let [folder, half] = ["a", "b"].map(|name| place.path().join(name));
    model.save_diffusers(&folder, SavePrecision::Fp32).unwrap();
    model.save_diffusers(&half, SavePrecision::Fp16).unwrap();
    let variant = folder.join("unet/diffusion_pytorch_model.fp16.safetensors");
    std::fs::copy(half.join(UNET), &variant).unwrap();
    assert!(weights(&open(&folder, &OpenOptions::default()).unwrap()) == expected, "the full precision is preferred");
    let fp16 = OpenOptions { variant: Some("fp16".to_owned()), ..OpenOptions::default() };
    let error = told(&open(&folder, &fp16).unwrap_err());
    assert!(error.contains("no variant `fp16`") && error.contains("text_encoder"), "{error}");

    // Two files and an index instead of one.
    let (names, map) = divide(&folder.join("unet"));
    let index = folder.join("unet/diffusion_pytorch_model.safetensors.index.json");
    let write = |map: &serde_json::Map<String, serde_json::Value>| {
        std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    assert!(weights(&open(&folder, &OpenOptions::default()).unwrap()) == expected);
    let mut wrong = map.clone();
    wrong.insert("conv_in.bias".to_owned(), names[usize::from(map["conv_in.bias"] == names[0])].into());
    write(&wrong);
    assert!(refusal(&folder).contains("conv_in.bias in x-0000"), "{}", refusal(&folder));
    for outside in ["../../b/unet/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", ""] {
        wrong.insert("conv_in.bias".to_owned(), outside.into());
        write(&wrong);
        assert!(refusal(&folder).contains("not the name of a file beside it"), "{}", refusal(&folder));
    }
    std::fs::remove_file(&index).unwrap();
    let checkpoint = Checkpoint::open(&folder, &OpenOptions::default()).unwrap();
    assert!(checkpoint.notes().join("\n").contains("only the variant `fp16`"), "{:?}", checkpoint.notes());
}

#[test]
fn nothing_is_replaced_that_is_not_to_be() {
    let place = tempfile::tempdir().unwrap();
    let [folder, single, other] = ["a", "b.safetensors", "home"].map(|name| place.path().join(name));
    init_model(Preset::Tiny, 1).save_diffusers(&folder, SavePrecision::Fp32).unwrap();
    let second = place.path().join("second");
    init_model(Preset::Tiny, 2).save_diffusers(&second, SavePrecision::Fp32).unwrap();
    let checkpoint = Checkpoint::open(&folder, &OpenOptions::default()).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("letter.txt"), "dear").unwrap();
    std::fs::write(&single, "old").unwrap();
    let to_folder = |path: &Path, replace| {
        checkpoint.write_diffusers(path, SavePrecision::Fp32, replace).map_err(|error| told(&error))
    };
    let to_file = |path: &Path, replace| {
        checkpoint.write_single_file(path, SavePrecision::Fp32, &BTreeMap::new(), replace).map_err(|error| told(&error))
    };
    assert!(to_folder(&second, false).unwrap_err().contains("exists already"));
    assert!(to_folder(&other, true).unwrap_err().contains("no model's folder"));
    assert!(to_folder(&single, true).unwrap_err().contains("no model's folder"));
    assert!(to_file(&single, false).unwrap_err().contains("exists already"));
    assert!(to_file(&other, true).unwrap_err().contains("is a folder"));
    assert_eq!(std::fs::read(&single).unwrap(), b"old");
    to_folder(&second, true).unwrap();
    to_file(&single, true).unwrap();
    assert!(files(&second) == files(&folder));
    to_folder(&folder, true).unwrap(); // onto itself
    assert!(files(&second) == files(&folder));
    let mut left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a", "b.safetensors", "home", "second"]);
}
