//! The state in the host's memory, for a model on the CPU.
//!
//! The trained parameters exist once, as the model's tensors, which the optimizer moves where they are; so do the optimizer's
//! two buffers and the gradient, whose memory the next step uses again.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Range;

use ballast_common::config::OptimizerConfig;
use ballast_model::adamw::{AdamW, Group, Scaled};
use ballast_model::{FlatLayout, MicroBatch, ParamGroup, StableDiffusion, Trainable, TrainedParams};

use super::{Engine, Formed, Measure, Moment, NotFinite, Pass};
use crate::collective::{Collective, Local, tree};
use crate::error::WorkerError;
use crate::hash::flat_hash;
use crate::optimizer::{adamw, all_finite, clip_factor, global_norm};

/// Trains on the CPU.
pub(crate) struct HostEngine {
    /// Holds the parameters, without autodiff.
    pub(crate) model: StableDiffusion,
    /// The places of the trained parameters.
    pub(crate) layout: FlatLayout,
    pub(crate) optimizer: AdamW,
    /// Memory of the last step's gradient, for the next one: the system takes long to clear gigabytes of fresh memory.
    spare: Cell<Vec<f32>>,
}

impl HostEngine {
    /// The trained parameters, to be read as one row.
    pub(crate) fn params(&self) -> TrainedParams<'_> {
        TrainedParams::new(&self.model.unet, &self.model.text_encoder, &self.layout)
    }

    fn moment(&self, moment: Moment) -> &[f32] {
        match moment {
            Moment::First => &self.optimizer.exp_avg,
            Moment::Second => &self.optimizer.exp_avg_sq,
        }
    }
}

impl Engine for HostEngine {
    type Flat = Vec<f32>;
    type Losses = Vec<f32>;

    fn new(model: StableDiffusion, layout: FlatLayout, optimizer: &OptimizerConfig) -> Result<Self, WorkerError> {
        Ok(Self { optimizer: adamw(optimizer, layout.total), model, layout, spare: Cell::default() })
    }

    fn model(&self) -> &StableDiffusion {
        &self.model
    }

    fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    fn flat_elements(&self) -> usize {
        self.layout.total
    }

    fn forward_backward(
        &self,
        trainable: &Trainable,
        batch: MicroBatch,
        pass: Pass,
    ) -> Result<(Vec<f32>, Vec<f32>), NotFinite> {
        let Pass { normaliser, recomputation, trains_unet } = pass;
        let (scheduler, memory) = (&self.model.noise_scheduler, self.spare.take());
        let (per_sample, mut gradient) =
            trainable.loss_and_gradient_in(memory, scheduler, batch, normaliser, recomputation);
        let per_sample: Vec<f32> = per_sample.into_data().try_to_vec().expect("losses are f32");
        if !per_sample.iter().all(|loss| loss.is_finite()) {
            return Err("loss");
        }
        if !trains_unet {
            gradient[self.layout.group_range(ParamGroup::Unet)].fill(0.0);
        }
        if all_finite(&gradient) { Ok((per_sample, gradient)) } else { Err("gradient") }
    }

    fn losses(&self, losses: Vec<f32>) -> Result<Vec<f32>, NotFinite> {
        Ok(losses)
    }

    fn add(&self, left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
        tree::add(left, right)
    }

    fn collective(&self, formed: Formed) -> Box<dyn Collective> {
        match formed {
            Formed::Alone(cancel) => Box::new(Local::new(cancel)),
            Formed::Host(collective) => collective,
            Formed::InPlace(collective) => {
                drop(collective);
                panic!("a collective of a device's memory was formed for a worker on the CPU")
            }
        }
    }

    fn measure(&self, gradient: &Vec<f32>) -> Measure {
        let norm = global_norm(gradient);
        // Of what is not finite nobody asks for the hash.
        let hash = if norm.is_finite() { flat_hash(gradient) } else { String::new() };
        Measure { norm, hash }
    }

    fn apply(&mut self, gradient: Vec<f32>, norm: f64, norm_max: f64, step: u64, groups: &[Group]) {
        let factor = clip_factor(norm, norm_max);
        let optimizer = &mut self.optimizer;
        self.model.change_trained(&self.layout, &mut |offset, values| {
            let gradient = Scaled { gradient: &gradient, factor };
            optimizer.step_part_scaled(offset, values, gradient, step, groups);
        });
        self.spare.set(gradient);
    }

    fn read_params(&self, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        self.params().read(range, sink);
    }

    fn write_params(&mut self, first: usize, values: &[f32]) {
        self.model.write_trained(&self.layout, first, values);
    }

    fn read_moment(&self, moment: Moment, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        sink(&self.moment(moment)[range]);
    }

    fn write_moment(&mut self, moment: Moment, first: usize, values: &[f32]) {
        let buffer = match moment {
            Moment::First => &mut self.optimizer.exp_avg,
            Moment::Second => &mut self.optimizer.exp_avg_sq,
        };
        buffer[first..first + values.len()].copy_from_slice(values);
    }

    fn optimizer(&self) -> Cow<'_, AdamW> {
        Cow::Borrowed(&self.optimizer)
    }

    fn change_optimizer(
        &mut self,
        change: impl FnOnce(&FlatLayout, &mut AdamW) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        change(&self.layout, &mut self.optimizer)
    }
}
