//! The state in the memory of an accelerator.
//!
//! A slot is only started: its losses are read, and its gradient's norm is looked at, when all slots of the step were started.
//! From there the gradient goes to the collective, which finds it on the device, is measured in one short transfer,
//! and moves the parameters without another wait.

use std::borrow::Cow;
use std::ops::Range;

use ballast_common::config::OptimizerConfig;
use ballast_model::accelerator::{self, Accelerator, DeviceState, DeviceVec, PendingNorm};
use ballast_model::adamw::{AdamW, Group};
use ballast_model::{FlatLayout, MicroBatch, ParamGroup, StableDiffusion, Trainable};
use burn::tensor::Tensor;

use super::in_place::InPlace;
use super::{Engine, Formed, Measure, Moment, NotFinite, Pass};
use crate::collective::{Collective, Local, Memory, Staged};
use crate::error::WorkerError;
use crate::optimizer::settings;

/// Trains on an accelerator.
pub(crate) struct DeviceEngine<A: Accelerator> {
    /// Its trained tensors are views into the state.
    model: StableDiffusion,
    state: DeviceState<A>,
}

impl<A: Accelerator> DeviceEngine<A> {
    /// The accelerator.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests count what is asked of it"))]
    pub(crate) fn device(&self) -> &A {
        self.state.device()
    }
}

fn moment_of(moment: Moment) -> accelerator::Moment {
    match moment {
        Moment::First => accelerator::Moment::First,
        Moment::Second => accelerator::Moment::Second,
    }
}

impl<A: Accelerator> Engine for DeviceEngine<A> {
    type Flat = DeviceVec<A>;
    type Losses = (Tensor<1>, PendingNorm<A>);

    fn new(mut model: StableDiffusion, layout: FlatLayout, optimizer: &OptimizerConfig) -> Result<Self, WorkerError> {
        let device = A::open(&model.device());
        let state = DeviceState::take_up(device, &mut model, layout, settings(optimizer));
        Ok(Self { model, state })
    }

    fn model(&self) -> &StableDiffusion {
        &self.model
    }

    fn layout(&self) -> &FlatLayout {
        self.state.layout()
    }

    fn flat_elements(&self) -> usize {
        self.state.flat_elements()
    }

    fn forward_backward(
        &self,
        trainable: &Trainable,
        batch: MicroBatch,
        pass: Pass,
    ) -> Result<(Self::Losses, DeviceVec<A>), NotFinite> {
        let Pass { normaliser, recomputation, trains_unet } = pass;
        let scheduler = &self.model.noise_scheduler;
        let (losses, gradient) = self.state.loss_and_gradient(trainable, scheduler, batch, normaliser, recomputation);
        if !trains_unet {
            self.state.forget(&gradient, ParamGroup::Unet);
        }
        Ok(((losses, self.state.norm(&gradient)), gradient))
    }

    fn losses(&self, (losses, norm): Self::Losses) -> Result<Vec<f32>, NotFinite> {
        let losses: Vec<f32> = losses.into_data().try_to_vec().expect("losses are f32");
        if !losses.iter().all(|loss| loss.is_finite()) {
            return Err("loss");
        }
        if norm.wait().is_finite() { Ok(losses) } else { Err("gradient") }
    }

    fn add(&self, left: DeviceVec<A>, right: DeviceVec<A>) -> DeviceVec<A> {
        left.plus(&right)
    }

    fn collective(&self, formed: Formed) -> Box<dyn Collective<DeviceVec<A>>> {
        let memory = DeviceMemory(self.state.device().clone());
        match formed {
            Formed::Alone(cancel) => Box::new(Local::within(memory, cancel)),
            Formed::Host(collective) => Box::new(Staged::new(collective, memory)),
            Formed::InPlace(collective) => Box::new(InPlace::new(self.state.device().clone(), collective)),
        }
    }

    fn measure(&self, gradient: &DeviceVec<A>) -> Measure {
        let measured = self.state.measure(gradient);
        Measure { norm: measured.norm, hash: blake3::hash(&measured.digests).to_hex().to_string() }
    }

    fn apply(&mut self, gradient: DeviceVec<A>, norm: f64, norm_max: f64, step: u64, groups: &[Group]) {
        self.state.apply(&mut self.model, gradient, (norm, norm_max), step, groups);
    }

    fn read_params(&self, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        self.state.read_params(range, sink);
    }

    fn write_params(&mut self, first: usize, values: &[f32]) {
        self.state.write_params(&mut self.model, first, values);
    }

    fn read_moment(&self, moment: Moment, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        self.state.read_moment(moment_of(moment), range, sink);
    }

    fn write_moment(&mut self, moment: Moment, first: usize, values: &[f32]) {
        self.state.write_moment(moment_of(moment), first, values);
    }

    fn optimizer(&self) -> Cow<'_, AdamW> {
        let total = self.layout().total;
        let mut optimizer = AdamW::new(self.state.settings(), 0);
        for (moment, buffer) in Moment::ALL.into_iter().zip([&mut optimizer.exp_avg, &mut optimizer.exp_avg_sq]) {
            buffer.reserve_exact(total);
            self.read_moment(moment, 0..total, &mut |values| buffer.extend_from_slice(values));
        }
        Cow::Owned(optimizer)
    }

    fn change_optimizer(
        &mut self,
        change: impl FnOnce(&FlatLayout, &mut AdamW) -> Result<(), WorkerError>,
    ) -> Result<(), WorkerError> {
        let mut optimizer = self.optimizer().into_owned();
        change(self.layout(), &mut optimizer)?;
        for (moment, values) in Moment::ALL.into_iter().zip([&optimizer.exp_avg, &optimizer.exp_avg_sq]) {
            self.write_moment(moment, 0, values);
        }
        Ok(())
    }
}

/// The accelerator's memory, as a collective knows it.
struct DeviceMemory<A>(A);

impl<A: Accelerator> Memory<DeviceVec<A>> for DeviceMemory<A> {
    fn len(&self, values: &DeviceVec<A>) -> usize {
        values.len()
    }

    fn zeros(&self, elements: usize) -> DeviceVec<A> {
        DeviceVec::zeros(&self.0, elements)
    }

    fn add(&self, left: DeviceVec<A>, right: DeviceVec<A>) -> DeviceVec<A> {
        left.plus(&right)
    }

    fn download(&self, values: DeviceVec<A>) -> Vec<f32> {
        values.read(0..values.len())
    }

    fn upload(&self, values: Vec<f32>) -> DeviceVec<A> {
        DeviceVec::from_host(&self.0, &values)
    }
}
