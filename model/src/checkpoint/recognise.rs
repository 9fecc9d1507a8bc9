//! What a file is, from the names and shapes of its tensors: one of the two families that are read, or something
//! else, which is refused by its name.

use super::stored::StoredTensor;
use serde_json::Value;
use std::collections::BTreeMap;

/// The families of models that this crate runs. They differ in the text encoder and in how many heads attend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Stable Diffusion 1.x: CLIP ViT-L/14.
    Sd1,
    /// Stable Diffusion 2.x: OpenCLIP ViT-H/14.
    Sd2,
}

impl Family {
    /// `Stable Diffusion 1.x`, `Stable Diffusion 2.x`
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "Stable Diffusion 1.x",
            Self::Sd2 => "Stable Diffusion 2.x",
        }
    }

    /// SD 2.x is told by its text encoder's activation: OpenCLIP has the exact GELU.
    pub(crate) fn of_text_config(raw: &Value) -> Self {
        if raw["hidden_act"] == "gelu" { Self::Sd2 } else { Self::Sd1 }
    }
}

/// A part of a key that only one kind of model has, and the kind's name. The first that is found counts.
const FOREIGN: [(&str, &str); 22] = [
    (".lora_down.", "a LoRA: a change to a model, not a model"),
    (".lora_A.", "a LoRA: a change to a model, not a model"),
    (".hada_w1_a", "a LoHa: a change to a model, not a model"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("double_blocks.", "Flux"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("double_layers.", "AuraFlow"),
    ("clip_txt_mapper.", "Stable Cascade"),
    ("motion_modules.", "AnimateDiff's motion module"),
    ("time_stack.", "Stable Video Diffusion"),
    ("model.diffusion_model.temporal", "a video model"),
    ("conditioner.embedders.1.", "SDXL"),
    ("conditioner.embedders.0.model.", "the SDXL refiner"),
    ("conditioner.embedders.", "SDXL"),
    ("add_embedding.linear_1.", "SDXL's UNet"),
    ("adaln_single.", "PixArt"),
    ("string_to_param", "a textual inversion: an embedding, not a model"),
    ("emb_params", "a textual inversion: an embedding, not a model"),
    ("depth_model.", "the depth model of SD 2.x"),
    ("embedder.model.visual.", "SD unCLIP"),
    ("model.diffusion_model.label_emb.", "a model with class labels (unCLIP, the upscaler, or SDXL)"),
];

const CONV_IN: &str = "model.diffusion_model.input_blocks.0.0.weight";

/// Recognises a single file, or says what it is instead.
pub(crate) fn single_file(tensors: &BTreeMap<String, StoredTensor>) -> Result<Family, String> {
    for (part, name) in FOREIGN {
        if tensors.keys().any(|key| key.contains(part)) {
            return Err(name.to_owned());
        }
    }
    let any = |prefix: &str| tensors.keys().any(|key| key.starts_with(prefix));
    let Some(conv_in) = tensors.get(CONV_IN).filter(|conv| conv.shape.len() == 4) else {
        return Err(without_unet(&any));
    };
    if let Some(purpose) = conditioned(conv_in.shape[1]) {
        return Err(purpose);
    }
    match (any("cond_stage_model.transformer."), any("cond_stage_model.model.")) {
        (true, _) => Ok(Family::Sd1),
        (_, true) => Ok(Family::Sd2),
        _ => Err("a model without a text encoder (no `cond_stage_model.*` in it)".to_owned()),
    }
}

/// What a UNet with `in_channels` channels is, unless it is a plain one.
pub(crate) fn conditioned(in_channels: usize) -> Option<String> {
    match in_channels {
        4 => None,
        9 => Some("an inpainting model (9 input channels)".to_owned()),
        5 => Some("a depth model (5 input channels)".to_owned()),
        8 => Some("an InstructPix2Pix model (8 input channels)".to_owned()),
        7 => Some("an upscaler (7 input channels)".to_owned()),
        other => Some(format!("a model with {other} input channels instead of 4")),
    }
}

fn without_unet(any: &dyn Fn(&str) -> bool) -> String {
    if any("down_blocks.") || any("unet.down_blocks.") {
        "a UNet in diffusers' names, without the other parts: name the folder with model_index.json".to_owned()
    } else if any("decoder.") || any("first_stage_model.") {
        "an autoencoder alone".to_owned()
    } else if any("text_model.") || any("cond_stage_model.") {
        "a text encoder alone".to_owned()
    } else if any("model_ema.") {
        "a file with moving averages alone (`model_ema.*`)".to_owned()
    } else {
        format!("no Stable Diffusion model (no `{CONV_IN}` in it)")
    }
}

/// Pipelines of diffusers that have the files of ours and are something else.
const FOREIGN_PIPELINES: [(&str, &str); 10] = [
    ("StableDiffusionXL", "SDXL"),
    ("StableDiffusion3", "Stable Diffusion 3"),
    ("Flux", "Flux"),
    ("StableDiffusionInpaint", "an inpainting model"),
    ("StableDiffusionDepth", "a depth model"),
    ("StableDiffusionUpscale", "an upscaler"),
    ("StableDiffusionLatentUpscale", "an upscaler"),
    ("StableDiffusionInstructPix2Pix", "an InstructPix2Pix model"),
    ("StableUnCLIP", "SD unCLIP"),
    ("StableVideoDiffusion", "Stable Video Diffusion"),
];

/// What a folder with this `model_index.json` is, unless it may be one of ours.
pub(crate) fn foreign_pipeline(index: &Value) -> Option<String> {
    let class = index["_class_name"].as_str()?;
    let found = FOREIGN_PIPELINES.iter().find(|(start, _)| class.starts_with(start));
    if let Some((_, name)) = found {
        return Some(format!("{name} ({class})"));
    }
    // A pipeline with a transformer instead of a UNet, say.
    let is_there = |part: &str| index.get(part).is_some_and(|value| !value[0].is_null());
    let others = ["transformer", "prior", "text_encoder_2", "unet_2", "controlnet", "image_projection"];
    others.into_iter().find(|part| is_there(part)).map(|part| format!("a {class}, with `{part}` in it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::stored::NumberType;
    use serde_json::json;

    fn recognised(keys: &[(&str, &[usize])]) -> Result<Family, String> {
        let stored = |shape: &[usize]| StoredTensor {
            number_type: NumberType::F32,
            shape: shape.to_vec(),
            start: 0,
            strides: None,
        };
        single_file(&keys.iter().map(|(key, shape)| ((*key).to_owned(), stored(shape))).collect())
    }

    #[test]
    fn what_is_not_ours_is_called_by_its_name() {
        let text: (&str, &[usize]) = ("cond_stage_model.transformer.text_model.final_layer_norm.bias", &[768]);
        let open_clip: (&str, &[usize]) = ("cond_stage_model.model.ln_final.bias", &[1024]);
        let unet = |channels: usize| vec![320, channels, 3, 3];
        assert_eq!(recognised(&[(CONV_IN, &unet(4)), text]), Ok(Family::Sd1));
        assert_eq!(recognised(&[(CONV_IN, &unet(4)), open_clip]), Ok(Family::Sd2));
        let refused = |keys: &[(&str, &[usize])], name: &str| {
            let said = recognised(keys).unwrap_err();
            assert!(said.contains(name), "{said}");
        };
        refused(&[(CONV_IN, &unet(9)), text], "inpainting");
        refused(&[(CONV_IN, &unet(5)), open_clip], "depth");
        refused(&[(CONV_IN, &unet(4))], "without a text encoder");
        refused(&[(CONV_IN, &unet(4)), ("conditioner.embedders.1.model.ln_final.bias", &[1280])], "SDXL");
        refused(&[("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias", &[1])], "Stable Diffusion 3");
        refused(&[("model.diffusion_model.double_blocks.0.img_mlp.0.bias", &[1])], "Flux");
        refused(&[("lora_unet_mid_block.lora_down.weight", &[1])], "LoRA");
        refused(&[("conv_in.weight", &unet(4)), ("down_blocks.0.x", &[1])], "model_index.json");
        refused(&[("decoder.conv_in.bias", &[1])], "autoencoder alone");
        refused(&[("x", &[1])], "no Stable Diffusion model");
    }

    #[test]
    fn pipelines_of_other_models_are_called_by_their_name() {
        let named = |index| foreign_pipeline(&index);
        assert_eq!(named(json!({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "x"]})), None);
        assert_eq!(named(json!({})), None);
        assert!(named(json!({"_class_name": "StableDiffusionXLPipeline"})).unwrap().contains("SDXL"));
        let transformer = json!({"_class_name": "SomethingPipeline", "transformer": ["diffusers", "x"]});
        assert!(named(transformer).unwrap().contains("SomethingPipeline"));
    }
}
