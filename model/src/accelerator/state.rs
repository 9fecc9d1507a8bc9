//! Parameters and optimizer of a model on a device.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::device_vec::DeviceVec;
use super::gradient::DeviceGradient;
use super::launches::{self, NORM_BYTES, Step};
use super::layout::PaddedLayout;
use super::memory::Accelerator;
use crate::adamw::{AdamWSettings, Group};
use crate::params::{self, ParamSource};
use crate::{FlatLayout, MicroBatch, NoiseScheduler, ParamGroup, StableDiffusion, Trainable};

/// Elements that are brought to the host at a time: 64 MiB.
const READ_ELEMENTS: usize = 16 << 20;

/// One of the optimizer's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The running mean of the gradient.
    First,
    /// The running mean of the squared gradient.
    Second,
}

/// What a gradient is known by.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The L2 norm; not finite where an element is not.
    pub norm: f64,
    /// Digests of its chunks, as the device wrote them: another order or another bit gives others.
    pub digests: Vec<u8>,
}

/// A norm that a device may still be computing.
pub struct PendingNorm<A: Accelerator>(A, A::Buffer);

impl<A: Accelerator> PendingNorm<A> {
    /// Waits for it.
    pub fn wait(self) -> f64 {
        norm_in(&self.0.download(&self.1))
    }
}

fn norm_in(bytes: &[u8]) -> f64 {
    f64::from_le_bytes(*bytes.first_chunk().expect("a norm has eight bytes"))
}

/// The trained parameters of a model, and AdamW's two buffers, on a device.
pub struct DeviceState<A: Accelerator> {
    device: A,
    layout: FlatLayout,
    padded: Arc<PaddedLayout>,
    settings: AdamWSettings,
    params: DeviceVec<A>,
    /// CubeCL takes memory that only two handles name for a tensor's own, which an operation may overwrite: so there are more
    /// than two, however few parameters there are.
    _held: [A::Buffer; 2],
    exp_avg: DeviceVec<A>,
    exp_avg_sq: DeviceVec<A>,
}

impl<A: Accelerator> DeviceState<A> {
    /// Takes the trained parameters of a model, whose tensors become views into the state's buffer. The model lies on the
    /// device already.
    pub fn take_up(device: A, model: &mut StableDiffusion, layout: FlatLayout, settings: AdamWSettings) -> Self {
        let padded = Arc::new(PaddedLayout::of(&layout));
        let buffer = || DeviceVec::lasting_zeros(&device, padded.padded());
        let (params, exp_avg, exp_avg_sq) = (buffer(), buffer(), buffer());
        let held = [params.buffer().clone(), params.buffer().clone()];
        let state = Self { device, layout, padded, settings, params, _held: held, exp_avg, exp_avg_sq };
        state.exchange(model, &mut |state, first, len, old| {
            let (buffer, kind) = old;
            state.params.put(first, len, (&buffer, kind));
        });
        state.device.sync();
        state
    }

    /// The places of the trained parameters in a row.
    pub fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    /// Elements of a flat gradient.
    pub fn flat_elements(&self) -> usize {
        self.padded.padded()
    }

    /// The device.
    pub fn device(&self) -> &A {
        &self.device
    }

    /// A gradient of zeros.
    pub fn zeros(&self) -> DeviceVec<A> {
        DeviceVec::zeros(&self.device, self.padded.padded())
    }

    /// Starts to compute the losses of a micro-batch (`[batch]`) and their gradient; the arguments are those of
    /// [`Trainable::loss_and_gradient`].
    pub fn loss_and_gradient(
        &self,
        trainable: &Trainable,
        noise_scheduler: &NoiseScheduler,
        batch: MicroBatch,
        normaliser: f32,
        recomputation: bool,
    ) -> (Tensor<1>, DeviceVec<A>) {
        let sink = || DeviceGradient::zeros(&self.device, &self.padded);
        let add = DeviceGradient::add;
        let (losses, gradient) =
            trainable.loss_and_gradient_into(noise_scheduler, batch, normaliser, recomputation, &sink, &add);
        (losses, gradient.into_values())
    }

    /// Sets a component's gradient to zero.
    pub fn forget(&self, gradient: &DeviceVec<A>, group: ParamGroup) {
        gradient.clear(self.padded.whole(self.layout.group_range(group)));
    }

    /// Starts to compute a gradient's norm.
    pub fn norm(&self, gradient: &DeviceVec<A>) -> PendingNorm<A> {
        let norm = self.device.alloc(NORM_BYTES);
        launches::norm(&self.device, gradient.buffer(), gradient.len(), &norm);
        PendingNorm(self.device.clone(), norm)
    }

    /// Waits for a gradient, and measures it: one transfer of some hundred kilobytes.
    pub fn measure(&self, gradient: &DeviceVec<A>) -> Measured {
        /// Buffers begin at multiples of this.
        const START: u64 = 256;
        let digests = launches::digest_bytes(gradient.len());
        let both = self.device.alloc(START + digests.max(1));
        launches::norm(&self.device, gradient.buffer(), gradient.len(), &self.device.part(&both, 0, NORM_BYTES));
        launches::digest(&self.device, gradient.buffer(), gradient.len(), &self.device.part(&both, START, digests));
        let mut bytes = self.device.download(&both);
        let norm = norm_in(&bytes);
        bytes.truncate((START + digests) as usize);
        bytes.drain(..START as usize);
        Measured { norm, digests: bytes }
    }

    /// Brings a gradient of this norm down to `norm_max` (0: not at all) and moves the parameters of the groups, whose
    /// ranges are those of the layout and have whole parameters. `step` is 1 for the first move. Waits for nothing.
    pub fn apply(
        &mut self,
        model: &mut StableDiffusion,
        gradient: DeviceVec<A>,
        (norm, norm_max): (f64, f64),
        step: u64,
        groups: &[Group],
    ) {
        // PyTorch's guard against a norm of 0.
        let factor = norm_max / (norm + 1e-6);
        let factor = if norm_max > 0.0 && factor < 1.0 { factor } else { 1.0 };
        let norm = self.device.upload(&[norm.to_le_bytes(), factor.to_le_bytes()].concat());
        let buffers = Step {
            params: self.params.buffer(),
            exp_avg: self.exp_avg.buffer(),
            exp_avg_sq: self.exp_avg_sq.buffer(),
            gradient: gradient.buffer(),
            norm: &norm,
        };
        for Group { range, lr } in groups {
            let range = self.padded.whole(range.clone());
            launches::adamw(&self.device, &buffers, range, &self.settings.factors(step, *lr));
        }
        self.refresh(model);
    }

    /// Gives the parameters `range` of the row to `sink`, some at a time, in order.
    pub fn read_params(&self, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        self.read(&self.params, range, sink);
    }

    /// Overwrites parameters of the row from `first` on.
    pub fn write_params(&mut self, model: &mut StableDiffusion, first: usize, values: &[f32]) {
        self.write(&self.params, first, values);
        self.refresh(model);
    }

    /// Gives the elements `range` of a moment to `sink`, some at a time, in order.
    pub fn read_moment(&self, moment: Moment, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        self.read(self.moment(moment), range, sink);
    }

    /// Overwrites elements of a moment from `first` on.
    pub fn write_moment(&mut self, moment: Moment, first: usize, values: &[f32]) {
        self.write(self.moment(moment), first, values);
    }

    /// What the optimizer was told.
    pub fn settings(&self) -> AdamWSettings {
        self.settings
    }

    fn moment(&self, moment: Moment) -> &DeviceVec<A> {
        match moment {
            Moment::First => &self.exp_avg,
            Moment::Second => &self.exp_avg_sq,
        }
    }

    /// Several neighbours in one transfer: half of a model's parameters are a few kilobytes each.
    fn read(&self, from: &DeviceVec<A>, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        let mut pieces = self.padded.pieces(range, READ_ELEMENTS).peekable();
        while let Some(first) = pieces.next() {
            let start = first.start;
            let mut together = vec![first];
            while let Some(next) = pieces.next_if(|next| next.end - start <= READ_ELEMENTS) {
                together.push(next);
            }
            let end = together.last().expect("there is a first").end;
            let values = from.read(start..end);
            together.iter().for_each(|piece| sink(&values[piece.start - start..piece.end - start]));
        }
    }

    fn write(&self, to: &DeviceVec<A>, first: usize, values: &[f32]) {
        let mut rest = values;
        for piece in self.padded.pieces(first..first + values.len(), READ_ELEMENTS) {
            let (here, beyond) = rest.split_at(piece.len());
            to.write(piece.start, here);
            rest = beyond;
        }
        assert!(rest.is_empty(), "the values lie within the layout");
    }

    /// Where tensors are copies, makes them anew.
    fn refresh(&self, model: &mut StableDiffusion) {
        if !A::SHARES_TENSORS {
            self.exchange(model, &mut |_, _, _, _| {});
        }
    }

    /// Replaces the model's trained tensors by those of the buffer, after `take` has had the old ones.
    fn exchange(&self, model: &mut StableDiffusion, take: &mut TakeOld<'_, A>) {
        struct Views<'s, 't, A: Accelerator> {
            state: &'s DeviceState<A>,
            group: ParamGroup,
            take: &'s mut TakeOld<'t, A>,
        }
        impl<A: Accelerator> ParamSource for Views<'_, '_, A> {
            fn replace<const D: usize>(&mut self, key: &str, old: Tensor<D>) -> Tensor<D> {
                let path = format!("{}.{key}", self.group.name());
                let layout = &self.state.layout;
                let Some(entry) = layout.entries.iter().find(|entry| entry.path == path) else { return old };
                let (first, shape) = (self.state.padded.place(entry.offset), old.dims());
                (self.take)(self.state, first, entry.len, self.state.device.buffer_of(old));
                let part = self.state.params.part(first..first + entry.len);
                self.state.device.tensor(&part, shape)
            }
        }
        let unet = model.unet.clone();
        model.unet = params::replace_tensors(unet, Views { state: self, group: ParamGroup::Unet, take: &mut *take });
        if !self.layout.group_range(ParamGroup::TextEncoder).is_empty() {
            let text_encoder = model.text_encoder.clone();
            let views = Views { state: self, group: ParamGroup::TextEncoder, take: &mut *take };
            model.text_encoder = params::replace_tensors(text_encoder, views);
        }
    }
}

/// Is given a trained parameter's first element and count in the buffer, and its old tensor's memory.
type TakeOld<'t, A> = dyn FnMut(&DeviceState<A>, usize, usize, (<A as Accelerator>::Buffer, super::ElementKind)) + 't;
