//! A training step that keeps the inputs of the UNet's stages only, and computes each stage again when its gradient is
//! due ("gradient checkpointing", arXiv:1604.06174).
//!
//! The forward pass has no tape. The backward pass goes from the last stage to the first: run the stage with a tape,
//! send the gradient of its output through it, hand its parameters' gradients over, go on with those of its inputs. The
//! tensors with many users (skip connections, time embedding, text states) are forked in both ways of computing
//! ([`fork`](crate::ops::fork)), and the sums below have the terms that the forks have: the bits are the same.

use crate::flat::FlatGradient;
use crate::objective::Inputs;
use crate::ops::seed;
use crate::unet::{Conditions, Stage, StageInputs};
use crate::{MicroBatch, NoiseScheduler, Trainable};
use burn::module::Module;
use burn::tensor::{Gradients, Tensor};

/// What [`Trainable::loss_and_gradient_in`] returns, with recomputation.
pub(crate) fn loss_and_gradient(
    trainable: &Trainable,
    memory: Vec<f32>,
    noise_scheduler: &NoiseScheduler,
    batch: MicroBatch,
    normaliser: f32,
) -> (Tensor<1>, Vec<f32>) {
    let Trainable { unet, text_encoder, .. } = trainable;
    let plain = unet.valid(); // shares the tensors
    let device = batch.latents.device();
    let token_ids = batch.token_ids.clone();
    let inputs = Inputs::new(noise_scheduler, batch, normaliser);
    let (noisy, timesteps) = (inputs.noisy.clone(), inputs.timesteps.clone());

    let conditions =
        Conditions { time: plain.time(&timesteps, &noisy), text: text_encoder.valid().encode(&token_ids, &device) };
    let mut kept = Vec::new();
    let hidden = plain.pass(plain.head(noisy.clone()), conditions, &mut |stage, inputs| {
        kept.push(inputs.clone());
        stage.forward(inputs)
    });

    let mut flat = FlatGradient::new(trainable, memory);
    let hidden = leaf(hidden);
    let loss = inputs.loss(unet.tail(hidden.clone()));
    let mut gradients = flat.backward(loss.scalar);
    let mut backward =
        Backward { hidden: gradient_of(&hidden, &mut gradients), skips: Vec::new(), time: None, text: None };
    drop((hidden, gradients));
    for (stage, inputs) in unet.stages().into_iter().zip(kept).rev() {
        backward = backward.through(stage, inputs, trainable, &mut flat);
    }

    let Backward { hidden, mut skips, time, text } = backward;
    let hidden = hidden + skips.pop().expect("the first convolution leaves the first skip connection");
    flat.backward(seed(unet.head(noisy.clone()), hidden));
    let time = time.expect("every residual block uses it");
    flat.backward(seed(unet.time(&timesteps, &noisy), time));
    if let Some(text) = text {
        flat.backward(seed(text_encoder.encode(&token_ids, &device), text));
    }
    (loss.per_sample, flat.into_values())
}

/// The gradients on their way back.
struct Backward {
    /// Of what the stage before has given to the one behind it: without its skip connection.
    hidden: Tensor<4>,
    /// Of the skip connections, the first one left at the bottom.
    skips: Vec<Tensor<4>>,
    time: Option<Tensor<2>>,
    text: Option<Tensor<3>>,
}

impl Backward {
    fn through(mut self, stage: Stage, inputs: StageInputs, trainable: &Trainable, flat: &mut FlatGradient) -> Self {
        let mut output = self.hidden;
        if stage.leaves_skip() {
            output = output + self.skips.pop().expect("one was taken for every one left");
        }
        let lift_text = |text: Tensor<3>| if trainable.trains_text_encoder() { leaf(text) } else { text };
        let inputs = StageInputs {
            hidden: leaf(inputs.hidden),
            skip: inputs.skip.map(leaf),
            conditions: inputs.conditions.map(|c| Conditions { time: leaf(c.time), text: lift_text(c.text) }),
            size: inputs.size,
        };
        let mut gradients = flat.backward(seed(stage.forward(inputs.clone()), output));
        self.skips.extend(inputs.skip.map(|skip| gradient_of(&skip, &mut gradients)));
        if let Some(Conditions { time, text }) = inputs.conditions {
            self.time = Some(sum(gradient_of(&time, &mut gradients), self.time));
            if trainable.trains_text_encoder() {
                // A stage without a transformer does not use it.
                if let Some(gradient) = text.grad_remove(&mut gradients) {
                    self.text = Some(sum(gradient, self.text));
                }
            }
        }
        Self { hidden: gradient_of(&inputs.hidden, &mut gradients), ..self }
    }
}

/// Puts a tensor under autodiff, as one whose gradient is wanted.
fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.autodiff().require_grad()
}

fn gradient_of<const D: usize>(leaf: &Tensor<D>, gradients: &mut Gradients) -> Tensor<D> {
    leaf.grad_remove(gradients).expect("the result depends on it")
}

fn sum<const D: usize>(here: Tensor<D>, onward: Option<Tensor<D>>) -> Tensor<D> {
    match onward {
        Some(onward) => here + onward,
        None => here,
    }
}
