//! The UNet as a row of stages: what lies between two places where activations may be dropped and computed again.
//!
//! A stage is a residual block with its transformer, a change of size, or the middle. What a stage is given is all that
//! has to be kept of it: `[batch, height, width, channels]` once, where its inside takes thirty times that.

use super::UNet;
use super::blocks::{Block, MidBlock};
use crate::layers::{as_dtype, to_rows};
use crate::ops::fork;
use crate::resnet::{Downsample, Upsample};
use burn::tensor::Tensor;

/// Part of the UNet between `conv_in` and `conv_norm_out`.
#[derive(Clone, Copy)]
pub(crate) struct Stage<'a> {
    part: Part<'a>,
    skip: Skip,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    /// A residual block and the transformer after it.
    Layer(&'a Block, usize),
    Downsample(&'a Downsample),
    Upsample(&'a Upsample),
    Middle(&'a MidBlock),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Skip {
    /// Its output is a skip connection, too.
    Leaves,
    /// It takes the last skip connection that is left.
    Takes,
    Neither,
}

/// What a stage works on.
#[derive(Clone, Debug)]
pub(crate) struct StageInputs {
    /// `[batch, height, width, channels]`
    pub(crate) hidden: Tensor<4>,
    /// A skip connection of the same height and width.
    pub(crate) skip: Option<Tensor<4>>,
    /// Time embedding and text states, where the stage uses them.
    pub(crate) conditions: Option<Conditions>,
    /// Height and width to come back to, on the way up.
    pub(crate) size: [usize; 2],
}

/// What every residual block and transformer is told.
#[derive(Clone, Debug)]
pub(crate) struct Conditions {
    /// After SiLU: `[batch, time_width]`
    pub(crate) time: Tensor<2>,
    /// `[batch, length, cross_attention_dim]`
    pub(crate) text: Tensor<3>,
}

impl Conditions {
    fn fork(self) -> [Self; 2] {
        let ([time, time_on], [text, text_on]) = (fork(self.time), fork(self.text));
        [Self { time, text }, Self { time: time_on, text: text_on }]
    }
}

impl Stage<'_> {
    /// Whether its output is a skip connection, too.
    pub(crate) fn leaves_skip(&self) -> bool {
        self.skip == Skip::Leaves
    }

    /// `[batch, ·, ·, outputs]`
    pub(crate) fn forward(&self, inputs: StageInputs) -> Tensor<4> {
        let StageInputs { hidden, skip, conditions, size } = inputs;
        let conditions = || conditions.as_ref().expect("given to every stage that uses them");
        match self.part {
            Part::Layer(block, index) => {
                let hidden = match skip {
                    Some(skip) => Tensor::cat(vec![hidden, skip], 3),
                    None => hidden,
                };
                block.layer(index, hidden, &conditions().time, &conditions().text)
            }
            Part::Downsample(down) => down.forward(hidden),
            Part::Upsample(up) => up.forward(hidden, size),
            Part::Middle(middle) => middle.forward(hidden, &conditions().time, &conditions().text),
        }
    }

    fn uses_conditions(&self) -> bool {
        matches!(self.part, Part::Layer(..) | Part::Middle(_))
    }
}

/// A pass through the stages.
struct Pass {
    hidden: Tensor<4>,
    skips: Vec<Tensor<4>>,
    conditions: Conditions,
}

impl UNet {
    /// The stages, in the order in which they compute.
    pub(crate) fn stages(&self) -> Vec<Stage<'_>> {
        let layers = |block: &'_ Block| 0..block.layers();
        let mut stages = Vec::new();
        for block in &self.down_blocks {
            stages.extend(layers(block).map(|j| Stage { part: Part::Layer(block, j), skip: Skip::Leaves }));
            stages.extend(
                block.downsamplers().iter().map(|down| Stage { part: Part::Downsample(down), skip: Skip::Leaves }),
            );
        }
        stages.push(Stage { part: Part::Middle(&self.mid_block), skip: Skip::Neither });
        for block in &self.up_blocks {
            stages.extend(layers(block).map(|j| Stage { part: Part::Layer(block, j), skip: Skip::Takes }));
            stages.extend(block.upsamplers().iter().map(|up| Stage { part: Part::Upsample(up), skip: Skip::Neither }));
        }
        stages
    }

    /// The first convolution: `[batch, 4, height, width]` → `[batch, height, width, channels]`
    pub(crate) fn head(&self, latents: Tensor<4>) -> Tensor<4> {
        self.conv_in.forward(to_rows(as_dtype(latents, self.compute.dtype())))
    }

    /// Leads `hidden`, which [`head`](Self::head) has made, through all stages: `run(stage, inputs)` gives each one's
    /// output. Returns what [`tail`](Self::tail) takes.
    pub(crate) fn pass(
        &self,
        hidden: Tensor<4>,
        conditions: Conditions,
        run: &mut dyn FnMut(Stage, StageInputs) -> Tensor<4>,
    ) -> Tensor<4> {
        let mut pass = Pass { hidden, skips: Vec::new(), conditions };
        pass.leave_skip();
        for stage in self.stages() {
            let inputs = pass.enter(&stage);
            pass.hidden = run(stage, inputs);
            if stage.leaves_skip() {
                pass.leave_skip();
            }
        }
        pass.hidden
    }
}

impl Pass {
    fn leave_skip(&mut self) {
        let [hidden, skip] = fork(self.hidden.clone());
        self.hidden = hidden;
        self.skips.push(skip);
    }

    /// Gathers the stage's inputs.
    fn enter(&mut self, stage: &Stage) -> StageInputs {
        let skip = (stage.skip == Skip::Takes).then(|| self.skips.pop().expect("one was left for every one taken"));
        let [_, height, width, _] = self.skips.last().unwrap_or(&self.hidden).dims();
        let conditions = stage.uses_conditions().then(|| {
            let [here, onward] = self.conditions.clone().fork();
            self.conditions = onward;
            here
        });
        StageInputs { hidden: self.hidden.clone(), skip, conditions, size: [height, width] }
    }
}
