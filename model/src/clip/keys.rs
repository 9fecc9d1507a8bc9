//! The text encoder's parameters under other names: without prefix (transformers 5), and those of single files,
//! which are transformers' for SD 1.x and OpenCLIP's for SD 2.x.

use super::ClipTextConfig;
use crate::checkpoint::SingleFileTensor;
use crate::params::NamedShape;

/// The published key for a key of a `text_encoder/` folder. Position ids are a constant table, and the text
/// projection is not used by Stable Diffusion 1.x and 2.x.
pub(crate) fn canonical(key: &str) -> Option<String> {
    if key.ends_with("position_ids") || key == "text_projection.weight" {
        return None;
    }
    let known = ["embeddings.", "encoder.", "final_layer_norm."];
    let bare = known.iter().any(|prefix| key.starts_with(prefix));
    Some(if bare { format!("text_model.{key}") } else { key.to_owned() })
}

/// Names of single files: OpenCLIP's for a text encoder with the exact GELU, as only SD 2.x has.
pub(crate) fn single_file(params: &[NamedShape], config: &ClipTextConfig) -> Vec<SingleFileTensor> {
    if config.hidden_act == "gelu" {
        open_clip(params)
    } else {
        let key = |path: &str| format!("cond_stage_model.transformer.{path}");
        params.iter().map(|param| SingleFileTensor::same(key(&param.path), param)).collect()
    }
}

fn open_clip(params: &[NamedShape]) -> Vec<SingleFileTensor> {
    let names = params.iter().filter_map(|param| {
        let (name, fused) = open_clip_name(&param.path)?;
        let mut tensor = SingleFileTensor::same(format!("cond_stage_model.model.{name}"), param);
        if fused {
            tensor.shape[0] *= 3;
            tensor.parts = ["q_proj", "k_proj", "v_proj"].map(|part| param.path.replace("q_proj", part)).to_vec();
        }
        Some(tensor)
    });
    names.collect()
}

/// OpenCLIP's name, and whether it holds query, key and value together; `None` for key and value, which are told
/// of at the query.
fn open_clip_name(path: &str) -> Option<(String, bool)> {
    let path = path.strip_prefix("text_model.").unwrap_or(path);
    match path {
        "embeddings.token_embedding.weight" => return Some(("token_embedding.weight".to_owned(), false)),
        "embeddings.position_embedding.weight" => return Some(("positional_embedding".to_owned(), false)),
        _ => {}
    }
    if let Some(leaf) = path.strip_prefix("final_layer_norm.") {
        return Some((format!("ln_final.{leaf}"), false));
    }
    let (layer, rest) = path.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (part, leaf) = rest.rsplit_once('.')?;
    let (name, fused) = match part {
        "layer_norm1" => (format!("ln_1.{leaf}"), false),
        "layer_norm2" => (format!("ln_2.{leaf}"), false),
        "mlp.fc1" => (format!("mlp.c_fc.{leaf}"), false),
        "mlp.fc2" => (format!("mlp.c_proj.{leaf}"), false),
        "self_attn.out_proj" => (format!("attn.out_proj.{leaf}"), false),
        "self_attn.q_proj" => (format!("attn.in_proj_{leaf}"), true),
        _ => return None,
    };
    Some((format!("transformer.resblocks.{layer}.{name}"), fused))
}
