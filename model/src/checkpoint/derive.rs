//! The configurations of a single file, which has none: sizes from the shapes of its tensors, and what shapes do
//! not tell (heads, groups, the noise schedule) from the family.

use super::RawConfigs;
use super::recognise::Family;
use super::stored::StoredTensor;
use crate::PredictionType;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The configurations, and what in them is no more than a guess.
pub(crate) struct Derived {
    pub(crate) raw: RawConfigs,
    pub(crate) guesses: Vec<String>,
}

/// What a single file cannot say by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stated {
    pub(crate) prediction_type: PredictionType,
    pub(crate) zero_terminal_snr: bool,
}

/// Derives the configurations of diffusers, or names the tensor that is missing for it.
pub(crate) fn configs(
    tensors: &BTreeMap<String, StoredTensor>,
    family: Family,
    stated: Stated,
) -> Result<Derived, String> {
    let mut derive = Derive { tensors, family, stated, guesses: Vec::new() };
    let (text_encoder, vae, unet) = (derive.text_encoder()?, derive.vae()?, derive.unet()?);
    let raw = RawConfigs { model_index: model_index(), text_encoder, vae, unet, scheduler: scheduler(stated) };
    Ok(Derived { raw, guesses: derive.guesses })
}

struct Derive<'a> {
    tensors: &'a BTreeMap<String, StoredTensor>,
    family: Family,
    stated: Stated,
    guesses: Vec<String>,
}

/// Channels of the models that Stability AI, RunwayML and CompVis published, and of all that were trained from them: what
/// shapes do not tell is known of these. Of any other model it is a guess, and is said to be one.
const PUBLISHED_UNET: [usize; 4] = [320, 640, 1280, 1280];
const PUBLISHED_VAE: [usize; 4] = [128, 256, 512, 512];

const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

impl Derive<'_> {
    fn unet(&mut self) -> Result<Value, String> {
        let blocks = self.unet_blocks()?;
        let channels: Vec<usize> = blocks.iter().map(|block| block.channels).collect();
        let down = |block: &UNetBlock| if block.depth > 0 { "CrossAttnDownBlock2D" } else { "DownBlock2D" };
        let up = |block: &UNetBlock| if block.depth > 0 { "CrossAttnUpBlock2D" } else { "UpBlock2D" };
        let middle = self.depth(&format!("{UNET}middle_block.1."));
        let depths: Vec<usize> = blocks.iter().map(|b| if b.depth > 0 { b.depth } else { middle }).collect();
        let heads = match self.family {
            Family::Sd1 => json!(self.eight_heads(&channels)),
            Family::Sd2 => json!(self.heads_of_64("UNet", &channels)),
        };
        let first = blocks.iter().find(|block| block.depth > 0).ok_or("no block of the UNet attends to the text")?;
        let at = format!("{UNET}input_blocks.{}.1.", first.start);
        let context = self.shape(&format!("{at}transformer_blocks.0.attn2.to_k.weight"), 2)?[1];
        let linear = self.tensors.get(&format!("{at}proj_in.weight")).is_some_and(|t| t.shape.len() == 2);
        let mut config = json!({
            "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.21.4", "act_fn": "silu",
            "attention_head_dim": heads, "block_out_channels": channels, "center_input_sample": false,
            "cross_attention_dim": context, "down_block_types": blocks.iter().map(down).collect::<Vec<_>>(),
            "up_block_types": blocks.iter().rev().map(up).collect::<Vec<_>>(), "downsample_padding": 1,
            "flip_sin_to_cos": true, "freq_shift": 0,
            "in_channels": self.shape(&format!("{UNET}input_blocks.0.0.weight"), 4)?[1],
            "out_channels": self.shape(&format!("{UNET}out.2.weight"), 4)?[0],
            "layers_per_block": blocks[0].layers, "mid_block_scale_factor": 1, "norm_eps": 1e-5,
            "norm_num_groups": self.groups("UNet", &channels), "sample_size": self.pixels() / 8,
            "use_linear_projection": linear,
        });
        if depths.iter().any(|depth| *depth != 1) {
            config["transformer_layers_per_block"] = json!(depths);
        }
        if self.family == Family::Sd2 {
            // Half precision overflows in the attention of these models.
            config["upcast_attention"] = json!(true);
        }
        Ok(config)
    }

    /// The way down, resolution by resolution: every residual block is one of `input_blocks`, and a change of size
    /// stands between two resolutions.
    fn unet_blocks(&self) -> Result<Vec<UNetBlock>, String> {
        let mut blocks = vec![];
        let mut current: Option<UNetBlock> = None;
        for at in 1.. {
            let here = format!("{UNET}input_blocks.{at}.");
            if let Some(conv) = self.tensors.get(&format!("{here}0.out_layers.3.weight")) {
                let channels = *conv.shape.first().ok_or("a convolution without dimensions")?;
                let depth = self.depth(&format!("{here}1."));
                current.get_or_insert(UNetBlock { channels, depth, layers: 0, start: at }).layers += 1;
            } else if self.tensors.contains_key(&format!("{here}0.op.weight")) {
                blocks.extend(current.take());
            } else {
                break;
            }
        }
        blocks.extend(current);
        if blocks.is_empty() {
            return Err(format!("`{UNET}input_blocks.1.0.out_layers.3.weight` is missing"));
        }
        Ok(blocks)
    }

    /// Transformer blocks of an attention.
    fn depth(&self, prefix: &str) -> usize {
        self.count(&format!("{prefix}transformer_blocks."))
    }

    fn vae(&mut self) -> Result<Value, String> {
        let blocks = self.count(&format!("{VAE}encoder.down."));
        let channels =
            (0..blocks).map(|block| Ok(self.shape(&format!("{VAE}encoder.down.{block}.block.0.conv2.weight"), 4)?[0]));
        let channels: Vec<usize> = channels.collect::<Result<_, String>>()?;
        let conv_in = self.shape(&format!("{VAE}encoder.conv_in.weight"), 4)?;
        let has = |name: &str| self.tensors.contains_key(&format!("{VAE}{name}.weight"));
        let mut config = json!({
            "_class_name": "AutoencoderKL", "_diffusers_version": "0.21.4", "act_fn": "silu",
            "block_out_channels": channels, "layers_per_block": self.count(&format!("{VAE}encoder.down.0.block.")),
            "down_block_types": vec!["DownEncoderBlock2D"; blocks], "up_block_types": vec!["UpDecoderBlock2D"; blocks],
            "in_channels": conv_in[1],
            "out_channels": self.shape(&format!("{VAE}decoder.conv_out.weight"), 4)?[0],
            "latent_channels": self.shape(&format!("{VAE}decoder.conv_in.weight"), 4)?[1],
            "sample_size": self.pixels(), "scaling_factor": 0.18215,
        });
        for (key, name) in [("use_quant_conv", "quant_conv"), ("use_post_quant_conv", "post_quant_conv")] {
            if !has(name) {
                config[key] = json!(false);
            }
        }
        config["norm_num_groups"] = json!(self.groups("autoencoder", &channels));
        Ok(config)
    }

    fn text_encoder(&mut self) -> Result<Value, String> {
        let (tokens, positions, blocks, inner) = match self.family {
            Family::Sd1 => {
                let text = "cond_stage_model.transformer.text_model.";
                (
                    format!("{text}embeddings.token_embedding.weight"),
                    format!("{text}embeddings.position_embedding.weight"),
                    format!("{text}encoder.layers."),
                    "mlp.fc1.weight",
                )
            }
            Family::Sd2 => {
                let text = "cond_stage_model.model.";
                (
                    format!("{text}token_embedding.weight"),
                    format!("{text}positional_embedding"),
                    format!("{text}transformer.resblocks."),
                    "mlp.c_fc.weight",
                )
            }
        };
        let [vocabulary, hidden] = self.shape(&tokens, 2)?[..] else { unreachable!("two dimensions") };
        let unused = self.family == Family::Sd2 && open_clip_is_complete(self.tensors);
        let layers = self.count(&blocks).saturating_sub(usize::from(unused));
        let heads = self.heads_of_64("text encoder", &[hidden])[0];
        Ok(json!({
            "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": vocabulary,
            "hidden_size": hidden, "intermediate_size": self.shape(&format!("{blocks}0.{inner}"), 2)?[0],
            "num_hidden_layers": layers, "num_attention_heads": heads,
            "max_position_embeddings": self.shape(&positions, 2)?[0], "layer_norm_eps": 1e-5,
            "hidden_act": if self.family == Family::Sd2 { "gelu" } else { "quick_gelu" },
            "projection_dim": if self.family == Family::Sd2 { 512 } else { hidden }, "attention_dropout": 0.0,
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_factor": 1.0,
            "initializer_range": 0.02, "torch_dtype": "float32",
        }))
    }

    fn pixels(&self) -> usize {
        let is_768 = self.family == Family::Sd2 && self.stated.prediction_type == PredictionType::VPrediction;
        if is_768 { 768 } else { 512 }
    }

    fn shape(&self, key: &str, dimensions: usize) -> Result<&[usize], String> {
        let tensor = self.tensors.get(key).ok_or_else(|| format!("`{key}` is missing"))?;
        if tensor.shape.len() != dimensions {
            return Err(format!("`{key}` has the shape {:?} instead of {dimensions} dimensions", tensor.shape));
        }
        Ok(&tensor.shape)
    }

    /// How many numbers follow `prefix`, from 0 without a gap.
    fn count(&self, prefix: &str) -> usize {
        let is_there = |number: &usize| {
            let start = format!("{prefix}{number}.");
            self.tensors.range(start.clone()..).next().is_some_and(|(key, _)| key.starts_with(&start))
        };
        (0..).take_while(is_there).count()
    }

    fn eight_heads(&mut self, channels: &[usize]) -> usize {
        let fits = |heads: &usize| channels.iter().all(|c| c % heads == 0);
        let heads = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        if channels != PUBLISHED_UNET {
            self.guess(format!("{heads} attention heads in the UNet ({channels:?} channels)"));
        }
        heads
    }

    /// Heads of 64 channels, as all models of the published sizes have them.
    fn heads_of_64(&mut self, whose: &str, channels: &[usize]) -> Vec<usize> {
        let is_known = channels == PUBLISHED_UNET || matches!(channels, [768 | 1024]);
        let heads: Vec<usize> = channels.iter().map(|c| if c % 64 == 0 { (c / 64).max(1) } else { 1 }).collect();
        if !is_known {
            self.guess(format!("{heads:?} attention heads in the {whose} ({channels:?} channels)"));
        }
        heads
    }

    fn groups(&mut self, whose: &str, channels: &[usize]) -> usize {
        let fits = |groups: &usize| channels.iter().all(|c| c % groups == 0);
        let groups = [32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        if channels != PUBLISHED_UNET && channels != PUBLISHED_VAE {
            self.guess(format!("{groups} groups per norm in the {whose} ({channels:?} channels)"));
        }
        groups
    }

    fn guess(&mut self, what: String) {
        self.guesses.push(what);
    }
}

struct UNetBlock {
    channels: usize,
    /// Transformer blocks of its attention; 0 without one.
    depth: usize,
    /// Residual blocks.
    layers: usize,
    /// Number of its first `input_blocks`.
    start: usize,
}

/// Whether all of OpenCLIP's text encoder is there. Its last block and what follows are then not used: SD 2.x takes
/// the state before them. Tools that know this leave them out.
pub(crate) fn open_clip_is_complete(tensors: &BTreeMap<String, StoredTensor>) -> bool {
    ["text_projection", "logit_scale"]
        .iter()
        .any(|name| tensors.contains_key(&format!("cond_stage_model.model.{name}")))
        || {
            let last = "cond_stage_model.model.transformer.resblocks.23.";
            tensors.range(last.to_owned()..).next().is_some_and(|(key, _)| key.starts_with(last))
        }
}

fn model_index() -> Value {
    json!({
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.21.4",
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "safety_checker": [null, null],
        "feature_extractor": [null, null], "requires_safety_checker": false,
    })
}

fn scheduler(stated: Stated) -> Value {
    let mut config = json!({
        "_class_name": "DDIMScheduler", "_diffusers_version": "0.21.4", "beta_start": 0.00085,
        "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "trained_betas": null,
        "prediction_type": super::prediction_name(stated.prediction_type),
    });
    if stated.zero_terminal_snr {
        config["rescale_betas_zero_snr"] = json!(true);
        config["timestep_spacing"] = json!("trailing");
    }
    config
}
