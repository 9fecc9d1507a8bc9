//! What several tests need: the reference fixtures, and models with the weights that the fixtures were made with.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part")]

pub mod analytic;
pub mod numbers;

use ballast_model::tokenizer::{Padding, Tokenizer};
use ballast_model::{Device, StableDiffusion, cpu_device, tensor};
use burn::tensor::Tensor;
use numbers::Numbers;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file of `model/tests/fixtures`; `BALLAST_FIXTURES` says where they are on another machine.
pub fn fixture_path(name: &str) -> PathBuf {
    let moved = std::env::var_os("BALLAST_FIXTURES").map(PathBuf::from);
    moved.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")).join(name)
}

/// The numbers of one reference pipeline.
pub struct Reference {
    pub json: Value,
    numbers: Numbers,
}

impl Reference {
    pub fn load(name: &str) -> Self {
        let file = |ending: &str| fixture_path(&format!("parity_{name}.{ending}"));
        let numbers = Numbers::load(&file("json"), &file("safetensors")).unwrap();
        Self { json: numbers.json.clone(), numbers }
    }

    /// Shape and values of a stored tensor.
    pub fn tensor(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.numbers.floats(name)
    }

    pub fn padding(&self) -> Padding {
        if self.json["pad"] == "!" { Padding::ExclamationMark } else { Padding::EndOfText }
    }

    /// Names and shapes of a component's parameters.
    pub fn params(&self, component: &str) -> BTreeMap<String, Vec<usize>> {
        serde_json::from_value(self.json["params"][component].clone()).unwrap()
    }

    /// Writes the pipeline as a diffusers folder; `rename` gives the key to write for component and key.
    pub fn write_folder(&self, dir: &Path, rename: impl Fn(&str, &str) -> String) {
        let json = |path: &str, value: &Value| {
            std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.join(path), serde_json::to_vec(value).unwrap()).unwrap();
        };
        let config = &self.json["config"];
        json("model_index.json", &serde_json::json!({"_class_name": "StableDiffusionPipeline"}));
        json("scheduler/scheduler_config.json", &config["scheduler"]);
        for (component, file) in [
            ("text_encoder", "model.safetensors"),
            ("vae", "diffusion_pytorch_model.safetensors"),
            ("unet", "diffusion_pytorch_model.safetensors"),
        ] {
            json(&format!("{component}/config.json"), &config[component]);
            let params: Vec<_> = self
                .params(component)
                .into_iter()
                .map(|(key, shape)| (rename(component, &key), weight_bytes(component, &key, &shape), shape))
                .collect();
            let views = params
                .iter()
                .map(|(key, bytes, shape)| (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
            std::fs::write(dir.join(component).join(file), safetensors::serialize(views, None).unwrap()).unwrap();
        }
        std::fs::create_dir_all(dir.join("tokenizer")).unwrap();
        let merges = self.json["merges"].as_u64().unwrap() as usize;
        for (name, bytes) in Tokenizer::clip(merges, self.padding()).files() {
            std::fs::write(dir.join("tokenizer").join(name), bytes).unwrap();
        }
    }

    /// The pipeline itself.
    pub fn model(&self) -> StableDiffusion {
        self.model_on(&cpu_device())
    }

    /// The pipeline on another device.
    pub fn model_on(&self, device: &Device) -> StableDiffusion {
        let folder = tempfile::tempdir().unwrap();
        self.write_folder(folder.path(), |_, key| key.to_owned());
        StableDiffusion::load(folder.path(), device).unwrap()
    }

    pub fn token_ids(&self) -> Vec<Vec<i32>> {
        serde_json::from_value(self.json["token_ids"].clone()).unwrap()
    }

    pub fn prompts(&self) -> Vec<String> {
        serde_json::from_value(self.json["prompts"].clone()).unwrap()
    }

    /// Compares with a stored tensor: no element may be off by more than `tolerance` times the largest.
    pub fn assert_close<const D: usize>(&self, name: &str, actual: Tensor<D>, tolerance: f64) {
        let error = self.numbers.error(name, actual);
        assert!(error <= tolerance, "{name}: off by {error:e} of the largest");
        println!("{name}: {error:e}");
    }
}

fn weight_bytes(component: &str, key: &str, shape: &[usize]) -> Vec<u8> {
    weight(&format!("{component}.{key}"), shape).into_iter().flat_map(f32::to_le_bytes).collect()
}

/// `weight` of make_parity.py.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = draw(name, shape.iter().product());
    let fan_in: usize = shape[1..].iter().product();
    let scaled = |scale: f32| values.iter().map(|v| v * scale).collect();
    if name.ends_with(".bias") {
        scaled(0.05)
    } else if name.contains("token_embedding") {
        scaled(0.3)
    } else if name.contains("position_embedding") {
        scaled(0.1)
    } else if shape.len() == 1 {
        values.iter().map(|v| v * 0.1 + 1.0).collect()
    } else {
        scaled((0.9 / (fan_in as f64).sqrt()) as f32)
    }
}

/// `draw` of make_parity.py: splitmix64 over an FNV-1a hash of the name.
pub fn draw(name: &str, count: usize) -> Vec<f32> {
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    let one = |i: u64| {
        let mut z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        ((z >> 40) as f32 * 2f32.powi(-23) - 1.0) * 1.732_050_8
    };
    (1..=count as u64).map(one).collect()
}

/// An input of make_parity.py.
pub fn input<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
    tensor(draw(&format!("in.{name}"), shape.iter().product()), shape, &cpu_device())
}
