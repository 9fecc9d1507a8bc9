//! Models with random weights, drawn by parameter name and seed: the same bits on every machine.

use crate::checkpoint::{self, RawConfigs, Sources, StableDiffusion};
use crate::rng::standard_normal;
use crate::tokenizer::{Padding, Tokenizer};
use crate::weights::Source;
use crate::{Device, cpu_device};
use serde_json::{Value, json};

/// Sizes of a new model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// SD 1.x in miniature (a few hundred kilobytes, 1,514 tokens): for tests.
    Tiny,
    /// SD 2.x in miniature: v-prediction, linear projections, the exact GELU.
    TinyV2,
    /// The size of the example model: trains on a CPU in minutes.
    Small,
    /// SD 1.5 at full size (4.3 GB in memory).
    Sd15,
    /// SD 2.1 at full size (5.2 GB in memory).
    Sd21,
}

impl Preset {
    /// All presets with their names on the command line.
    pub const ALL: [(Preset, &'static str); 5] = [
        (Preset::Tiny, "tiny"),
        (Preset::TinyV2, "tiny-v2"),
        (Preset::Small, "small"),
        (Preset::Sd15, "sd15"),
        (Preset::Sd21, "sd21"),
    ];

    /// Finds a preset by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(preset, _)| *preset)
    }
}

/// Makes a model with random weights on the CPU.
pub fn init_model(preset: Preset, seed: u64) -> StableDiffusion {
    init_model_on(preset, seed, &cpu_device())
}

/// [`init_model`] on another device: the same weights.
pub fn init_model_on(preset: Preset, seed: u64, device: &Device) -> StableDiffusion {
    let sizes = sizes(preset);
    let padding = if sizes.v2 { Padding::ExclamationMark } else { Padding::EndOfText };
    let tokenizer = Tokenizer::clip(sizes.merges, padding);
    let raw = raw_configs(&sizes, tokenizer.vocab_size());
    let configs = checkpoint::check(&raw).expect("presets are sound");
    let random = |component| Random { seed, component };
    let sources = Sources { text_encoder: &random("text_encoder"), vae: &random("vae"), unet: &random("unet") };
    StableDiffusion::build(tokenizer, &configs, raw, &sources, device)
}

/// Fan-in scaled normals; zeros for biases, ones for norms.
struct Random {
    seed: u64,
    component: &'static str,
}

impl Source for Random {
    fn fetch(&self, path: &str, shape: &[usize]) -> Option<Vec<f32>> {
        let count = shape.iter().product();
        if path.ends_with(".bias") {
            return Some(vec![0.0; count]);
        }
        if shape.len() == 1 {
            return Some(vec![1.0; count]);
        }
        let fan_in: usize = shape[1..].iter().product();
        let scale = if path.contains("embedding") { 0.02 } else { 1.0 / (fan_in as f32).sqrt() };
        let values = standard_normal(self.seed, "init", &format!("{}.{path}", self.component), count);
        Some(values.into_iter().map(|v| v * scale).collect())
    }
}

struct Sizes {
    v2: bool,
    merges: usize,
    text: [usize; 4],
    vae_channels: Vec<usize>,
    vae_groups: usize,
    vae_layers: usize,
    unet_channels: Vec<usize>,
    unet_heads: Value,
    unet_groups: usize,
    unet_layers: usize,
    /// Of the UNet, finest first.
    attends: Vec<bool>,
    sample_size: usize,
}

fn sizes(preset: Preset) -> Sizes {
    const ALL_MERGES: usize = 48_894;
    let tiny = Sizes {
        v2: false,
        merges: 1000,
        text: [16, 32, 2, 2],
        vae_channels: vec![8, 8, 16, 16],
        vae_groups: 4,
        vae_layers: 1,
        unet_channels: vec![16, 32],
        unet_heads: json!(2),
        unet_groups: 8,
        unet_layers: 1,
        attends: vec![false, true],
        sample_size: 8,
    };
    match preset {
        Preset::Tiny => tiny,
        Preset::TinyV2 => Sizes { v2: true, unet_heads: json!([2, 4]), ..tiny },
        Preset::Small => Sizes {
            merges: ALL_MERGES,
            text: [48, 192, 3, 4],
            vae_channels: vec![16, 32, 64, 64],
            vae_groups: 8,
            unet_channels: vec![48, 80, 104],
            unet_heads: json!(4),
            unet_groups: 8,
            attends: vec![false, true, true],
            sample_size: 24,
            ..tiny
        },
        Preset::Sd15 | Preset::Sd21 => {
            let v2 = preset == Preset::Sd21;
            Sizes {
                v2,
                merges: ALL_MERGES,
                text: if v2 { [1024, 4096, 23, 16] } else { [768, 3072, 12, 12] },
                vae_channels: vec![128, 256, 512, 512],
                vae_groups: 32,
                vae_layers: 2,
                unet_channels: vec![320, 640, 1280, 1280],
                unet_heads: if v2 { json!([5, 10, 20, 20]) } else { json!(8) },
                unet_groups: 32,
                unet_layers: 2,
                attends: vec![true, true, true, false],
                sample_size: if v2 { 96 } else { 64 },
            }
        }
    }
}

fn raw_configs(sizes: &Sizes, vocab_size: usize) -> RawConfigs {
    let [hidden, intermediate, layers, heads] = sizes.text;
    let block = |attends: &bool, way: &str| {
        if *attends { format!("CrossAttn{way}Block2D") } else { format!("{way}Block2D") }
    };
    let down: Vec<String> = sizes.attends.iter().map(|a| block(a, "Down")).collect();
    let up: Vec<String> = sizes.attends.iter().rev().map(|a| block(a, "Up")).collect();
    let vae_blocks = sizes.vae_channels.len();
    let prediction_type = if sizes.v2 { "v_prediction" } else { "epsilon" };
    RawConfigs {
        model_index: json!({
            "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.21.4",
            "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [null, null],
            "feature_extractor": [null, null], "requires_safety_checker": false,
        }),
        text_encoder: json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": vocab_size,
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
            "hidden_act": if sizes.v2 { "gelu" } else { "quick_gelu" }, "projection_dim": hidden,
            "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
            "initializer_factor": 1.0, "initializer_range": 0.02, "torch_dtype": "float32",
        }),
        vae: json!({
            "_class_name": "AutoencoderKL", "_diffusers_version": "0.21.4", "act_fn": "silu",
            "block_out_channels": sizes.vae_channels, "layers_per_block": sizes.vae_layers,
            "down_block_types": vec!["DownEncoderBlock2D"; vae_blocks],
            "up_block_types": vec!["UpDecoderBlock2D"; vae_blocks],
            "in_channels": 3, "out_channels": 3, "latent_channels": 4, "norm_num_groups": sizes.vae_groups,
            "sample_size": sizes.sample_size << (vae_blocks - 1), "scaling_factor": 0.18215,
        }),
        unet: json!({
            "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.21.4", "act_fn": "silu",
            "attention_head_dim": sizes.unet_heads, "block_out_channels": sizes.unet_channels,
            "center_input_sample": false, "cross_attention_dim": hidden, "down_block_types": down,
            "up_block_types": up, "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
            "in_channels": 4, "out_channels": 4, "layers_per_block": sizes.unet_layers,
            "mid_block_scale_factor": 1, "norm_eps": 1e-5, "norm_num_groups": sizes.unet_groups,
            "sample_size": sizes.sample_size, "use_linear_projection": sizes.v2,
        }),
        scheduler: json!({
            "_class_name": "DDIMScheduler", "_diffusers_version": "0.21.4", "beta_start": 0.00085,
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
            "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "trained_betas": null,
            "prediction_type": prediction_type,
        }),
    }
}

/// Keys and shapes of a preset's parameters; nothing is allocated.
#[cfg(test)]
pub(crate) fn full_size_shapes(preset: Preset) -> (checkpoint::ComponentShapes, checkpoint::Configs) {
    let configs = checkpoint::check(&raw_configs(&sizes(preset), 49_408)).expect("presets are sound");
    (checkpoint::ComponentShapes::of(&configs), configs)
}
