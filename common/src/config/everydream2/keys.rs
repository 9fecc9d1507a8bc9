//! The keys of EveryDream2's `train.json` that have no equal here, and why.

use serde_json::Value;

/// Keys that are translated.
pub(super) const TRANSLATED: &[&str] = &[
    "batch_size",
    "ckpt_every_n_minutes",
    "clip_grad_norm",
    "clip_skip",
    "cond_dropout",
    "data_root",
    "disable_textenc_training",
    "disable_unet_training",
    "flip_p",
    "grad_accum",
    "gradient_checkpointing",
    "keep_tags",
    "logdir",
    "loss_type",
    "lr",
    "lr_decay_steps",
    "lr_scheduler",
    "lr_warmup_steps",
    "max_epochs",
    "min_snr_gamma",
    "optimizer_config",
    "project_name",
    "resolution",
    "resume_ckpt",
    "sample_prompts",
    "sample_steps",
    "save_ckpts_from_n_epochs",
    "save_every_n_epochs",
    "save_full_precision",
    "seed",
    "shuffle_tags",
    "timestep_end",
    "timestep_start",
    "write_schedule",
    "zero_frequency_noise_ratio",
];

/// Keys without an equal, together where they have one reason.
pub(super) const LEFT_OUT: &[(&[&str], &str)] = &[
    (&["amp", "disable_amp"], "computing is in 32 bits"),
    (&["attn_type", "lowvram"], "there is one kind of attention, which needs little memory"),
    (&["save_ckpt_dir", "no_save_ckpt", "no_prepend_last"], "all of a run lies in its folder, under fixed names"),
    (
        &["ema_decay_rate", "ema_strength_target", "ema_update_interval", "ema_device"],
        "no average of the weights is kept",
    ),
    (&["ema_sample_nonema_model", "ema_sample_ema_model", "ema_resume_model"], "no average of the weights is kept"),
    (&["embedding_perturbation", "pyramid_noise_discount"], "this kind of noise is not there"),
    (&["enable_zero_terminal_snr"], "the noise schedule is the model's own"),
    (&["train_sampler"], "training adds noise as DDPM does"),
    (&["gpuid"], "all GPUs are used; CUDA_VISIBLE_DEVICES keeps to some"),
    (&["rated_dataset", "rated_dataset_target_dropout_percent"], "images are chosen by multiply alone"),
    (&["validation_config"], "there is no validation"),
    (&["load_settings_every_epoch"], "a run's settings stay"),
    (&["plugins"], "there are no plugins"),
    (&["wandb", "run_name"], "nothing is sent to Weights & Biases"),
    (&["save_optimizer", "log_step", "config", "notebook"], "there is nothing to choose"),
];

/// Says whether a value asks for nothing: then nothing is lost with it.
pub(super) fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        _ => false,
    }
}
