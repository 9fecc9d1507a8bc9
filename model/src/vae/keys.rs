//! The autoencoder's parameters under other names: the original ones (LDM), `first_stage_model.*`, and those of
//! old diffusers folders.

use crate::checkpoint::SingleFileTensor;
use crate::params::NamedShape;

/// Attention layers: here, in old diffusers folders, in single files.
const ATTENTION: [(&str, &str, &str); 5] = [
    ("group_norm", "group_norm", "norm"),
    ("to_q", "query", "q"),
    ("to_k", "key", "k"),
    ("to_v", "value", "v"),
    ("to_out.0", "proj_attn", "proj_out"),
];

const MID_ATTENTION: &str = ".mid_block.attentions.0.";

/// The key of today's diffusers for a key of a `vae/` folder.
pub(crate) fn canonical(key: &str) -> Option<String> {
    let Some((coder, rest)) = key.split_once(MID_ATTENTION) else { return Some(key.to_owned()) };
    let (layer, leaf) = rest.rsplit_once('.')?;
    let today = ATTENTION.iter().find(|(_, old, _)| *old == layer).map_or(layer, |(today, ..)| today);
    Some(format!("{coder}{MID_ATTENTION}{today}.{leaf}"))
}

/// Names of single files. The decoder's blocks are numbered from the finest there, and the attention's linear
/// layers are 1x1 convolutions.
pub(crate) fn single_file(params: &[NamedShape]) -> Vec<SingleFileTensor> {
    let up_blocks = params.iter().filter_map(|p| p.path.strip_prefix("decoder.up_blocks.")?.split('.').next());
    let last = up_blocks.filter_map(|block| block.parse::<usize>().ok()).max().unwrap_or(0);
    params.iter().map(|param| renamed(param, last)).collect()
}

fn renamed(param: &NamedShape, last_up_block: usize) -> SingleFileTensor {
    let path = &param.path;
    let mut shape = param.shape.clone();
    let name = if let Some((coder, rest)) = path.split_once(MID_ATTENTION) {
        let (layer, leaf) = rest.rsplit_once('.').expect("a layer and its weight or bias");
        let original = ATTENTION.iter().find(|(today, ..)| *today == layer).map_or(layer, |(.., original)| original);
        if shape.len() == 2 {
            shape.extend([1, 1]);
        }
        format!("{coder}.mid.attn_1.{original}.{leaf}")
    } else {
        block_name(path, last_up_block)
    };
    let name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut");
    SingleFileTensor { key: format!("first_stage_model.{name}"), shape, parts: vec![path.clone()] }
}

fn block_name(path: &str, last_up_block: usize) -> String {
    let parts: Vec<&str> = path.splitn(6, '.').collect();
    match parts.as_slice() {
        [coder, "mid_block", "resnets", index, rest @ ..] => {
            let index: usize = index.parse().expect("blocks are numbered");
            format!("{coder}.mid.block_{}.{}", index + 1, rest.join("."))
        }
        [coder, "down_blocks", block, "resnets", index, rest] => format!("{coder}.down.{block}.block.{index}.{rest}"),
        [coder, "down_blocks", block, _, _, rest] => format!("{coder}.down.{block}.downsample.{rest}"),
        [coder, "up_blocks", block, kind, index, rest] => {
            let block = last_up_block - block.parse::<usize>().expect("blocks are numbered");
            if *kind == "resnets" {
                format!("{coder}.up.{block}.block.{index}.{rest}")
            } else {
                format!("{coder}.up.{block}.upsample.{rest}")
            }
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attention_names_of_old_folders_are_todays() {
        let names = [
            ("encoder.mid_block.attentions.0.query.weight", "encoder.mid_block.attentions.0.to_q.weight"),
            ("decoder.mid_block.attentions.0.key.bias", "decoder.mid_block.attentions.0.to_k.bias"),
            ("decoder.mid_block.attentions.0.value.weight", "decoder.mid_block.attentions.0.to_v.weight"),
            ("encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid_block.attentions.0.to_out.0.bias"),
            ("encoder.mid_block.attentions.0.group_norm.bias", "encoder.mid_block.attentions.0.group_norm.bias"),
        ];
        for (old, today) in names {
            assert_eq!(canonical(old).as_deref(), Some(today));
            assert_eq!(canonical(today).as_deref(), Some(today));
        }
    }
}
