//! The UNet: noisy latents, timesteps and text states in, the predicted noise (or velocity) out.

mod blocks;
mod config;
pub(crate) mod keys;
mod stages;
mod transformer;

use crate::Compute;
use crate::layers::{Conv2d, ConvShape, GroupNorm, Linear, as_dtype, from_rows};
use crate::weights::Weights;
use blocks::{Block, BlockShape, MidBlock};
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
pub use config::{BlockType, UNetConfig};
pub(crate) use stages::{Conditions, Stage, StageInputs};

/// diffusers' `UNet2DConditionModel`, as far as SD 1.x and 2.x use it.
#[derive(Module, Debug)]
pub struct UNet {
    conv_in: Conv2d,
    time_embedding: TimeEmbedding,
    down_blocks: Vec<Block>,
    mid_block: MidBlock,
    up_blocks: Vec<Block>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    #[module(skip)]
    compute: Compute,
}

impl UNet {
    pub(crate) fn new(weights: &Weights, config: &UNetConfig) -> Self {
        let channels = &config.block_out_channels;
        let first = channels[0];
        let (down, up) = (weights.at("down_blocks"), weights.at("up_blocks"));
        Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), ConvShape::same3(config.in_channels, first)),
            time_embedding: TimeEmbedding::new(&weights.at("time_embedding"), config),
            down_blocks: (0..channels.len())
                .map(|i| Block::new(&down.at(i), config, &BlockShape::down(config, i)))
                .collect(),
            mid_block: MidBlock::new(&weights.at("mid_block"), config),
            up_blocks: (0..channels.len()).map(|i| Block::new(&up.at(i), config, &BlockShape::up(config, i))).collect(),
            conv_norm_out: GroupNorm::new(&weights.at("conv_norm_out"), config.norm_num_groups, first, config.norm_eps),
            conv_out: Conv2d::new(&weights.at("conv_out"), ConvShape::same3(first, config.out_channels)),
            compute: Compute::default(),
        }
    }

    /// Computes in another number format from now on. What goes in and comes out is f32 in each.
    pub fn compute_in(&mut self, compute: Compute) {
        self.compute = compute;
    }

    /// The number format of its activations.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Predicts what the noise scheduler's prediction type asks for.
    ///
    /// `latents`: `[batch, 4, height, width]`; `timesteps`: one per sample, in `0..num_train_timesteps`, where samplers
    /// may stand between two of them; `encoder_hidden_states`: `[batch, length, cross_attention_dim]` → `[batch, 4, height, width]`
    pub fn forward(&self, latents: Tensor<4>, timesteps: &[f32], encoder_hidden_states: Tensor<3>) -> Tensor<4> {
        let time = self.time(timesteps, &latents);
        let hidden = self.head(latents);
        let conditions = Conditions { time, text: self.text(encoder_hidden_states) };
        self.tail(self.pass(hidden, conditions, &mut |stage, inputs| stage.forward(inputs)))
    }

    /// The time embedding, SiLU applied here, once, instead of in every residual block: `[batch, time_width]`. It is
    /// computed in f32, since timesteps go up to 1000.
    pub(crate) fn time(&self, timesteps: &[f32], latents: &Tensor<4>) -> Tensor<2> {
        assert_eq!(timesteps.len(), latents.dims()[0], "one timestep per sample");
        let time = activation::silu(self.time_embedding.forward(timesteps, &latents.device()));
        as_dtype(time, self.compute.dtype())
    }

    /// Text states in the number format of the activations.
    pub(crate) fn text(&self, encoder_hidden_states: Tensor<3>) -> Tensor<3> {
        as_dtype(encoder_hidden_states, self.compute.dtype())
    }

    /// The last norm and convolution: `[batch, height, width, channels]` → `[batch, 4, height, width]`
    pub(crate) fn tail(&self, hidden: Tensor<4>) -> Tensor<4> {
        let prediction = self.conv_out.forward(self.conv_norm_out.forward_silu(hidden));
        from_rows(as_dtype(prediction, DType::F32))
    }
}

/// Sinusoids of the timestep, then two linear layers.
#[derive(Module, Debug)]
struct TimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimeEmbedding {
    fn new(weights: &Weights, config: &UNetConfig) -> Self {
        let (width, inner) = (config.block_out_channels[0], config.time_width());
        Self {
            linear_1: Linear::new(&weights.at("linear_1"), width, inner, true),
            linear_2: Linear::new(&weights.at("linear_2"), inner, inner, true),
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// `[batch, 4 * block_out_channels[0]]`
    fn forward(&self, timesteps: &[f32], device: &Device) -> Tensor<2> {
        let rows = timesteps.iter().flat_map(|t| self.sinusoids(*t)).collect::<Vec<f32>>();
        let rows = Tensor::from_data(TensorData::new(rows, [timesteps.len(), self.width]), device);
        self.linear_2.forward(activation::silu(self.linear_1.forward(rows)))
    }

    /// `sin(t·f), cos(t·f)` for `width/2` frequencies from 1 down to 1/10000, in f32 steps as PyTorch takes them.
    fn sinusoids(&self, timestep: f32) -> Vec<f32> {
        let half = self.width / 2;
        let angles = (0..half).map(|i| {
            let exponent = -(10000f64.ln() as f32) * i as f32 / (half as f64 - self.freq_shift) as f32;
            timestep * libm::expf(exponent)
        });
        let angles: Vec<f64> = angles.map(f64::from).collect();
        let sines = angles.iter().map(|a| libm::sin(*a) as f32);
        let cosines = angles.iter().map(|a| libm::cos(*a) as f32);
        let mut row: Vec<f32> =
            if self.flip_sin_to_cos { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
        row.resize(self.width, 0.0);
        row
    }
}
