//! How many bytes training takes, before it starts: an analytic walk of the model.
//!
//! What lives between the forward and the backward pass are the tensors that gradient rules keep: the inputs of
//! convolutions, linear layers and norms, and what attention saves. A tensor that several rules keep is there once, so the
//! walk counts tensors, not uses. `model/tests/memory.rs` compares it with counted bytes.

use crate::Checkpoint;
use crate::clip::ClipTextConfig;
use crate::unet::{BlockType, UNetConfig};
use serde::Serialize;

/// What is trained, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRequest {
    /// Samples of a micro-batch.
    pub micro_batch_size: u64,
    /// Micro-batches that this worker computes in a step.
    pub slots: u64,
    /// Whether gradients are added up with other workers.
    pub has_peers: bool,
    /// Pixels of a side of the largest pictures: `[height, width]`.
    pub bucket: [u64; 2],
    /// Whether the UNet is trained.
    pub train_unet: bool,
    /// Whether the text encoder is trained.
    pub train_text_encoder: bool,
    /// On what.
    pub target: Target,
}

/// What is computed on, and in which precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The CPU, in f32.
    Cpu,
    /// A CUDA device: bf16 activations and a bf16 copy of the weights, f32 everywhere else. **Never compared with a
    /// device.**
    Cuda,
}

/// Bytes that one worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// On what.
    pub target: Target,
    /// The model's parameters, all components.
    pub weights: u64,
    /// The gradient, and sums of slots that wait for others.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// Activations that a micro-batch keeps for the backward pass.
    pub activations: u64,
    /// The same where each block of the UNet is computed again in the backward pass.
    pub activations_recomputed: u64,
    /// What single operations take while they run: an estimate.
    pub workspace: u64,
    /// All of it, without recomputation.
    pub total: u64,
    /// All of it, with recomputation.
    pub total_recomputed: u64,
}

/// Rows of text states.
const TEXT_LENGTH: u64 = 77;
/// Pixels of a latent's side.
const LATENT_SIDE: u64 = 8;
/// Scores that attention has at a time on the CPU at most, in bytes; three such tensors in the backward pass.
const SCORES: u64 = 16 << 20;
/// What a CUDA process takes before it has allocated anything, and what pools leave unused. A guess.
const CUDA_RESERVE: u64 = 1 << 30;

impl Checkpoint {
    /// Counts the bytes that training this model takes on one worker.
    pub fn memory(&self, request: &MemoryRequest) -> MemoryPlan {
        let part = |name| self.describe().parts.iter().find(|part| part.name == name).map_or(0, |part| part.parameters);
        let [unet, text_encoder, vae] = ["unet", "text_encoder", "vae"].map(part);
        let trained = [(request.train_unet, unet), (request.train_text_encoder, text_encoder)];
        let trained: u64 = trained.iter().filter(|(is, _)| *is).map(|(_, count)| count).sum();
        let all = unet + text_encoder + vae;
        let (value, copies) = match request.target {
            Target::Cpu => (4, 0),
            Target::Cuda => (2, 2),
        };
        let [height, width] = request.bucket.map(|side| side.div_ceil(LATENT_SIDE));
        let configs = self.configs();
        let walk = unet_walk(&configs.unet, [height, width]);
        let samples = request.micro_batch_size;
        let text = if request.train_text_encoder { text_elements(&configs.text_encoder) } else { 0 };
        let bytes = |elements: u64| elements * value * samples;
        let activations = bytes(walk.kept() + text);
        let activations_recomputed = bytes(walk.kept_with_recomputation() + text);
        let workspace = match request.target {
            Target::Cpu => {
                // The rows that a sample's convolution reads, and their gradient; a thread takes a sample.
                let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
                let rows = 2 * 4 * walk.neighbourhoods * samples.min(threads);
                bytes(walk.transient) + rows + 3 * SCORES.min(bytes(walk.scores))
            }
            Target::Cuda => bytes(walk.transient) + CUDA_RESERVE,
        };
        let weights = all * (4 + copies);
        let gradients = trained * 4 * sums_alive(request.slots, request.has_peers);
        let optimizer = trained * 8;
        let fixed = weights + gradients + optimizer + workspace;
        MemoryPlan {
            target: request.target,
            weights,
            gradients,
            optimizer,
            activations,
            activations_recomputed,
            workspace,
            total: fixed + activations,
            total_recomputed: fixed + activations_recomputed,
        }
    }
}

/// Most gradients that are there at once: the one being computed, the sums of complete subtrees that wait for their
/// siblings, and one more while peers exchange theirs.
fn sums_alive(slots: u64, has_peers: bool) -> u64 {
    let waiting = (0..slots.max(1)).map(u64::count_ones).max().unwrap_or(0);
    u64::from(waiting) + 1 + u64::from(has_peers)
}

/// Elements per sample that the UNet keeps.
#[derive(Debug, Default)]
struct Walk {
    /// Kept by every residual block, transformer and change of size, one after the other; and of that the block's own
    /// input, which recomputation keeps too.
    blocks: Vec<(u64, u64)>,
    /// The largest gradients in flight.
    transient: u64,
    /// The largest attention's scores.
    scores: u64,
    /// The largest matrix of neighbourhoods, which the CPU's convolution makes for a sample at a time.
    neighbourhoods: u64,
}

impl Walk {
    fn kept(&self) -> u64 {
        self.blocks.iter().map(|(kept, _)| kept).sum()
    }

    fn kept_with_recomputation(&self) -> u64 {
        let inputs: u64 = self.blocks.iter().map(|(_, input)| input).sum();
        inputs + self.blocks.iter().map(|(kept, input)| kept - input).max().unwrap_or(0)
    }

    fn conv(&mut self, inputs: u64, outputs: u64, pixels: u64) {
        self.neighbourhoods = self.neighbourhoods.max(9 * inputs * pixels);
        self.transient = self.transient.max((inputs + outputs) * pixels);
    }

    /// Norm's input, SiLU's result, norm's input, SiLU's result.
    fn resnet(&mut self, inputs: u64, outputs: u64, pixels: u64) {
        self.blocks.push((2 * inputs * pixels + 2 * outputs * pixels, inputs * pixels));
        self.conv(inputs, outputs, pixels);
    }

    /// The norm's input and result; then per layer: three norms' inputs, results and statistics, queries, keys, values and result of two
    /// attentions, and around GEGLU a width of 8 and one of 4; the input of the last projection.
    fn transformer(&mut self, shape: Transformer, pixels: u64) {
        let Transformer { channels, heads, layers } = shape;
        let rows = channels * pixels;
        let norms = 6 * rows + 6 * pixels;
        let to_itself = 4 * rows + heads * pixels;
        let to_text = 2 * rows + 2 * channels * TEXT_LENGTH + heads * pixels;
        let layer = norms + to_itself + to_text + 12 * rows;
        self.blocks.push((2 * rows + layers * layer + rows, rows));
        self.transient = self.transient.max(12 * rows);
        self.scores = self.scores.max(heads * pixels * pixels.max(TEXT_LENGTH));
    }
}

#[derive(Clone, Copy)]
struct Transformer {
    channels: u64,
    heads: u64,
    layers: u64,
}

fn unet_walk(config: &UNetConfig, latent: [u64; 2]) -> Walk {
    let channels: Vec<u64> = config.block_out_channels.iter().map(|channels| *channels as u64).collect();
    let transformer = |level: usize| Transformer {
        channels: channels[level],
        heads: config.attention_head_dim.at(level) as u64,
        layers: config.transformer_layers_per_block.at(level) as u64,
    };
    let levels = channels.len();
    let mut sizes = vec![latent];
    for level in 1..levels {
        sizes.push(sizes[level - 1].map(|side| side.div_ceil(2)));
    }
    let pixels: Vec<u64> = sizes.iter().map(|[height, width]| height * width).collect();
    let mut walk = Walk::default();
    // The noisy latents, the text states, and the error of the prediction.
    let ends = (config.in_channels + 2 * config.out_channels) as u64 * pixels[0];
    walk.blocks.push((ends + TEXT_LENGTH * config.cross_attention_dim as u64, 0));
    for level in 0..levels {
        let has_attention = config.down_block_types[level] == BlockType::CrossAttention;
        for layer in 0..config.layers_per_block {
            let inputs = if layer == 0 { channels[level.saturating_sub(1)] } else { channels[level] };
            walk.resnet(inputs, channels[level], pixels[level]);
            if has_attention {
                walk.transformer(transformer(level), pixels[level]);
            }
        }
        if level + 1 < levels {
            let input = channels[level] * pixels[level];
            walk.blocks.push((input, input)); // the strided convolution's input
        }
    }
    let last = levels - 1;
    walk.resnet(channels[last], channels[last], pixels[last]);
    walk.transformer(transformer(last), pixels[last]);
    walk.resnet(channels[last], channels[last], pixels[last]);
    for index in 0..levels {
        let level = last - index;
        let count = config.layers_per_block + 1;
        for layer in 0..count {
            let hidden = if layer == 0 { channels[(level + 1).min(last)] } else { channels[level] };
            let skip = if layer + 1 == count { channels[level.saturating_sub(1)] } else { channels[level] };
            walk.resnet(hidden + skip, channels[level], pixels[level]);
            if config.up_block_types[index] == BlockType::CrossAttention {
                walk.transformer(transformer(level), pixels[level]);
            }
        }
        if level > 0 {
            let enlarged = channels[level] * pixels[level - 1];
            walk.blocks.push((enlarged, channels[level] * pixels[level]));
            walk.conv(channels[level], channels[level], pixels[level - 1]);
        }
    }
    walk.blocks.push((2 * channels[0] * pixels[0], channels[0] * pixels[0]));
    walk
}

/// Elements per sample that the text encoder keeps: per layer two norms' inputs, results and statistics, queries, keys, values and result,
/// and the MLP's hidden values before and after its activation (OpenAI's has a sigmoid in between).
fn text_elements(config: &ClipTextConfig) -> u64 {
    let (width, inner) = (config.hidden_size as u64, config.intermediate_size as u64);
    let hidden = if config.hidden_act == "quick_gelu" { 3 } else { 2 };
    let layer = TEXT_LENGTH * (8 * width + 4 + hidden * inner + config.num_attention_heads as u64);
    config.num_hidden_layers as u64 * layer + TEXT_LENGTH * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_wait_for_their_siblings() {
        let alive = |slots| sums_alive(slots, false);
        assert_eq!([1, 2, 3, 4, 8, 9].map(alive), [1, 2, 2, 3, 4, 4]);
        assert_eq!(sums_alive(1, true), 2);
    }

    /// SD 1.5 at 512 pixels, worked out apart from this code: 0.72 GiB per picture in bf16, 0.13 with recomputation.
    #[test]
    fn sd15_at_512_pixels() {
        let walk = unet_walk(&UNetConfig { cross_attention_dim: 768, ..UNetConfig::default() }, [64, 64]);
        assert_eq!([walk.kept(), walk.kept_with_recomputation()], [388_056_576, 70_590_592]);
    }
}
