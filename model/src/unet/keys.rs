//! The UNet's parameters under their original (LDM) names: `model.diffusion_model.*`.

use crate::checkpoint::SingleFileTensor;
use crate::params::NamedShape;

/// Blocks are numbered differently there: every residual block is one of `input_blocks` or `output_blocks`, and a
/// change of size is one of its own on the way down, and a part of the last one on the way up.
pub(crate) fn single_file(params: &[NamedShape]) -> Vec<SingleFileTensor> {
    let layers = 1 + params.iter().filter_map(|p| number_after(&p.path, "down_blocks.0.resnets.")).max().unwrap_or(0);
    let renamed = params.iter().map(|param| {
        let key = format!("model.diffusion_model.{}", rename(&param.path, layers, params));
        SingleFileTensor::same(key, param)
    });
    renamed.collect()
}

fn rename(path: &str, layers: usize, all: &[NamedShape]) -> String {
    let parts: Vec<&str> = path.splitn(5, '.').collect();
    match parts.as_slice() {
        ["down_blocks", block, "downsamplers", _, rest] => {
            let at = (layers + 1) * (number(block) + 1);
            format!("input_blocks.{at}.0.op.{}", rest.trim_start_matches("conv."))
        }
        ["down_blocks", block, kind, index, rest] => {
            let at = (layers + 1) * number(block) + number(index) + 1;
            format!("input_blocks.{at}.{}", within(kind, rest))
        }
        ["up_blocks", block, "upsamplers", _, rest] => {
            let at = (layers + 1) * number(block) + layers;
            let attends = all.iter().any(|p| p.path.starts_with(&format!("up_blocks.{block}.attentions.")));
            format!("output_blocks.{at}.{}.{rest}", if attends { 2 } else { 1 })
        }
        ["up_blocks", block, kind, index, rest] => {
            let at = (layers + 1) * number(block) + number(index);
            format!("output_blocks.{at}.{}", within(kind, rest))
        }
        ["mid_block", "attentions", _, ..] => format!("middle_block.1.{}", after(path, 3)),
        ["mid_block", _, index, ..] => format!("middle_block.{}.{}", 2 * number(index), resnet(after(path, 3))),
        _ => top(path),
    }
}

/// Residual blocks come first in their group, transformers second.
fn within(kind: &str, rest: &str) -> String {
    if kind == "resnets" { format!("0.{}", resnet(rest)) } else { format!("1.{rest}") }
}

fn resnet(rest: &str) -> String {
    let (layer, leaf) = rest.split_once('.').expect("a layer and its weight or bias");
    let layer = match layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        other => other,
    };
    format!("{layer}.{leaf}")
}

fn top(path: &str) -> String {
    let names = [
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("conv_in.", "input_blocks.0.0."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ];
    let found = names.iter().find_map(|(here, there)| Some(format!("{there}{}", path.strip_prefix(here)?)));
    found.unwrap_or_else(|| path.to_owned())
}

fn after(path: &str, segments: usize) -> &str {
    path.splitn(segments + 1, '.').last().unwrap_or_default()
}

fn number(text: &str) -> usize {
    text.parse().expect("blocks are numbered")
}

fn number_after(path: &str, prefix: &str) -> Option<usize> {
    path.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}
