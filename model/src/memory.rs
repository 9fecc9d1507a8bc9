//! How many bytes training takes, before it starts: an analytic walk of the model.
//!
//! What lives between the forward and the backward pass are the tensors that gradient rules keep: the inputs of
//! convolutions, linear layers and norms, and what attention saves. A tensor that several rules keep is there once, so the
//! walk counts tensors, not uses. `model/tests/memory_plan.rs` compares it with counted bytes.
//!
//! On a GPU there is more than on the CPU: rounded copies of the weights live as long as the activations do, and turn into
//! gradients of the same size as the backward pass comes to them; the autoencoder encodes where activations will be; and the
//! process and the pools take what nobody asked for.

mod walk;

use crate::checkpoint::Component;
use crate::params::NamedShape;
use crate::{Checkpoint, Compute};
use serde::Serialize;
use std::collections::HashMap;

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
    /// Whether each block of the UNet is computed again in the backward pass.
    pub recomputation: bool,
    /// What activations are held in.
    pub compute: Compute,
    /// On what.
    pub target: Target,
}

/// What is computed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The CPU. The count is of f32; bf16 takes more there, since burn's operations have no gradient rules of their own.
    Cpu,
    /// A CUDA device. **Never compared with one.**
    Cuda,
}

/// Bytes that one worker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// On what.
    pub target: Target,
    /// What activations are held in.
    pub compute: Compute,
    /// Whether each block of the UNet is computed again in the backward pass.
    pub recomputation: bool,
    /// The model's parameters, all components, in f32.
    pub weights: u64,
    /// Copies of weights that the backward pass waits for: rounded ones, and those in the order that convolutions read.
    pub copies: u64,
    /// The flat gradient in f32, and sums of slots that wait for others.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// Activations that a micro-batch keeps for the backward pass.
    pub activations: u64,
    /// What single operations take while they run: an estimate.
    pub workspace: u64,
    /// What a CUDA process takes before it has allocated anything, and what pools leave unused. A guess.
    pub process: u64,
    /// All of it.
    pub total: u64,
}

/// Pixels of a latent's side.
const LATENT_SIDE: u64 = 8;
/// Scores that attention has at a time on the CPU at most, in bytes; three such tensors in the backward pass.
const SCORES: u64 = 16 << 20;
/// The CUDA context, compiled kernels and their tables. A guess.
const CUDA_CONTEXT: u64 = 768 << 20;
/// NCCL's buffers. A guess.
const NCCL_BUFFERS: u64 = 512 << 20;
/// One part of so many of what is allocated lies in pools that have no use for it. A guess.
const POOLS: u64 = 20;

impl Checkpoint {
    /// Counts the bytes that training this model takes on one worker.
    pub fn memory(&self, request: &MemoryRequest) -> MemoryPlan {
        let MemoryRequest { target, compute, recomputation, .. } = *request;
        let params = Params::of(self, request);
        let bytes = match target {
            Target::Cpu => self.on_cpu(request, &params),
            Target::Cuda => self.on_cuda(request, &params),
        };
        let Bytes { copies, activations, workspace } = bytes;
        let weights = params.all * 4;
        let gradients = params.flat * 4 * sums_alive(request.slots, request.has_peers);
        // Pages of the CPU that nothing is written to take no memory.
        let optimizer = 8 * if target == Target::Cpu { params.moved } else { params.flat };
        let tensors = weights + copies + gradients + optimizer + activations + workspace;
        let process = match target {
            Target::Cpu => 0,
            Target::Cuda => CUDA_CONTEXT + u64::from(request.has_peers) * NCCL_BUFFERS + tensors / POOLS,
        };
        MemoryPlan {
            target,
            compute,
            recomputation,
            weights,
            copies,
            gradients,
            optimizer,
            activations,
            workspace,
            process,
            total: tensors + process,
        }
    }

    fn on_cpu(&self, request: &MemoryRequest, params: &Params) -> Bytes {
        let walk = self.walk(request);
        let samples = request.micro_batch_size;
        let kept = self.kept(request, &walk).bytes(Compute::F32);
        // The rows that a sample's convolution reads, and their gradient; a thread takes a sample.
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        let rows = 2 * 4 * walk.neighbourhoods * samples.min(threads);
        let workspace = 4 * walk.transient * samples + rows + 3 * SCORES.min(4 * walk.scores * samples);
        let copies = if request.compute == Compute::Bf16 { params.copied * 2 } else { 0 };
        Bytes { copies, activations: kept * samples, workspace }
    }

    fn on_cuda(&self, request: &MemoryRequest, params: &Params) -> Bytes {
        let walk = self.walk(request);
        let (samples, value) = (request.micro_batch_size, request.compute.bytes());
        let activations = self.kept(request, &walk).bytes(request.compute) * samples;
        let copies = params.copied * value;
        // The autoencoder encodes a picture at a time, in f32: a residual block's input, its norm's result and a convolution's.
        let channels = self.configs().vae.block_out_channels[0] as u64;
        let encoding = 3 * 4 * channels * request.bucket[0] * request.bucket[1];
        let running = (walk.transient * samples * value).max(encoding.saturating_sub(activations + copies));
        // Gradients of weights wait in the number format of the computation until the flat gradient takes them.
        let waiting = (params.waiting * value).saturating_sub(activations + copies);
        Bytes { copies, activations, workspace: running + waiting }
    }

    fn walk(&self, request: &MemoryRequest) -> walk::Walk {
        walk::unet(&self.configs().unet, request.bucket.map(|side| side.div_ceil(LATENT_SIDE)))
    }

    fn kept(&self, request: &MemoryRequest, walk: &walk::Walk) -> walk::Kept {
        let text = match request.train_text_encoder {
            true => walk::text(&self.configs().text_encoder),
            false => walk::Kept::default(),
        };
        let unet = if request.recomputation { walk.kept_with_recomputation() } else { walk.kept() };
        unet + text
    }
}

/// What a pass takes.
struct Bytes {
    copies: u64,
    activations: u64,
    workspace: u64,
}

/// Numbers of parameters.
struct Params {
    /// In the model.
    all: u64,
    /// In the flat buffers: the UNet's always, whether it is trained or not.
    flat: u64,
    /// That the optimizer moves.
    moved: u64,
    /// Of which there is a copy at a time.
    copied: u64,
    /// Whose gradients are there at a time, beside the flat one.
    waiting: u64,
}

impl Params {
    fn of(checkpoint: &Checkpoint, request: &MemoryRequest) -> Self {
        let shapes = checkpoint.shapes();
        let [unet, text_encoder, vae] =
            [Component::Unet, Component::TextEncoder, Component::Vae].map(|part| shapes.count(part));
        let trained_text = if request.train_text_encoder { text_encoder } else { 0 };
        let is_copied = |shape: &NamedShape| match (request.compute, request.target) {
            (Compute::Bf16, _) => shape.shape.len() > 1 && !shape.path.contains("embedding"), // which are computed in f32
            (Compute::F32, Target::Cuda) => shape.shape.len() == 4 && shape.shape[2] > 1,
            (Compute::F32, Target::Cpu) => false,
        };
        let copied = |shapes: &[NamedShape]| -> HashMap<String, u64> {
            let mut stages = HashMap::new();
            for shape in shapes.iter().filter(|shape| is_copied(shape)) {
                *stages.entry(stage(&shape.path)).or_default() += elements(shape);
            }
            stages
        };
        let (of_unet, mut of_text) = (copied(&shapes.unet), copied(&shapes.text_encoder).values().sum::<u64>());
        if !request.train_text_encoder {
            of_text = 0;
        }
        let (copied, waiting) = if request.recomputation {
            let mut all: HashMap<String, u64> = HashMap::new();
            for shape in &shapes.unet {
                *all.entry(stage(&shape.path)).or_default() += elements(shape);
            }
            let largest = |stages: &HashMap<String, u64>| stages.values().copied().max().unwrap_or(0);
            (largest(&of_unet).max(of_text), largest(&all).max(trained_text))
        } else {
            (of_unet.values().sum::<u64>() + of_text, unet + trained_text)
        };
        let moved = if request.train_unet { unet } else { 0 } + trained_text;
        Self { all: unet + text_encoder + vae, flat: unet + trained_text, moved, copied, waiting }
    }
}

fn elements(shape: &NamedShape) -> u64 {
    shape.shape.iter().product::<usize>() as u64
}

/// The part of the UNet that is computed again at once: a residual block with its transformer, or the middle.
fn stage(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        ["down_blocks" | "up_blocks", block, "resnets" | "attentions", layer, ..] => {
            format!("{} {block} {layer}", parts[0])
        }
        ["down_blocks" | "up_blocks", block, kind, ..] => format!("{} {block} {kind}", parts[0]),
        _ => parts[0].to_owned(),
    }
}

/// Most gradients that are there at once: the one being computed, the sums of complete subtrees that wait for their
/// siblings, and one more while peers exchange theirs.
fn sums_alive(slots: u64, has_peers: bool) -> u64 {
    let waiting = (0..slots.max(1)).map(u64::count_ones).max().unwrap_or(0);
    u64::from(waiting) + 1 + u64::from(has_peers)
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

    #[test]
    fn a_stage_is_a_residual_block_with_its_transformer() {
        assert_eq!(stage("down_blocks.1.resnets.0.conv1.weight"), stage("down_blocks.1.attentions.0.proj_in.weight"));
        assert_ne!(stage("up_blocks.1.resnets.0.conv1.weight"), stage("up_blocks.1.resnets.1.conv1.weight"));
        assert_eq!(stage("mid_block.resnets.0.conv1.weight"), stage("mid_block.resnets.1.conv1.weight"));
        assert_ne!(stage("up_blocks.1.upsamplers.0.conv.weight"), stage("up_blocks.1.resnets.0.conv1.weight"));
    }
}
