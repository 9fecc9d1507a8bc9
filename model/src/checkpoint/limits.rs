//! Sizes that a configuration may ask for. A model is built to learn its parameters' names before any weight is read,
//! so that a configuration with a billion layers must be refused before that.

use super::Configs;
use crate::config::{ConfigError, PerBlock, ensure};
use serde_json::Value;

/// Far beyond every model of these families, and small enough that products of three fit into 64 bits.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 256;
const MAX_BLOCKS: usize = 16;

type Claim<'a> = (&'a str, usize, usize);

/// Refuses sizes of zero and sizes that no model has; an error comes with the file's place in the folder.
pub(crate) fn check(configs: &Configs) -> Result<(), (&'static str, ConfigError)> {
    let (text, vae, unet) = (&configs.text_encoder, &configs.vae, &configs.unet);
    let text_claims = [
        ("vocab_size", text.vocab_size, MAX_WIDTH),
        ("hidden_size", text.hidden_size, MAX_WIDTH),
        ("intermediate_size", text.intermediate_size, MAX_WIDTH),
        ("num_hidden_layers", text.num_hidden_layers, MAX_LAYERS),
        ("max_position_embeddings", text.max_position_embeddings, MAX_WIDTH),
    ];
    claims("text_encoder", &text_claims).map_err(|e| ("text_encoder/config.json", e))?;
    let mut vae_claims = vec![
        ("in_channels", vae.in_channels, MAX_WIDTH),
        ("out_channels", vae.out_channels, MAX_WIDTH),
        ("latent_channels", vae.latent_channels, MAX_WIDTH),
        ("layers_per_block", vae.layers_per_block, MAX_LAYERS),
        ("the number of block_out_channels", vae.block_out_channels.len(), MAX_BLOCKS),
    ];
    vae_claims.extend(vae.block_out_channels.iter().map(|n| ("block_out_channels", *n, MAX_WIDTH)));
    claims("vae", &vae_claims).map_err(|e| ("vae/config.json", e))?;
    let mut unet_claims = vec![
        ("in_channels", unet.in_channels, MAX_WIDTH),
        ("out_channels", unet.out_channels, MAX_WIDTH),
        ("layers_per_block", unet.layers_per_block, MAX_LAYERS),
        ("cross_attention_dim", unet.cross_attention_dim, MAX_WIDTH),
        ("the number of block_out_channels", unet.block_out_channels.len(), MAX_BLOCKS),
    ];
    unet_claims.extend(unet.block_out_channels.iter().map(|n| ("block_out_channels", *n, MAX_WIDTH)));
    let depths = match &unet.transformer_layers_per_block {
        PerBlock::One(depth) => std::slice::from_ref(depth),
        PerBlock::Each(depths) => depths,
    };
    unet_claims.extend(depths.iter().map(|n| ("transformer_layers_per_block", *n, MAX_LAYERS)));
    claims("unet", &unet_claims).map_err(|e| ("unet/config.json", e))
}

/// Refuses a noise schedule of more timesteps than a table is made for. SD has 1000.
pub(crate) fn check_timesteps(scheduler: &Value) -> Result<(), (&'static str, ConfigError)> {
    const MAX_TIMESTEPS: u64 = 1 << 20;
    let timesteps = scheduler["num_train_timesteps"].as_u64().unwrap_or(1);
    let fits = timesteps <= MAX_TIMESTEPS;
    let problem = || format!("num_train_timesteps is {timesteps}, allowed is up to {MAX_TIMESTEPS}");
    ensure("scheduler", fits, problem).map_err(|e| ("scheduler/scheduler_config.json", e))
}

fn claims(component: &'static str, claims: &[Claim]) -> Result<(), ConfigError> {
    claims.iter().try_for_each(|(key, value, limit)| {
        ensure(component, (1..=*limit).contains(value), || format!("{key} is {value}, allowed is 1 to {limit}"))
    })
}
