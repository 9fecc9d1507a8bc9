//! The trainable parameters as one flat buffer: what is reduced, clipped, optimised and averaged.
//!
//! The order is that of the paths, the UNet before the text encoder, and nothing else: not the declaration in
//! code, not a process's parameter ids. Optimizer state therefore fits wherever the layout is the same.

use crate::objective::{groups, weighted_loss};
use crate::params::{self, ParamVisitor};
use crate::trained::TrainedParams;
use crate::{ClipTextModel, Compute, MicroBatch, NoiseScheduler, UNet, recompute};
use burn::module::{Module, Param};
use burn::tensor::{Gradients, Tensor};
use std::collections::HashMap;
use std::ops::Range;

/// Which component a parameter belongs to: they may have different learning rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamGroup {
    /// The UNet.
    Unet,
    /// The text encoder.
    TextEncoder,
}

impl ParamGroup {
    /// First segment of the paths of this group: `unet` or `text_encoder`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
        }
    }
}

/// One parameter's place in the flat buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatEntry {
    /// Component and diffusers key: `unet.conv_in.weight`.
    pub path: String,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// First element in the buffer.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
    /// The component.
    pub group: ParamGroup,
}

/// The places of all trainable parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlatLayout {
    /// In order of the buffer, without gaps.
    pub entries: Vec<FlatEntry>,
    /// Elements of the buffer.
    pub total: usize,
}

impl FlatLayout {
    /// Lays out the UNet's parameters, and the text encoder's where it is given.
    pub(crate) fn of(unet: &UNet, text_encoder: Option<&ClipTextModel>) -> Self {
        let mut named = of_group(ParamGroup::Unet, unet);
        named.extend(text_encoder.into_iter().flat_map(|model| of_group(ParamGroup::TextEncoder, model)));
        Self::new(named)
    }

    /// Where a group's parameters lie: the layout keeps each group together.
    pub fn group_range(&self, group: ParamGroup) -> Range<usize> {
        let entries = || self.entries.iter().filter(|entry| entry.group == group);
        let start = entries().next().map_or(0, |entry| entry.offset);
        start..start + entries().map(|entry| entry.len).sum::<usize>()
    }

    /// Lays out parameters given by group, key and shape.
    fn new(mut named: Vec<(ParamGroup, String, Vec<usize>)>) -> Self {
        named.sort();
        let mut total = 0;
        let entries = named.into_iter().map(|(group, key, shape)| {
            let len = shape.iter().product();
            let offset = total;
            total += len;
            FlatEntry { path: format!("{}.{key}", group.name()), shape, offset, len, group }
        });
        Self { entries: entries.collect(), total }
    }

    /// A number that is equal exactly where paths, shapes and order are: to check that two sides agree.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        for entry in &self.entries {
            hash.update(format!("{} {:?}\n", entry.path, entry.shape).as_bytes());
        }
        *hash.finalize().as_bytes()
    }
}

/// The parts of a model that training changes, under autodiff.
#[derive(Clone, Debug)]
pub struct Trainable {
    /// The UNet: always trained.
    pub unet: UNet,
    /// The text encoder: trained, or a constant without autodiff.
    pub text_encoder: ClipTextModel,
    train_text_encoder: bool,
    layout: FlatLayout,
}

impl Trainable {
    /// Puts the trained parts under autodiff.
    pub fn new(unet: UNet, text_encoder: ClipTextModel, train_text_encoder: bool) -> Self {
        let unet = unet.train();
        let text_encoder = if train_text_encoder { text_encoder.train() } else { text_encoder.valid() };
        let layout = FlatLayout::of(&unet, train_text_encoder.then_some(&text_encoder));
        Self { unet, text_encoder, train_text_encoder, layout }
    }

    /// Whether the text encoder is trained.
    pub fn trains_text_encoder(&self) -> bool {
        self.train_text_encoder
    }

    /// The places of the trained parameters: the same for every model of the same configuration.
    pub fn layout(&self) -> &FlatLayout {
        &self.layout
    }

    /// Copies the trained parameters to the host, `[total]`.
    pub fn params(&self) -> Vec<f32> {
        let mut flat = Vec::with_capacity(self.layout.total);
        TrainedParams::new(&self.unet, &self.text_encoder, &self.layout)
            .read(0..self.layout.total, &mut |values| flat.extend_from_slice(values));
        flat
    }

    /// Replaces the trained parameters by those of a flat buffer.
    ///
    /// # Panics
    ///
    /// When the buffer has not [`FlatLayout::total`] elements.
    pub fn set_params(&mut self, flat: &[f32]) {
        assert_eq!(flat.len(), self.layout.total, "a flat buffer has one value per trained parameter");
        let places: HashMap<&str, &FlatEntry> = self.layout.entries.iter().map(|e| (e.path.as_str(), e)).collect();
        let at = |group: ParamGroup, key: &str| {
            let entry = places[format!("{}.{key}", group.name()).as_str()];
            &flat[entry.offset..entry.offset + entry.len]
        };
        self.unet = params::replace(self.unet.clone(), &mut |key| at(ParamGroup::Unet, key));
        if self.train_text_encoder {
            self.text_encoder = params::replace(self.text_encoder.clone(), &mut |key| at(ParamGroup::TextEncoder, key));
        }
    }

    /// Computes the losses of a micro-batch ([`weighted_loss`]) and their gradient in the order of the layout: `[batch]`,
    /// unweighted, and `[total]`.
    ///
    /// `recomputation` keeps far fewer activations and computes the others again; the bits are the same.
    pub fn loss_and_gradient(
        &self,
        noise_scheduler: &NoiseScheduler,
        batch: MicroBatch,
        normaliser: f32,
        recomputation: bool,
    ) -> (Tensor<1>, Vec<f32>) {
        if recomputation {
            let compute = |batch| {
                let mut flat = FlatGradient::new(self);
                let losses = recompute::loss_and_gradient(self, &mut flat, noise_scheduler, batch, normaliser);
                (losses, flat.into_values())
            };
            return groups::each_gradient(batch, compute, &added);
        }
        let of = |batch| {
            let loss = weighted_loss(&self.unet, &self.text_encoder, noise_scheduler, batch, normaliser);
            (loss.per_sample, self.gradient(loss.scalar))
        };
        match self.unet.compute() {
            Compute::F32 => of(batch),
            // Gradients of weights come in bf16: those of several lengths of captions are added where they are f32.
            Compute::Bf16 => groups::each_gradient(batch, of, &added),
        }
    }

    /// Backpropagates a scalar loss and returns the gradient in the order of the layout, `[total]`; parameters
    /// that the loss does not depend on get zeros.
    pub fn gradient(&self, loss: Tensor<1>) -> Vec<f32> {
        let mut flat = FlatGradient::new(self);
        flat.backward(loss);
        flat.into_values()
    }
}

fn added(mut sum: Vec<f32>, gradient: Vec<f32>) -> Vec<f32> {
    sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
    sum
}

fn of_group<M: Module>(group: ParamGroup, module: &M) -> Vec<(ParamGroup, String, Vec<usize>)> {
    params::shapes(module).into_iter().map(|named| (group, named.path, named.shape)).collect()
}

/// Collects the gradients of the trained parameters from one backward pass, or from several.
pub(crate) trait Collector {
    /// Backpropagates a scalar and takes the gradients of the trained parameters; returns those of the others.
    fn backward(&mut self, scalar: Tensor<1>) -> Gradients;
}

/// The flat gradient while it is being filled.
pub(crate) struct FlatGradient<'a> {
    trainable: &'a Trainable,
    places: HashMap<&'a str, &'a FlatEntry>,
    values: Vec<f32>,
}

impl Collector for FlatGradient<'_> {
    /// Moves gradients one by one: each exists twice only while it is copied.
    fn backward(&mut self, scalar: Tensor<1>) -> Gradients {
        let mut gradients = scalar.backward();
        let trainable = self.trainable;
        self.take_group(ParamGroup::Unet, &trainable.unet, &mut gradients);
        if trainable.train_text_encoder {
            self.take_group(ParamGroup::TextEncoder, &trainable.text_encoder, &mut gradients);
        }
        gradients
    }
}

impl<'a> FlatGradient<'a> {
    /// Starts with zeros: the system gives the memory page by page as gradients arrive.
    pub(crate) fn new(trainable: &'a Trainable) -> Self {
        let layout = &trainable.layout;
        let places = layout.entries.iter().map(|e| (e.path.as_str(), e)).collect();
        Self { trainable, places, values: vec![0.0; layout.total] }
    }

    fn take_group<M: Module>(&mut self, group: ParamGroup, module: &M, gradients: &mut Gradients) {
        struct Take<'f, 'a> {
            group: ParamGroup,
            gradients: &'f mut Gradients,
            flat: &'f mut FlatGradient<'a>,
        }
        impl ParamVisitor for Take<'_, '_> {
            fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
                let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
                let entry = self.flat.places[format!("{}.{path}", self.group.name()).as_str()];
                let to = &mut self.flat.values[entry.offset..entry.offset + entry.len];
                params::read(&gradient, |values| to.copy_from_slice(values));
            }
        }
        params::visit(module, Take { group, gradients, flat: self });
    }

    pub(crate) fn into_values(self) -> Vec<f32> {
        self.values
    }
}
