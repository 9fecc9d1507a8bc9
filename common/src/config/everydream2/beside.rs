//! The files that a `train.json` names: the optimizer's settings and the prompts of the samples.

use std::path::PathBuf;

use serde_json::Value;

use super::json::JsonFile;
use super::{Translation, keys};

impl Translation<'_> {
    /// Takes over the optimizer's settings: `base`, and `text_encoder_overrides` where they differ.
    pub(super) fn optimizer_file(&mut self) {
        let Some(value) = self.value("optimizer_config") else { return };
        let Some(path) = value.as_str().map(|path| self.existing_path(path)) else {
            return self.complain("optimizer_config", format!("is {value}; allowed: the path of a JSON file"), None);
        };
        let file = match JsonFile::read(&path) {
            Ok(file) => file,
            Err(problem) => return self.raw.add_problem(problem),
        };
        let block = |name: &str| file.object.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
        let (base, text_encoder) = (block("base"), block("text_encoder_overrides"));
        let mut left_out = Vec::new();
        for (key, value) in &base {
            let location = format!("{} \"base\" \"{key}\"", file.location("base"));
            let name = format!("optimizer_config, base.{key}");
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("optimizer", value) => self.optimizer_kind(value, location),
                ("lr", value) => self.set_from("optimizer.lr", value.clone(), location, &name),
                ("betas", Value::Array(betas)) if betas.len() == 2 => {
                    self.set_from("optimizer.beta1", betas[0].clone(), location.clone(), &name);
                    self.set_from("optimizer.beta2", betas[1].clone(), location, &name);
                }
                ("epsilon" | "eps", value) => self.set_from("optimizer.eps", value.clone(), location, &name),
                ("weight_decay", value) => self.set_from("optimizer.weight_decay", value.clone(), location, &name),
                ("lr_scheduler", value) if !self.is_on("lr_scheduler") => self.lr_scheduler(value.clone(), location),
                ("lr_scheduler", _) => {}
                (key, value) if !keys::asks_for_nothing(value) => left_out.push(format!("base.{key}")),
                _ => {}
            }
        }
        for (key, value) in &text_encoder {
            let location = format!("{} \"text_encoder_overrides\" \"{key}\"", file.location("text_encoder_overrides"));
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                // A rate of 0 is replaced by the base's there.
                ("lr", value) if keys::asks_for_nothing(value) => {}
                ("lr", value) => {
                    let name = "optimizer_config, text_encoder_overrides.lr";
                    self.set_from("optimizer.text_encoder_lr", value.clone(), location, name);
                }
                (key, value) if base.get(key) != Some(value) => left_out.push(format!("text_encoder_overrides.{key}")),
                _ => {}
            }
        }
        let freezing = file.object.get("text_encoder_freezing").and_then(Value::as_object);
        let freezing = freezing.into_iter().flatten().filter(|(_, value)| !keys::asks_for_nothing(value));
        left_out.extend(freezing.map(|(key, _)| format!("text_encoder_freezing.{key}")));
        if !left_out.is_empty() {
            let text = format!("optimizer_config: no equal of {}", left_out.join(", "));
            self.note(text);
        }
    }

    fn optimizer_kind(&mut self, value: &Value, location: String) {
        if value == "adamw8bit" {
            self.note("optimizer_config: adamw8bit is AdamW with its state in 32 bits here");
        }
        // Another optimizer's learning rate is a thousand times as high, so a silent AdamW would ruin the model.
        let kind = if value == "adamw8bit" { "adamw".into() } else { value.clone() };
        self.set_from("optimizer.kind", kind, location, "optimizer_config, base.optimizer");
    }

    /// Takes over the samples' prompts and settings.
    pub(super) fn samples(&mut self) {
        let every = self.value("sample_steps").unwrap_or_default();
        let every = every.as_u64().map_or(every, |steps| steps.div_ceil(self.count("grad_accum")).into());
        self.set("sample.every_steps", "sample_steps", every);
        let Some(value) = self.value("sample_prompts") else { return };
        let Some(path) = value.as_str().map(|path| self.existing_path(path)) else {
            return self.complain("sample_prompts", format!("is {value}; allowed: the path of a file"), None);
        };
        if !path.exists() {
            let text = format!("sample_prompts: there is no {}, so no pictures are made", path.display());
            return self.note(text);
        }
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            return match JsonFile::read(&path) {
                Ok(file) => self.sample_settings(&file),
                Err(problem) => self.raw.add_problem(problem),
            };
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty());
                let prompts: Vec<&str> = lines.collect();
                let location = path.display().to_string();
                self.set_from("sample.prompts", prompts.into(), location, "sample_prompts");
            }
            Err(error) => self.complain("sample_prompts", format!("cannot read {}: {error}", path.display()), None),
        }
    }

    fn sample_settings(&mut self, file: &JsonFile) {
        let plain = [
            ("num_inference_steps", "sample.steps"),
            ("generate_pretrain_samples", "sample.at_start"),
            ("generate_samples_every_n_steps", "sample.every_steps"),
        ];
        for (key, to) in plain {
            if let Some(value) = file.object.get(key).filter(|value| !value.is_null()) {
                self.set_from(to, value.clone(), format!("{} \"{key}\"", file.location(key)), key);
            }
        }
        let seed = file.object.get("seed").filter(|seed| seed.as_i64() != Some(-1));
        if let Some(seed) = seed {
            self.set_from("sample.seed", seed.clone(), format!("{} \"seed\"", file.location("seed")), "seed");
        }
        let scales = file.object.get("cfgs").and_then(Value::as_array).cloned().unwrap_or_default();
        if let Some(scale) = scales.first() {
            self.set_from(
                "sample.guidance_scale",
                scale.clone(),
                format!("{} \"cfgs\"", file.location("cfgs")),
                "cfgs",
            );
        }
        if scales.len() > 1 {
            let text = format!("sample_prompts: of the {} cfgs only the first is drawn", scales.len());
            self.note(text);
        }
        let samples = file.object.get("samples").and_then(Value::as_array).cloned().unwrap_or_default();
        let text = |sample: &Value, key: &str| sample.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let prompts: Vec<String> =
            samples.iter().map(|sample| text(sample, "prompt")).filter(|p| !p.is_empty()).collect();
        let location = format!("{} \"samples\"", file.location("samples"));
        self.set_from("sample.prompts", prompts.into(), location.clone(), "samples");
        let negative: Vec<String> = samples.iter().map(|sample| text(sample, "negative_prompt")).collect();
        if let Some(first) = negative.first().filter(|negative| !negative.is_empty()) {
            self.set_from("sample.negative_prompt", first.clone().into(), location, "negative_prompt");
        }
        let is_own =
            |key: &&str| samples.iter().any(|sample| sample.get(*key).is_some_and(|v| !keys::asks_for_nothing(v)));
        let mut own: Vec<&str> =
            ["seed", "size", "aspect_ratio", "random_caption"].into_iter().filter(is_own).collect();
        if negative.windows(2).any(|pair| pair[0] != pair[1]) {
            own.push("negative_prompt (the first one's is taken)");
        }
        if !own.is_empty() {
            let text = format!("sample_prompts: samples have no {} of their own here", own.join(", "));
            self.note(text);
        }
    }

    fn existing_path(&self, path: &str) -> PathBuf {
        PathBuf::from(self.existing(path).as_str().expect("a path is text"))
    }
}
