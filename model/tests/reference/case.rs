//! A case: a model folder and the numbers that PyTorch gets from it.

use crate::fixtures::support::numbers::Numbers;
use crate::report::Report;
use crate::{parts, schedules, training};
use ballast_common::error_chain as chain;
use ballast_model::{StableDiffusion, cpu_device};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A case as it was found.
pub(crate) enum Case {
    /// To be compared.
    Open(Box<OpenCase>),
    /// Of a kind that is refused, and why.
    Refused(String),
}

/// Both sides of the comparison.
pub(crate) struct OpenCase {
    pub(crate) model: StableDiffusion,
    pub(crate) numbers: Numbers,
    /// The settings of the case: sizes, timesteps, prompts.
    pub(crate) parity: Value,
    /// What all schedulers of the case have in common.
    scheduler: Value,
}

/// The names of the cases in a folder, in order.
pub(crate) fn find(dir: &Path) -> Result<Vec<String>, String> {
    let numbers = dir.join("numbers");
    let entries = std::fs::read_dir(&numbers).map_err(|error| format!("{}: {error}", numbers.display()))?;
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> =
        files.filter_map(|file| Some(file.strip_suffix(".parity.safetensors")?.to_owned())).collect();
    names.sort();
    if names.is_empty() {
        return Err(format!("{} holds no CASE.parity.safetensors", numbers.display()));
    }
    Ok(names)
}

impl Case {
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self, String> {
        let folder = dir.join("models").join(name);
        let loaded = StableDiffusion::load(&folder, &cpu_device());
        if read_json(&folder.join("model_index.json"))?["_class_name"] == "StableDiffusionXLPipeline" {
            return match loaded {
                Err(error) => Ok(Self::Refused(format!("SDXL is not supported: {}", chain(&error)))),
                Ok(_) => Err("an SDXL pipeline was loaded".to_owned()),
            };
        }
        let model = loaded.map_err(|error| chain(&error))?;
        let file = |ending: &str| -> PathBuf { dir.join("numbers").join(format!("{name}.parity.{ending}")) };
        let numbers = Numbers::load(&file("json"), &file("safetensors"))?;
        let parity = numbers.json["case"]["parity"].clone();
        let own = read_json(&folder.join("scheduler/scheduler_config.json"))?;
        let mut scheduler = json!({"clip_sample": false});
        for key in ["beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"] {
            scheduler[key] = own[key].clone();
        }
        Ok(Self::Open(Box::new(OpenCase { model, numbers, parity, scheduler })))
    }
}

impl OpenCase {
    pub(crate) fn compare(&self) -> Report {
        let mut report = Report::default();
        parts::tokens(self, &mut report);
        parts::text(self, &mut report);
        parts::autoencoder(self, &mut report);
        parts::unet(self, &mut report);
        schedules::tables(self, &mut report);
        schedules::samplers(self, &mut report);
        schedules::pipeline(self, &mut report);
        // Absent where the numbers were made with --no-train.
        if !self.numbers.json["train"].is_null() {
            training::weighted(self, &mut report);
            training::steps(self, &mut report);
        }
        report.without_counterpart =
            self.numbers.not_asked().into_iter().filter(|name| !name.starts_with("in.")).collect();
        report
    }

    /// The scheduler configuration of the case with some keys of its own.
    pub(crate) fn scheduler(&self, keys: &Value) -> Value {
        let mut config = self.scheduler.clone();
        for (key, value) in keys.as_object().expect("an object") {
            config[key] = value.clone();
        }
        config
    }

    /// Token ids of some of the prompts.
    pub(crate) fn token_ids(&self, prompts: &[usize]) -> Vec<Vec<i32>> {
        let (shape, ids) = self.numbers.values("tok.ids0");
        let rows: Vec<&[f64]> = ids.chunks(shape[1]).collect();
        prompts.iter().map(|prompt| rows[*prompt].iter().map(|id| *id as i32).collect()).collect()
    }
}

/// A list of numbers.
pub(crate) fn list<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

fn read_json(path: &Path) -> Result<Value, String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}
