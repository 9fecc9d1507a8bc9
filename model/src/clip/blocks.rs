//! The transformer inside [`ClipTextModel`](super::ClipTextModel): pre-norm blocks with a causal mask.

use super::ClipTextConfig;
use crate::Compute;
use crate::layers::{Embedding, LayerNorm, Linear, as_dtype};
use crate::ops::{AttentionShape, attention};
use crate::weights::Weights;
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, activation};

/// Embeddings, blocks, final norm.
#[derive(Module, Debug)]
pub(crate) struct TextTransformer {
    embeddings: TextEmbeddings,
    encoder: TextLayers,
    final_layer_norm: LayerNorm,
}

#[derive(Module, Debug)]
struct TextEmbeddings {
    token_embedding: Embedding,
    position_embedding: Embedding,
}

#[derive(Module, Debug)]
struct TextLayers {
    layers: Vec<TextLayer>,
}

impl TextTransformer {
    pub(crate) fn new(weights: &Weights, config: &ClipTextConfig) -> Self {
        let embeddings = weights.at("embeddings");
        let layers = weights.at("encoder").at("layers");
        let width = config.hidden_size;
        Self {
            embeddings: TextEmbeddings {
                token_embedding: Embedding::new(&embeddings.at("token_embedding"), config.vocab_size, width),
                position_embedding: Embedding::new(
                    &embeddings.at("position_embedding"),
                    config.max_position_embeddings,
                    width,
                ),
            },
            encoder: TextLayers {
                layers: (0..config.num_hidden_layers).map(|i| TextLayer::new(&layers.at(i), config)).collect(),
            },
            final_layer_norm: LayerNorm::new(&weights.at("final_layer_norm"), width, config.layer_norm_eps),
        }
    }

    /// The state after the first `layers` blocks: `[batch, length]` → `[batch, length, hidden_size]`
    pub(crate) fn hidden_state(&self, token_ids: Tensor<2, Int>, layers: usize, compute: Compute) -> Tensor<3> {
        let length = token_ids.dims()[1];
        let tokens = self.embeddings.token_embedding.forward(token_ids);
        let embedded = as_dtype(tokens + self.embeddings.position_embedding.first(length), compute.dtype());
        self.encoder.layers[..layers].iter().fold(embedded, |hidden, layer| layer.forward(hidden))
    }

    /// [`hidden_state`](Self::hidden_state), normalised.
    pub(crate) fn forward(&self, token_ids: Tensor<2, Int>, layers: usize, compute: Compute) -> Tensor<3> {
        self.final_layer_norm.forward(self.hidden_state(token_ids, layers, compute))
    }

    pub(crate) fn layers(&self) -> usize {
        self.encoder.layers.len()
    }
}

#[derive(Module, Debug)]
struct TextLayer {
    layer_norm1: LayerNorm,
    self_attn: SelfAttention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl TextLayer {
    fn new(weights: &Weights, config: &ClipTextConfig) -> Self {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        Self {
            layer_norm1: LayerNorm::new(&weights.at("layer_norm1"), width, eps),
            self_attn: SelfAttention::new(&weights.at("self_attn"), width, config.num_attention_heads),
            layer_norm2: LayerNorm::new(&weights.at("layer_norm2"), width, eps),
            mlp: Mlp::new(&weights.at("mlp"), config),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.layer_norm1.forward(x));
        x.clone() + self.mlp.forward(self.layer_norm2.forward(x))
    }
}

#[derive(Module, Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl SelfAttention {
    fn new(weights: &Weights, width: usize, heads: usize) -> Self {
        let linear = |name| Linear::new(&weights.at(name), width, width, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            heads,
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let query = self.q_proj.forward(x.clone());
        let key = self.k_proj.forward(x.clone());
        let value = self.v_proj.forward(x);
        let shape = AttentionShape { heads: self.heads, causal: true };
        self.out_proj.forward(attention(query, key, value, shape))
    }
}

#[derive(Module, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    /// x·σ(1.702 x), OpenAI's approximation, instead of the exact GELU.
    quick: bool,
}

impl Mlp {
    fn new(weights: &Weights, config: &ClipTextConfig) -> Self {
        Self {
            fc1: Linear::new(&weights.at("fc1"), config.hidden_size, config.intermediate_size, true),
            fc2: Linear::new(&weights.at("fc2"), config.intermediate_size, config.hidden_size, true),
            quick: config.hidden_act == "quick_gelu",
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let hidden = as_dtype(self.fc1.forward(x), DType::F32);
        let active =
            if self.quick { hidden.clone() * activation::sigmoid(hidden * 1.702) } else { activation::gelu(hidden) };
        self.fc2.forward(as_dtype(active, dtype))
    }
}
