//! A `train.json` becomes a config; what has no equal is named, what is wrong is named with its key and line.

use std::fs;

use tempfile::TempDir;

use crate::config::*;

/// Every key that people's files have, with values of our own.
const TRAIN: &str = r#"{
    "config": "train.json",
    "amp": true,
    "attn_type": "sdp",
    "batch_size": 3,
    "ckpt_every_n_minutes": null,
    "clip_grad_norm": 0.5,
    "clip_skip": 2,
    "cond_dropout": 0.05,
    "data_root": "pictures",
    "disable_amp": false,
    "disable_textenc_training": true,
    "disable_unet_training": false,
    "embedding_perturbation": 0.0,
    "flip_p": 0.25,
    "gpuid": 1,
    "gradient_checkpointing": true,
    "grad_accum": 4,
    "logdir": "logs",
    "log_step": 10,
    "loss_type": "mse",
    "lr": 2e-06,
    "lr_decay_steps": 0,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 10,
    "max_epochs": 40,
    "optimizer_config": "optimizer.json",
    "project_name": "harbour",
    "resolution": 576,
    "resume_ckpt": "sd15",
    "sample_prompts": "prompts.txt",
    "sample_steps": 300,
    "save_ckpt_dir": null,
    "save_every_n_epochs": 20,
    "save_full_precision": true,
    "save_optimizer": false,
    "seed": 77,
    "timestep_start": 5,
    "timestep_end": 950,
    "train_sampler": "ddpm",
    "wandb": false,
    "write_schedule": true,
    "rated_dataset": false,
    "zero_frequency_noise_ratio": 0.03,
    "min_snr_gamma": 5.0,
    "ema_decay_rate": 0.999,
    "ema_device": "cpu",
    "pyramid_noise_discount": null
}"#;

const OPTIMIZER: &str = r#"{
    "doc": {"anything": "goes"},
    "base": {"optimizer": "adamw8bit", "lr": 1e-6, "lr_scheduler": "constant", "betas": [0.8, 0.99], "epsilon": 1e-7,
             "weight_decay": 0.02, "d0": 1e-6, "decouple": true},
    "text_encoder_overrides": {"lr": 3e-7, "lr_scheduler": null},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 2}
}"#;

struct Desk(TempDir);

impl Desk {
    fn new(train: &str) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.write("train.json", train);
        desk
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn load(&self) -> Result<(RunConfig, String), ConfigError> {
        self.load_with(&[])
    }

    fn load_with(&self, overrides: &[(&str, &str)]) -> Result<(RunConfig, String), ConfigError> {
        let overrides: Vec<_> = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let loaded = RunConfig::load_with_notes(Some(&self.0.path().join("train.json")), &overrides, []);
        loaded.map(|(config, notes)| (config, self.shown(&notes.join("\n"))))
    }

    /// Leaves the temporary folder's name out.
    fn shown(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }

    fn complaint(&self) -> String {
        let error = self.load().expect_err("the file is wrong");
        let hint = error.hint().unwrap_or_default();
        self.shown(&format!("{error}; hint: {hint}"))
    }
}

/// Loads a file of one key, and returns what is said.
fn notes_of(train: &str) -> String {
    Desk::new(train).load().unwrap().1
}

#[test]
fn a_whole_file_becomes_a_config() {
    let desk = Desk::new(TRAIN);
    desk.write("optimizer.json", OPTIMIZER);
    desk.write("prompts.txt", "\u{feff}a quiet harbour\r\n\r\na boat, at dusk\r\n");
    let (config, notes) = desk.load().unwrap();
    let text = desk.shown(&config.to_toml());
    let golden = [
        "seed = 77",
        "epochs = 40",
        "name = \"harbour\"",
        "out = \"logs\"",
        "root = \"pictures\"",
        "resolution = 576",
        "cond_dropout = 0.05",
        "flip_p = 0.25",
        "write_schedule = true",
        "path = \"sd15\"",
        "train_unet = true",
        "train_text_encoder = false",
        "gradient_checkpointing = true",
        "clip_skip = 2",
        "long_prompts = false",
        "micro_batch_size = 3",
        "slots = 4",
        "min_snr_gamma = 5.0",
        "offset_noise = 0.03",
        "timestep_start = 5",
        "timestep_end = 950",
        "kind = \"adamw\"",
        "lr = 0.000002",
        "beta1 = 0.8",
        "beta2 = 0.99",
        "eps = 0.0000001",
        "weight_decay = 0.02",
        "max_grad_norm = 0.5",
        "kind = \"cosine\"",
        "warmup_steps = 3",
        "save = \"fp32\"",
        "every_epochs = 20",
        "prompts = [\"a quiet harbour\", \"a boat, at dusk\"]",
        "every_steps = 75",
    ];
    let lines: Vec<&str> = text.lines().collect();
    let mut from = 0;
    for line in golden {
        let at = lines[from..].iter().position(|found| *found == line);
        from += at.unwrap_or_else(|| panic!("`{line}` is not next in:\n{text}")) + 1;
    }
    assert_eq!(config.optimizer.text_encoder_lr, None, "lr holds for both parts");
    let expected = "\
train.json: clip_grad_norm: UNet and text encoder are clipped together, not each for itself
train.json: optimizer_config: adamw8bit is AdamW with its state in 32 bits here
train.json: optimizer_config: no equal of base.d0, base.decouple, text_encoder_freezing.unfreeze_last_n_layers
train.json: lr_decay_steps: here the rate always falls to its end over the whole run (EveryDream2's default is 1.5 times that)
train.json: checkpoints: the newest ones are kept, EveryDream2 keeps all: see checkpoint.keep_last
train.json: grad_accum: EveryDream2 adds up the gradients of its 4 batches, here the step's mean is taken, so the gradient is \
1/4 of that: AdamW hardly notices, clip_grad_norm does; and lr_warmup_steps and sample_steps, which count batches there, are \
divided by 4
train.json: flip_p: has no effect in EveryDream2 (flip_p.txt has); here it mirrors
train.json: amp: no equal; computing is in 32 bits
train.json: attn_type: no equal; there is one kind of attention, which needs little memory
train.json: ema_decay_rate, ema_device: no equal; no average of the weights is kept
train.json: train_sampler: no equal; training adds noise as DDPM does
train.json: gpuid: no equal; all GPUs are used; CUDA_VISIBLE_DEVICES keeps to some
train.json: log_step, config: no equal; there is nothing to choose
train.json: without effect, and off: disable_amp, save_ckpt_dir, embedding_perturbation, \
pyramid_noise_discount, rated_dataset, wandb, save_optimizer";
    assert_eq!(notes, expected);
}

#[test]
fn what_is_not_said_is_as_everydream2_has_it() {
    let (config, notes) = Desk::new("{}").load().unwrap();
    assert_eq!((config.step.micro_batch_size, config.step.slots, config.run.epochs), (2, 1, 300));
    assert_eq!((config.objective.offset_noise, config.optimizer.max_grad_norm), (0.02, 0.0));
    assert_eq!((config.precision.save, config.sample.every_steps, config.run.seed), (SavePrecision::Fp16, 250, 555));
    assert!(notes.contains("not set, so as EveryDream2 has it: batch_size 2, grad_accum 1, max_epochs 300"), "{notes}");
    assert!(notes.contains("loss_type: the loss is mse (\"mse_huber\" is not there)"), "{notes}");
}

#[test]
fn checkpoints_come_when_everydream2_saves() {
    let saves = |text: &str| {
        let (config, notes) = Desk::new(text).load().unwrap();
        let CheckpointConfig { every_minutes, every_epochs, from_epochs, .. } = config.checkpoint;
        ((every_minutes, every_epochs, from_epochs), notes)
    };
    let (neither, notes) = saves("{\"ckpt_every_n_minutes\": null}");
    assert_eq!(neither, (20.0, 0, 0));
    assert!(notes.contains("as EveryDream2 has it: ") && notes.contains("ckpt_every_n_minutes 20"), "{notes}");
    let (epochs, notes) = saves("{\"save_every_n_epochs\": 5, \"save_ckpts_from_n_epochs\": 10}");
    assert_eq!(epochs, (0.0, 5, 10));
    assert!(notes.contains("EveryDream2 keeps all: see checkpoint.keep_last"), "{notes}");
    assert_eq!(saves("{\"ckpt_every_n_minutes\": 45, \"save_every_n_epochs\": 2}").0, (45.0, 2, 0));
    let complaint = Desk::new("{\n\"ckpt_every_n_minutes\": \"often\"}").complaint();
    assert!(complaint.contains("train.json:2 \"ckpt_every_n_minutes\": `checkpoint.every_minutes` is"), "{complaint}");
}

#[test]
fn clip_skip_counts_as_there() {
    for (written, taken) in [("0", 1), ("1", 1), ("3", 3), ("null", 1), ("9", 4)] {
        let (config, notes) = Desk::new(&format!("{{\"clip_skip\": {written}}}")).load().unwrap();
        assert_eq!(config.model.clip_skip, taken);
        assert_eq!(notes.contains("beyond EveryDream2's most"), written == "9", "{notes}");
    }
    let error = Desk::new(r#"{"clip_skip": "two"}"#).load().unwrap_err().to_string();
    assert!(error.contains("train.json:1") && error.contains("clip_skip"), "{error}");
}

#[test]
fn overrides_go_over_it() {
    let (config, _) = Desk::new(TRAIN_SMALL).load_with(&[("optimizer.lr", "5e-7"), ("run.name", "none")]).unwrap();
    assert_eq!((config.optimizer.lr, config.run.name, config.run.epochs), (5e-7, None, 7));
}

const TRAIN_SMALL: &str = r#"{"lr": 2e-6, "project_name": "x", "max_epochs": 7, "loss_type": "mse"}"#;

#[test]
fn wrong_values_are_named_with_their_key_and_line() {
    let desk = Desk::new(
        "{\n  \"lr\": \"1e-6\",\n  \"max_epochs\": 0,\n  \"batch_size\": 2.5,\n  \"disable_unet_training\": \"no\",\n  \
         \"lr_scheduler\": \"sudden\",\n  \"resume_ckpt\": \"findlast\",\n  \"data_root\": {\"resolver\": \"zip\"}\n}",
    );
    let error = desk.load().unwrap_err();
    let text = desk.shown(&error.to_string());
    for line in [
        "train.json:2 \"lr\": `optimizer.lr` is \"1e-6\"; allowed: a number",
        "train.json:3 \"max_epochs\": `run.epochs` is 0; allowed: a whole number from 1 to 1000000",
        "train.json:4 \"batch_size\": `step.micro_batch_size` is 2.5; allowed: a whole number, 0 or more",
        "train.json:5: `disable_unet_training` is \"no\"; allowed: true or false",
        "train.json:6 \"lr_scheduler\": `lr_schedule.kind` is \"sudden\"; allowed: ",
        "train.json:7: `resume_ckpt` is \"findlast\"; allowed: the folder of a model",
        "train.json:8: `data_root` is {\"resolver\":\"zip\"}; allowed: a path, ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(error.problems().len(), 7);
}

#[test]
fn broken_json_says_where_and_what_people_mean() {
    let complaint = |text: &str| Desk::new(text).complaint();
    let comma = complaint("{\n  \"lr\": 1e-6,\n}");
    assert!(comma.contains("train.json:3:1: not valid JSON") && comma.contains("no comma stands after"), "{comma}");
    let comment = complaint("{\n  // the rate\n  \"lr\": 1e-6\n}");
    assert!(
        comment.contains("train.json:2:3: not valid JSON") && comment.contains("JSON has no comments"),
        "{comment}"
    );
    assert!(complaint("[1]").contains("is not an object of settings"));
    let latin = tempfile::tempdir().unwrap();
    fs::write(latin.path().join("train.json"), b"{\n\"lr\": 1, \"project_name\": \"caf\xe9\"}").unwrap();
    let error = RunConfig::load(Some(&latin.path().join("train.json")), &[], []).unwrap_err();
    assert!(error.to_string().contains("train.json:2: is not UTF-8"), "{error}");
    let error = RunConfig::load(Some(Path::new("/nowhere/train.json")), &[], []).unwrap_err();
    assert!(error.to_string().contains("/nowhere/train.json: cannot read the config"), "{error}");
    assert!(notes_of("\u{feff}{\"loss_type\": \"mse\"}").contains("not set"), "a byte order mark is no error");
}

#[test]
fn unknown_keys_get_the_nearest_known_one() {
    let notes = notes_of("{\"max_epoch\": 3,\n \"zzzzzz\": 1}");
    assert!(
        notes
            .contains("train.json:1: `max_epoch` is no key of EveryDream2 and is left out; did you mean `max_epochs`?")
    );
    assert!(notes.contains("train.json:2: `zzzzzz` is no key of EveryDream2 and is left out"), "{notes}");
}

#[test]
fn any_seed_is_chosen_and_said() {
    let (config, notes) = Desk::new("{\"seed\": -1}").load().unwrap();
    assert!(notes.contains(&format!("this time it is {} (--seed {}", config.run.seed, config.run.seed)), "{notes}");
    let again = Desk::new("{\"seed\": -1}").load().unwrap().0;
    assert_ne!(config.run.seed, again.run.seed);
}

#[test]
fn a_data_root_has_many_forms() {
    let roots = |text: &str| {
        let desk = Desk::new(&format!("{{\"data_root\": {text}}}"));
        let root = desk.load().unwrap().0.data.root.unwrap();
        let paths = root.paths().iter().map(|path| path.strip_prefix(desk.0.path()).unwrap().display().to_string());
        paths.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(roots("\"a\""), "a");
    assert_eq!(roots("{\"resolver\": \"json\", \"path\": \"a.json\"}"), "a.json");
    assert_eq!(roots("[\"a\", {\"resolver\": \"directory\", \"path\": \"b\"}]"), "a b");
    assert_eq!(roots("{\"resolver\": \"multi\", \"resolvers\": [\"a\", \"b.json\", [\"c\"]]}"), "a b.json c");
}

#[test]
fn paths_are_beside_the_file_or_where_one_stands() {
    // `src` is in the folder in which tests run, and not beside the file; then it is in both.
    let desk = Desk::new("{\"data_root\": \"src\", \"resume_ckpt\": \"model\"}");
    let here = std::env::current_dir().unwrap();
    assert_eq!(desk.load().unwrap().0.data.root, Some(here.join("src").into()));
    fs::create_dir(desk.0.path().join("src")).unwrap();
    fs::create_dir_all(desk.0.path().join("ckpt_cache/model")).unwrap();
    let config = desk.load().unwrap().0;
    assert_eq!(config.data.root, Some(desk.0.path().join("src").into()));
    assert_eq!(config.model.path, Some(desk.0.path().join("ckpt_cache/model")));
}

#[test]
fn other_optimizers_are_refused_and_other_rates_taken() {
    let desk = Desk::new("{\"optimizer_config\": \"optimizer.json\"}");
    desk.write("optimizer.json", "{\n\"base\": {\"optimizer\": \"dadapt_adam\", \"lr\": 1.0}}");
    let complaint = desk.complaint();
    assert!(
        complaint.contains("optimizer.json:2 \"base\" \"optimizer\": `optimizer.kind` is \"dadapt_adam\""),
        "{complaint}"
    );
    desk.write("optimizer.json", OPTIMIZER);
    let optimizer = desk.load().unwrap().0.optimizer;
    assert_eq!((optimizer.lr, optimizer.text_encoder_lr), (1e-6, Some(3e-7)));
    fs::remove_file(desk.0.path().join("optimizer.json")).unwrap();
    assert!(desk.complaint().contains("optimizer.json: cannot read the config"));
}

#[test]
fn samples_come_from_json_too() {
    let desk = Desk::new("{\"sample_prompts\": \"prompts.json\", \"grad_accum\": 2, \"sample_steps\": 301}");
    assert!(desk.load().unwrap().1.contains("sample_prompts: there is no prompts.json"));
    desk.write(
        "prompts.json",
        r#"{"seed": 9, "cfgs": [6.5, 4], "num_inference_steps": 25, "generate_pretrain_samples": false,
            "samples": [{"prompt": "a boat", "negative_prompt": "fog", "size": [512, 640]}, {"prompt": "a cat"}]}"#,
    );
    let (config, notes) = desk.load().unwrap();
    let sample = config.sample;
    assert_eq!(
        (sample.prompts, sample.negative_prompt),
        (vec!["a boat".to_owned(), "a cat".to_owned()], "fog".to_owned())
    );
    assert_eq!((sample.seed, sample.guidance_scale, sample.steps, sample.at_start), (9, 6.5, 25, false));
    assert_eq!(sample.every_steps, 151);
    assert!(
        notes.contains("of the 2 cfgs only the first is drawn") && notes.contains("samples have no size"),
        "{notes}"
    );
}

#[test]
fn tags_are_shuffled_or_it_is_said_that_they_are_not() {
    let (config, notes) = Desk::new("{\"shuffle_tags\": true, \"keep_tags\": 2}").load().unwrap();
    let text = config.to_toml();
    assert_ne!(
        text.contains("shuffle_tags = true"),
        notes.contains("this version has no data.shuffle_tags"),
        "{notes}"
    );
    assert_ne!(text.contains("keep_tags = 2"), notes.contains("this version has no data.keep_tags"), "{notes}");
}
