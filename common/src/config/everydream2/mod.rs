//! An EveryDream2 `train.json`, translated key by key into the keys of [`super::RunConfig`].
//!
//! Values go through the same checks as those of a TOML file, so a wrong one is named with its JSON key and line. What has no
//! equal here, or means something else, is said in notes and never guessed.

mod beside;
mod json;
mod keys;
mod saves;

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::keys::nearest;
use super::raw::RawConfig;
use json::JsonFile;

/// What EveryDream2 takes where `train.json` says nothing, as far as it differs from this program's own defaults.
const DEFAULTS: &[(&str, &str)] = &[
    ("batch_size", "2"),
    ("grad_accum", "1"),
    ("max_epochs", "300"),
    ("zero_frequency_noise_ratio", "0.02"),
    ("save_full_precision", "false"),
    ("sample_steps", "250"),
];

/// Keys whose value goes to one key unchanged.
const PLAIN: &[(&str, &str)] = &[
    ("resolution", "data.resolution"),
    ("batch_size", "step.micro_batch_size"),
    ("grad_accum", "step.slots"),
    ("max_epochs", "run.epochs"),
    ("cond_dropout", "data.cond_dropout"),
    ("flip_p", "data.flip_p"),
    ("shuffle_tags", "data.shuffle_tags"),
    ("keep_tags", "data.keep_tags"),
    ("write_schedule", "data.write_schedule"),
    ("min_snr_gamma", "objective.min_snr_gamma"),
    ("zero_frequency_noise_ratio", "objective.offset_noise"),
    ("timestep_start", "objective.timestep_start"),
    ("timestep_end", "objective.timestep_end"),
    ("save_every_n_epochs", "checkpoint.every_epochs"),
    ("project_name", "run.name"),
];

/// Adds the settings of a `train.json`.
pub(super) fn add_train_json(raw: &mut RawConfig, path: &Path) {
    match JsonFile::read(path) {
        Ok(file) => {
            Translation { raw, folder: path.parent().unwrap_or(Path::new("")), file, defaults: Vec::new() }.run()
        }
        Err(problem) => raw.add_problem(problem),
    }
}

struct Translation<'a> {
    raw: &'a mut RawConfig,
    /// Where the file lies.
    folder: &'a Path,
    file: JsonFile,
    /// Defaults that were taken, for the note.
    defaults: Vec<String>,
}

impl Translation<'_> {
    fn run(mut self) {
        for (key, to) in PLAIN {
            if let Some(value) = self.value(key) {
                self.set(to, key, value);
            }
        }
        self.seed();
        self.data_root();
        self.paths();
        self.parts_and_precision();
        self.clip_skip();
        self.clipping();
        self.optimizer_file();
        self.learning_rate();
        self.samples();
        self.saves();
        self.differences();
        self.left_out();
        if !self.defaults.is_empty() {
            let text = format!("not set, so as EveryDream2 has it: {}", self.defaults.join(", "));
            self.note(text);
        }
    }

    /// Returns a key's value, or EveryDream2's default where it differs from ours. Null is no value.
    fn value(&mut self, key: &str) -> Option<Value> {
        match self.file.object.get(key) {
            Some(Value::Null) | None => {
                let (_, default) = DEFAULTS.iter().find(|(name, _)| *name == key)?;
                self.defaults.push(format!("{key} {default}"));
                Some(default.parse().expect("the defaults are JSON"))
            }
            Some(value) => Some(value.clone()),
        }
    }

    /// Returns a key's value where it is a whole number above 0. Anything else was complained about already, or is absent.
    fn count(&self, key: &str) -> u64 {
        self.file.object.get(key).and_then(Value::as_u64).unwrap_or(1).max(1)
    }

    fn is_on(&self, key: &str) -> bool {
        self.file.object.get(key).is_some_and(|value| !keys::asks_for_nothing(value))
    }

    /// Sets one of our keys from the value of one of theirs.
    fn set(&mut self, to: &str, key: &str, value: Value) {
        let location = format!("{} \"{key}\"", self.file.location(key));
        self.set_from(to, value, location, key);
    }

    fn set_from(&mut self, to: &str, value: Value, location: String, key: &str) {
        let (section, name) = to.split_once('.').expect("our keys have a section");
        if !self.raw.knows(section, name) {
            if !keys::asks_for_nothing(&value) {
                self.note(format!("{key}: this version has no {to}"));
            }
            return;
        }
        let shown = value.to_string();
        match toml::Value::try_from(value) {
            Ok(value) => self.raw.add(section, name, value, location, None),
            Err(_) => self.complain(key, format!("is {shown}, which has no meaning here"), None),
        }
    }

    fn complain(&mut self, key: &str, message: String, hint: Option<&str>) {
        let location = Some(self.file.location(key));
        let hint = hint.map(str::to_owned);
        self.raw.add_problem(super::error::Problem { location, key: key.to_owned(), message, hint });
    }

    fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.raw.add_note(format!("{}: {text}", self.file.name));
    }

    /// −1 stands for any.
    fn seed(&mut self) {
        match self.value("seed") {
            Some(value) if value.as_i64() == Some(-1) => {
                let seed = any_seed();
                self.set("run.seed", "seed", seed.into());
                self.note(format!("seed: −1 stands for any; this time it is {seed} (--seed {seed} repeats the run)"));
            }
            Some(value) => self.set("run.seed", "seed", value),
            None => {}
        }
    }

    fn data_root(&mut self) {
        let Some(value) = self.value("data_root") else { return };
        match roots(&value) {
            Ok(roots) => {
                let mut paths: Vec<Value> = roots.iter().map(|root| self.existing(root)).collect();
                let value = if paths.len() == 1 { paths.remove(0) } else { Value::Array(paths) };
                self.set("data.root", "data_root", value);
            }
            Err(found) => {
                let message = format!(
                    "is {found}; allowed: a path, {{\"resolver\": \"directory\" or \"json\", \"path\": …}}, \
                     {{\"resolver\": \"multi\", \"resolvers\": […]}}, or a list of these"
                );
                self.complain("data_root", message, None);
            }
        }
    }

    fn paths(&mut self) {
        if let Some(value) = self.value("logdir") {
            let value = value.as_str().map_or(value.clone(), |path| self.existing(path));
            self.set("run.out", "logdir", value);
        }
        match self.value("resume_ckpt") {
            Some(Value::String(name)) if name == "findlast" => {
                let hint = "name the folder, or go on with a run by --resume";
                self.complain("resume_ckpt", "is \"findlast\"; allowed: the folder of a model".to_owned(), Some(hint));
            }
            Some(Value::String(name)) => {
                let cached = Path::new("ckpt_cache").join(&name);
                let is_there = |path: &Path| self.folder.join(path).exists() || path.exists();
                let is_cached = !is_there(Path::new(&name)) && is_there(&cached);
                let value = if is_cached { self.existing(&cached.to_string_lossy()) } else { self.existing(&name) };
                self.set("model.path", "resume_ckpt", value);
            }
            Some(value) => self.set("model.path", "resume_ckpt", value),
            None => {}
        }
    }

    /// Makes a path absolute: within the file's folder, or in the current one if it is there and only there.
    fn existing(&self, path: &str) -> Value {
        let beside = self.folder.join(path);
        let chosen = if !beside.exists() && Path::new(path).exists() { PathBuf::from(path) } else { beside };
        let chosen = std::path::absolute(&chosen).unwrap_or(chosen);
        // A path that is empty stays so, to be complained about.
        Value::String(if path.is_empty() { String::new() } else { chosen.to_string_lossy().into_owned() })
    }

    fn parts_and_precision(&mut self) {
        let parts =
            [("disable_textenc_training", "model.train_text_encoder"), ("disable_unet_training", "model.train_unet")];
        for (key, to) in parts {
            match self.value(key) {
                Some(Value::Bool(is_disabled)) => self.set(to, key, (!is_disabled).into()),
                Some(value) => self.complain(key, format!("is {value}; allowed: true or false"), None),
                None => {}
            }
        }
        if let Some(value) = self.value("gradient_checkpointing") {
            self.set("model.gradient_checkpointing", "gradient_checkpointing", value);
        }
        match self.value("save_full_precision") {
            Some(Value::Bool(is_full)) => {
                let precision = if is_full { "fp32" } else { "fp16" };
                self.set("precision.save", "save_full_precision", precision.into());
            }
            Some(value) => self.complain("save_full_precision", format!("is {value}; allowed: true or false"), None),
            None => {}
        }
    }

    /// Counted as here; 0 is another word for 1 there, and what is beyond 4 is 4.
    fn clip_skip(&mut self) {
        let Some(value) = self.value("clip_skip") else { return };
        if value.as_u64().is_some_and(|skip| skip > 4) {
            self.note(format!("clip_skip: {value} is beyond EveryDream2's most, so it is 4"));
        }
        let value = value.as_u64().map_or(value, |skip| skip.clamp(1, 4).into());
        self.set("model.clip_skip", "clip_skip", value);
    }

    fn clipping(&mut self) {
        match self.value("clip_grad_norm") {
            Some(value) => {
                self.set("optimizer.max_grad_norm", "clip_grad_norm", value);
                self.note("clip_grad_norm: UNet and text encoder are clipped together, not each for itself");
            }
            None => self.set("optimizer.max_grad_norm", "clip_grad_norm", 0.into()),
        }
    }

    fn learning_rate(&mut self) {
        if let Some(value) = self.value("lr") {
            self.set("optimizer.lr", "lr", value);
            // It holds for both parts, whatever the optimizer's file says.
            self.raw.remove("optimizer.text_encoder_lr");
        }
        if let Some(value) = self.value("lr_scheduler") {
            let location = format!("{} \"lr_scheduler\"", self.file.location("lr_scheduler"));
            self.lr_scheduler(value, location);
        }
        let kind = self.raw.text("lr_schedule.kind");
        let is_constant = kind.is_none_or(|kind| kind == "constant");
        match self.value("lr_warmup_steps") {
            Some(_) if is_constant && self.is_on("lr_warmup_steps") => {
                self.note("lr_warmup_steps: has no effect on a constant rate in EveryDream2, so it is left out");
            }
            Some(_) if is_constant => {}
            Some(value) => {
                let value = value.as_u64().map_or(value, |steps| steps.div_ceil(self.count("grad_accum")).into());
                self.set("lr_schedule.warmup_steps", "lr_warmup_steps", value);
            }
            None if !is_constant => {
                self.note("lr_warmup_steps: not set, which is a fiftieth of lr_decay_steps there and no warm-up here")
            }
            None => {}
        }
        if !is_constant {
            self.note(
                "lr_decay_steps: here the rate always falls to its end over the whole run (EveryDream2's default is 1.5 \
                 times that)",
            );
        }
    }

    fn lr_scheduler(&mut self, value: Value, location: String) {
        let is_polynomial = value == "polynomial";
        if is_polynomial {
            self.note("lr_scheduler: \"polynomial\" is a straight line there (power 1), so it is \"linear\" here");
        }
        let kind = if is_polynomial { "linear".into() } else { value };
        self.set_from("lr_schedule.kind", kind, location, "lr_scheduler");
    }

    /// Says where the same value means something else.
    fn differences(&mut self) {
        let accumulated = self.count("grad_accum");
        if accumulated > 1 {
            self.note(format!(
                "grad_accum: EveryDream2 adds up the gradients of its {accumulated} batches, here the step's mean is taken, \
                 so the gradient is 1/{accumulated} of that: AdamW hardly notices, clip_grad_norm does; and \
                 lr_warmup_steps and sample_steps, which count batches there, are divided by {accumulated}"
            ));
        }
        let loss = self.file.object.get("loss_type").and_then(Value::as_str).unwrap_or("mse_huber");
        if loss != "mse" {
            let text = format!("loss_type: the loss is mse (\"{loss}\" is not there)");
            self.note(text);
        }
        if self.is_on("flip_p") {
            self.note("flip_p: has no effect in EveryDream2 (flip_p.txt has); here it mirrors");
        }
    }

    /// Names what has no equal, in few lines.
    fn left_out(&mut self) {
        let mut without_loss = Vec::new();
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for (names, why) in keys::LEFT_OUT {
            for name in names.iter().copied().filter(|name| self.file.object.contains_key(*name)) {
                match reasons.iter_mut().find(|(reason, _)| reason == why) {
                    _ if !self.is_on(name) => without_loss.push(name),
                    Some((_, names)) => names.push(name),
                    None => reasons.push((*why, vec![name])),
                }
            }
        }
        for (why, names) in reasons {
            self.note(format!("{}: no equal; {why}", names.join(", ")));
        }
        if !without_loss.is_empty() {
            self.note(format!("without effect, and off: {}", without_loss.join(", ")));
        }
        let known = || keys::TRANSLATED.iter().chain(keys::LEFT_OUT.iter().flat_map(|(names, _)| *names)).copied();
        let unknown: Vec<String> =
            self.file.object.keys().filter(|key| !known().any(|name| name == *key)).cloned().collect();
        for key in unknown {
            let near = nearest(&key, known()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            let location = self.file.location(&key);
            self.raw.add_note(format!("{location}: `{key}` is no key of EveryDream2 and is left out{near}"));
        }
    }
}

/// Finds the paths of a data root in any of its forms.
fn roots(value: &Value) -> Result<Vec<String>, String> {
    let refused = || Err(value.to_string());
    match value {
        Value::String(path) => Ok(vec![path.clone()]),
        Value::Array(entries) => Ok(entries.iter().map(roots).collect::<Result<Vec<_>, _>>()?.concat()),
        Value::Object(object) => match (object.get("resolver").and_then(Value::as_str), object.get("path")) {
            (Some("directory" | "json"), Some(Value::String(path))) => Ok(vec![path.clone()]),
            (Some("multi"), _) => object.get("resolvers").map_or_else(refused, roots),
            _ => refused(),
        },
        _ => refused(),
    }
}

/// Returns a number that nobody can foresee, short enough to be typed.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish() >> 33
}

#[cfg(test)]
mod tests;
