//! Every default, with its reason.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::*;

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            seed: 555, // a fixed one: a run that nobody gave a seed can be repeated too
            epochs: 10,
            max_steps: None,
            name: None,
            out: std::path::absolute("runs").unwrap_or(PathBuf::from("runs")),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            root: None,
            resolution: 512,    // what SD 1.x was trained at
            max_aspect: 4.0,    // beyond it a bucket has too few pixels on its short side
            cond_dropout: 0.04, // enough to keep the empty caption alive for guidance
            shuffle_tags: false,
            keep_tags: 0,
            flip_p: 0.0, // mirrored faces and writing are wrong more often than they help
            crop_jitter: 0.02,
            write_schedule: true, // the file is the proof of the balance
            remainder: Remainder::Deck,
            repeats_from_names: false, // a number in front of a name means nothing to most people
            scan_cache: true,
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            path: None,
            train_unet: true,
            train_text_encoder: true,
            gradient_checkpointing: false,
            clip_skip: 1, // what SD 1.x was trained with; SD 2.x files leave their last layer out already
            long_prompts: false, // most programs that draw cut off too
        }
    }
}

impl Default for StepConfig {
    fn default() -> Self {
        // Slots of 4 share evenly among 1, 2 and 4 workers, and a global batch of 16 steadies the gradient.
        Self { micro_batch_size: 4, slots: 4 }
    }
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { min_snr_gamma: None, offset_noise: 0.0, timestep_start: 0, timestep_end: None }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 1e-6, // safe for a full fine-tune with the text encoder
            text_encoder_lr: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
        }
    }
}

impl Default for LrScheduleConfig {
    fn default() -> Self {
        Self { kind: LrScheduleKind::Constant, warmup_steps: 0, final_ratio: 0.0 }
    }
}

impl Default for PrecisionConfig {
    fn default() -> Self {
        // GPUs compute in bf16 several times as fast. What is saved is rounded only if that is asked for.
        Self { compute: ComputePrecision::Auto, save: SavePrecision::Fp32 }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        // Off, because a checkpoint of SD 1.x takes 10 GB: who wants more than the one at the end says how often.
        Self {
            every_steps: 0,
            every_epochs: 0,
            every_minutes: 0.0,
            from_epochs: 0,
            keep_last: 3,
            keep_every_steps: 0,
            keep_every_epochs: 0,
            background: BackgroundSave::Auto, // a copy where there is room; never a run that runs out of memory
        }
    }
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            negative_prompt: String::new(),
            seed: 1,
            steps: 30,
            sampler: SamplerName::Ddim,
            guidance_scale: 5.0,
            width: None,
            height: None,
            every_steps: 0,
            at_start: true, // without the picture from before there is nothing to compare with
        }
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            workers: None,
            min_workers: 1,
            device: DeviceKind::Auto,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), // nothing outside this machine unless asked for
            heartbeat_interval: Duration::from_secs(1),
            lease: Duration::from_secs(3), // two lost heartbeats are forgiven
            join_timeout: Duration::from_secs(60),
            // Whoever lives is back within seconds; the rest is for hosts that were cut off.
            rejoin_timeout: Duration::from_secs(30),
            max_wait: Duration::from_secs(600),
            // Time for a person or a supervisor to start the coordinator again; then the GPUs are given back.
            coordinator_timeout: Duration::from_secs(600),
            collective_timeout: Duration::from_secs(30),
            plan_ahead: 2,
            collective: CollectiveKind::Auto,
            reduction: None,
        }
    }
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, service_namespace: "ballast".to_owned() }
    }
}
