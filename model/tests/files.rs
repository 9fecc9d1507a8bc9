//! Reading and writing models: what other tools name differently, what is damaged, what is missing.

mod support;

use ballast_common::error_chain as told;
use ballast_model::{CheckpointError, Preset, SavePrecision, StableDiffusion, Trainable, cpu_device, init_model};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use support::Reference;

fn params(model: StableDiffusion) -> Vec<f32> {
    Trainable::new(model.unet, model.text_encoder, true).params()
}

fn load(dir: &Path) -> Result<StableDiffusion, CheckpointError> {
    StableDiffusion::load(dir, &cpu_device())
}

#[test]
fn old_and_new_key_names_are_read() {
    let reference = Reference::load("sd1");
    let folder = tempfile::tempdir().unwrap();
    reference.write_folder(folder.path(), |component, key| match component {
        "text_encoder" => key.trim_start_matches("text_model.").to_owned(), // transformers 5
        "vae" if key.contains(".attentions.") => {
            let old = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
            old.iter().fold(key.to_owned(), |key, (new, old)| key.replace(new, old))
        }
        _ => key.to_owned(),
    });
    let model = load(folder.path()).unwrap();
    let image = support::input("vae.image", [1, 3, 32, 48]) * 0.5;
    reference.assert_close("vae.mean", model.vae.encode(image).mean, 2e-5);
    assert_eq!(params(model), params(reference.model()));
}

#[test]
fn half_precision_is_rounded_once() {
    let model = init_model(Preset::Tiny, 1);
    let folder = tempfile::tempdir().unwrap();
    model.save_diffusers(folder.path(), SavePrecision::Fp16).unwrap();
    let config = std::fs::read_to_string(folder.path().join("text_encoder/config.json")).unwrap();
    assert!(config.contains(r#""torch_dtype": "float16""#), "{config}");
    let rounded: Vec<f32> = params(model).iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    assert_eq!(params(load(folder.path()).unwrap()), rounded);
}

#[test]
fn a_value_beyond_half_precision_is_refused() {
    let mut model = init_model(Preset::Tiny, 1);
    let mut trainable = Trainable::new(model.unet.clone(), model.text_encoder.clone(), false);
    let entry = trainable.layout().entries[5].clone();
    let mut values = trainable.params();
    values[entry.offset] = 70_000.0;
    trainable.set_params(&values);
    model.unet = trainable.unet;
    let folder = tempfile::tempdir().unwrap();
    let error = model.save_diffusers(folder.path(), SavePrecision::Fp16).unwrap_err();
    assert!(told(&error).contains(entry.path.trim_start_matches("unet.")), "{}", told(&error));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("unet")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["config.json"], "no half-written file stays");
    model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
}

#[test]
fn every_configuration_key_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = init_model(Preset::TinyV2, 1);
    model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    let path = folder.path().join("unet/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["a_key_of_the_future"] = serde_json::json!([1, "two"]);
    std::fs::write(&path, config.to_string()).unwrap();
    let again = tempfile::tempdir().unwrap();
    load(folder.path()).unwrap().save_diffusers(again.path(), SavePrecision::Fp32).unwrap();
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(again.path().join("unet/config.json")).unwrap()).unwrap();
    assert_eq!(saved, config);
}

#[test]
fn single_files_are_the_same_bytes_and_complete() {
    for (preset, key, shape) in [
        (Preset::Tiny, "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight", [16, 16]),
        (Preset::TinyV2, "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight", [48, 16]),
    ] {
        let model = init_model(preset, 1);
        let folder = tempfile::tempdir().unwrap();
        let metadata = BTreeMap::from([("ballast.step".to_owned(), "12".to_owned())]);
        let write = |name: &str| {
            let path = folder.path().join(name);
            model.save_single_file(&path, SavePrecision::Fp32, &metadata).unwrap();
            std::fs::read(path).unwrap()
        };
        let bytes = write("a.safetensors");
        assert_eq!(bytes, write("b/c.safetensors"));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["ballast.step"], "12");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor(key).unwrap().shape(), shape);
        let total: usize = file.tensors().iter().map(|(_, t)| t.data().len() / 4).sum();
        use burn::module::Module;
        assert_eq!(total, model.unet.num_params() + model.vae.num_params() + model.text_encoder.num_params());
    }
}

#[test]
fn missing_files_are_named_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let model = init_model(Preset::Tiny, 1);
    let error = load(&folder.path().join("nowhere")).unwrap_err();
    assert!(told(&error).contains("model_index.json"), "{}", told(&error));
    for name in [
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let error = told(&load(folder.path()).unwrap_err());
        assert!(error.contains(name) && error.contains("model folder") | error.contains("each of"), "{error}");
    }
    model.save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    std::fs::remove_dir_all(folder.path().join("tokenizer")).unwrap();
    assert!(told(&load(folder.path()).unwrap_err()).contains("tokenizer"));
}

/// Rewrites the UNet's file with other keys.
fn with_unet(dir: &Path, change: impl Fn(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) {
    let path = dir.join("unet/diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<_, _> =
        file.tensors().into_iter().map(|(key, t)| (key, (t.shape().to_vec(), t.data().to_vec()))).collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(key, (shape, data))| {
        (key, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn keys_that_do_not_fit_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    init_model(Preset::Tiny, 1).save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    with_unet(folder.path(), |tensors| {
        let (shape, data) = tensors.remove("conv_in.bias").unwrap();
        tensors.insert("conv_extra.bias".to_owned(), (shape, data));
        tensors.get_mut("conv_out.weight").unwrap().0 = vec![16, 4, 3, 3];
    });
    let error = told(&load(folder.path()).unwrap_err());
    for part in [
        "unet/diffusion_pytorch_model.safetensors",
        "missing: `conv_in.bias`",
        "not expected: `conv_extra.bias`",
        "`conv_out.weight: [16, 4, 3, 3] instead of [4, 16, 3, 3]`",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn damaged_files_are_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    init_model(Preset::Tiny, 1).save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    let path = folder.path().join("unet/diffusion_pytorch_model.safetensors");
    let sound = std::fs::read(&path).unwrap();
    let mut absurd = sound.clone();
    absurd[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut broken_header = sound.clone();
    broken_header[8] = b'[';
    let mut overlapping = sound.clone();
    let at = overlapping.windows(16).position(|w| w == b"\"data_offsets\":[").unwrap() + 16;
    overlapping[at] = b'7';
    let damages: [(&[u8], &str); 6] = [
        (&sound[..4], "not a safetensors file"),
        (&absurd, "not a safetensors file"),
        (&sound[..100], "not a safetensors file"),
        (&broken_header, "header"),
        (&overlapping, "header"),
        (&sound[..sound.len() - 1], "truncated or damaged"),
    ];
    for (bytes, expected) in damages {
        std::fs::write(&path, bytes).unwrap();
        let error = told(&load(folder.path()).unwrap_err());
        assert!(error.contains(expected) && error.contains("unet"), "{error}");
    }
}

#[test]
fn settings_that_are_not_implemented_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    init_model(Preset::Tiny, 1).save_diffusers(folder.path(), SavePrecision::Fp32).unwrap();
    for (file, key, value, expected) in [
        ("unet/config.json", "class_embed_type", serde_json::json!("timestep"), "`class_embed_type`"),
        ("unet/config.json", "attention_head_dim", serde_json::json!(5), "heads"),
        ("unet/config.json", "block_out_channels", serde_json::json!([]), "empty"),
        ("vae/config.json", "norm_num_groups", serde_json::json!(3), "groups"),
        ("text_encoder/config.json", "hidden_act", serde_json::json!("relu"), "quick_gelu"),
        ("scheduler/scheduler_config.json", "prediction_type", serde_json::json!("sample"), "v_prediction"),
        ("scheduler/scheduler_config.json", "beta_end", serde_json::json!(2.0), "beta"),
    ] {
        let path = folder.path().join(file);
        let sound = std::fs::read(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&sound).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = told(&load(folder.path()).unwrap_err());
        assert!(error.contains(file) && error.contains(expected), "{error}");
        std::fs::write(&path, sound).unwrap();
    }
    load(folder.path()).unwrap();
}
