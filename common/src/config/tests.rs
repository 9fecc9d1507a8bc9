//! The config's contracts: round trip, precedence, and complaints that name file, line, key, found and allowed.

use std::fs;
use std::path::PathBuf;

use super::*;

const NO_ENV: [(String, String); 0] = [];

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn with_overrides(overrides: &[(&str, &str)]) -> Result<RunConfig, ConfigError> {
    RunConfig::load(None, &pairs(overrides), NO_ENV)
}

fn complaint(text: &str) -> String {
    with_hint(RunConfig::from_toml(text).expect_err("the text is wrong"))
}

fn with_hint(error: ConfigError) -> String {
    format!("{error}; hint: {}", error.hint().unwrap_or_default())
}

#[test]
fn no_file_gives_the_documented_defaults() {
    let config = RunConfig::load(None, &[], NO_ENV).unwrap();
    assert_eq!(config, RunConfig::default());
    assert_eq!((config.run.seed, config.run.epochs, config.data.resolution), (555, 10, 512));
    assert_eq!(config.step.global_batch_size(), 16);
    assert_eq!(config.optimizer.text_encoder_lr(), 1e-6);
    assert_eq!(config.sample_size(), (512, 512));
    assert!(config.run.out.is_absolute());
}

#[test]
fn written_config_reads_back_equal() {
    let overrides = [
        ("run.max_steps", "7"),
        ("run.name", "cats 1"),
        ("data.root", "some/where"),
        ("data.remainder", "independent"),
        ("data.shuffle_tags", "true"),
        ("data.keep_tags", "3"),
        ("objective.min_snr_gamma", "5"),
        ("objective.timestep_end", "900"),
        ("optimizer.lr", "3.3e-7"),
        ("optimizer.text_encoder_lr", "0"),
        ("precision.save", "fp16"),
        ("sample.prompts", "[\"a \\\"cat\\\"\", \"ein Hündchen\"]"),
        ("sample.width", "640"),
        ("cluster.listen", "[::1]:7000"),
        ("cluster.lease", "90s"),
        ("cluster.heartbeat_interval", "250ms"),
        ("cluster.reduction", "fast"),
        ("cluster.collective", "tcp"),
        ("telemetry.otlp_endpoint", "http://localhost:4317"),
    ];
    let config = with_overrides(&overrides).unwrap();
    assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    assert!(config.data.root.as_ref().unwrap().paths()[0].is_absolute());
    assert!(config.to_toml().contains("heartbeat_interval = \"250ms\""));
    let defaults = RunConfig::default();
    assert_eq!(RunConfig::from_toml(&defaults.to_toml()).unwrap(), defaults);
}

#[test]
fn flags_beat_environment_beats_file_beats_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.toml");
    fs::write(&path, "[optimizer]\nlr = 1e-5\nbeta1 = 0.8\neps = 1e-7\n[run]\nseed = 1\n").unwrap();
    let env = pairs(&[("BALLAST_OPTIMIZER__LR", "2e-5"), ("BALLAST_OPTIMIZER__BETA1", "0.7"), ("BALLAST_TOKEN", "x")]);
    let config = RunConfig::load(Some(&path), &pairs(&[("optimizer.lr", "3e-5"), ("run.seed", "9")]), env).unwrap();
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.lr, optimizer.beta1, optimizer.eps, optimizer.beta2), (3e-5, 0.7, 1e-7, 0.999));
    assert_eq!(config.run.seed, 9);
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.toml");
    fs::write(&path, "[data]\nroot = \"pictures\"\n[model]\npath = \"/models/sd15\"\n").unwrap();
    let config = RunConfig::load(Some(&path), &[], NO_ENV).unwrap();
    assert_eq!(config.data.root, Some(folder.path().join("pictures").into()));
    assert_eq!(config.model.path, Some(PathBuf::from("/models/sd15")));
    let config = RunConfig::load(Some(&path), &pairs(&[("data.root", "pictures")]), NO_ENV).unwrap();
    assert_eq!(config.data.root, Some(std::env::current_dir().unwrap().join("pictures").into()));
}

#[test]
fn a_data_root_may_be_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.toml");
    fs::write(&path, "[data]\nroot = [\"cats\", \"/pictures/dogs\", \"more/list.json\"]\n").unwrap();
    let config = RunConfig::load(Some(&path), &[], NO_ENV).unwrap();
    let expected = vec![folder.path().join("cats"), "/pictures/dogs".into(), folder.path().join("more/list.json")];
    assert_eq!(config.data.root, Some(expected.clone().into()));
    assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    let env = pairs(&[("BALLAST_DATA__ROOT", "[\"/a\", \"/b\"]")]);
    let config = RunConfig::load(Some(&path), &[], env).unwrap();
    assert_eq!(config.data.root.unwrap().paths(), [PathBuf::from("/a"), PathBuf::from("/b")]);
    // One path is a path, and the list of it as well.
    for one in ["/a", "[\"/a\"]"] {
        let config = with_overrides(&[("data.root", one)]).unwrap();
        assert_eq!(config.data.root, Some(PathBuf::from("/a").into()));
        assert!(config.to_toml().contains("root = \"/a\"\n"));
    }
    assert!(complaint("[data]\nroot = []\n").contains("allowed: the path of a folder or of a .json manifest"));
    assert!(complaint("[data]\nroot = [\"a\", 1]\n").contains("allowed: a path, or a list of paths"));
    assert!(complaint("[data]\nroot = 3\n").contains("allowed: a path, or a list of paths"));
}

#[test]
fn none_takes_an_optional_value_away() {
    let config =
        with_overrides(&[("run.max_steps", "5"), ("run.max_steps", "none"), ("sample.negative_prompt", "none")]);
    let config = config.unwrap();
    assert_eq!(config.run.max_steps, None);
    assert_eq!(config.sample.negative_prompt, "none");
    assert!(with_overrides(&[("optimizer.lr", "none")]).is_err());
}

#[test]
fn text_needs_no_quotes_on_the_command_line() {
    let config = with_overrides(&[("run.name", "2024"), ("sample.negative_prompt", "blurry, dark")]).unwrap();
    assert_eq!(config.run.name.as_deref(), Some("2024"));
    assert_eq!(config.sample.negative_prompt, "blurry, dark");
}

#[test]
fn all_problems_come_at_once_with_line_found_and_allowed() {
    let text = "[optimizer]\nlr = \"fast\"\nlrr = 1\n\n[step]\nslots = 0\n[cluster]\nlease = 3\n[run]\nepochs = -1\n";
    let error = RunConfig::from_toml(text).unwrap_err();
    let lines: Vec<String> = error.problems().iter().map(ToString::to_string).collect();
    let expected = [
        "config.toml:2: `optimizer.lr` is \"fast\"; allowed: a number",
        "config.toml:3: `optimizer.lrr` is not a key; [optimizer] has: kind, lr, text_encoder_lr, beta1, beta2, eps, \
         weight_decay, max_grad_norm",
        "config.toml:8: `cluster.lease` is 3; allowed: a whole number and its unit, as in \"250ms\", \"3s\", \"2m\" or \"1h\"",
        "config.toml:10: `run.epochs` is -1; allowed: a whole number, 0 or more",
        "config.toml:6: `step.slots` is 0; allowed: a whole number from 1 to 4096",
    ];
    assert_eq!(lines, expected);
    let text = error.to_string();
    assert!(text.starts_with("the config has 5 problems\n  config.toml:2: "), "{text}");
    assert!(text.contains("max_grad_norm (did you mean `optimizer.lr`?)\n"), "{text}");
}

#[test]
fn a_wrong_name_gets_the_nearest_known_one() {
    assert!(complaint("[optimiser]\nlr = 1\n").contains("did you mean `optimizer`?"));
    assert!(complaint("lr = 1\n").contains("did you mean `optimizer.lr`?"));
    assert!(complaint("[optimizer]\nlearning_rate = 1\n").contains("is not a key"));
    assert!(complaint("[precision]\nsave = \"fp61\"\n").contains("allowed: one of `fp32`, `fp16`, `bf16`"));
    assert!(
        with_hint(with_overrides(&[("optimizer.betal", "1")]).unwrap_err()).contains("did you mean `optimizer.beta")
    );
    assert!(with_hint(with_overrides(&[("seed", "1")]).unwrap_err()).contains("did you mean `run.seed`?"));
}

#[test]
fn a_variable_with_one_underscore_is_not_silently_ignored() {
    let error = RunConfig::load(None, &[], pairs(&[("BALLAST_LR_SCHEDULE_KIND", "linear")])).unwrap_err();
    assert!(error.hint().unwrap().contains("BALLAST_LR_SCHEDULE__KIND"), "{error}");
    let error = RunConfig::load(None, &[], pairs(&[("BALLAST_OPTIMIZER__LRR", "1")])).unwrap_err();
    assert!(error.to_string().contains("BALLAST_OPTIMIZER__LRR: `optimizer.lrr` is not a key"), "{error}");
}

#[test]
fn broken_files_are_named() {
    assert!(complaint("[run]\nseed = = 1\n").contains("config.toml:2: not valid TOML"));
    let error = RunConfig::load(Some(Path::new("/nowhere/train.toml")), &[], NO_ENV).unwrap_err();
    assert!(error.to_string().contains("/nowhere/train.toml: cannot read the config"));
}

#[test]
fn values_outside_their_range_are_refused() {
    let wrong = [
        ("run.seed", "-1"),
        ("run.epochs", "0"),
        ("run.max_steps", "0"),
        ("run.name", "../up"),
        ("data.resolution", "32"),
        ("data.max_aspect", "0.5"),
        ("data.cond_dropout", "1.5"),
        ("data.flip_p", "nan"),
        ("data.keep_tags", "-1"),
        ("data.shuffle_tags", "often"),
        ("objective.timestep_end", "0"),
        ("objective.timestep_end", "1001"),
        ("optimizer.lr", "inf"),
        ("optimizer.beta2", "1.0"),
        ("checkpoint.keep_last", "0"),
        ("checkpoint.every_minutes", "-1"),
        ("checkpoint.background", "sometimes"),
        ("sample.width", "500"),
        ("cluster.workers", "0"),
        ("cluster.min_workers", "0"),
        ("cluster.lease", "1s"),
        ("cluster.listen", "somewhere"),
        ("cluster.collective", "gloo"),
        ("telemetry.otlp_endpoint", "localhost:4317"),
    ];
    for (key, value) in wrong {
        let error = with_overrides(&[(key, value)]).expect_err(&format!("{key} = {value}")).to_string();
        assert!(error.contains(&format!("--set: `{key}`")) && error.contains("allowed: "), "{error}");
    }
}

#[test]
fn training_needs_data_and_a_model() {
    let error = RunConfig::default().require_training().unwrap_err();
    assert_eq!(error.problems().len(), 2);
    assert!(error.to_string().contains("`data.root` is needed here"));
    assert!(with_overrides(&[("data.root", "a"), ("model.path", "b")]).unwrap().require_training().is_ok());
}

#[test]
fn reduction_and_workers_follow_the_device() {
    let cluster = RunConfig::default().cluster;
    assert_eq!((cluster.reduction_on(false), cluster.reduction_on(true)), (Reduction::Exact, Reduction::Fast));
    assert_eq!((cluster.local_workers(8, 4), cluster.local_workers(3, 4), cluster.local_workers(0, 4)), (4, 3, 2));
}

#[test]
fn nccl_is_not_asked_for_on_the_cpu() {
    let error = with_overrides(&[("cluster.collective", "nccl"), ("cluster.device", "cpu")]).unwrap_err().to_string();
    assert!(error.contains("`cluster.collective` is \"nccl\" on the CPU; allowed: \"auto\" or \"tcp\""), "{error}");
    assert!(with_overrides(&[("cluster.collective", "nccl")]).is_ok());
}

#[test]
fn keys_are_read_off_the_types() {
    let names: Vec<&str> = keys::sections().iter().map(|section| section.name).collect();
    assert_eq!(names, keys::field_names::<RunConfig>());
}
