//! The trainable parameters as one flat buffer: what is reduced, clipped, optimised and averaged.
//!
//! The order is that of the paths, the UNet before the text encoder, and nothing else: not the declaration in
//! code, not a process's parameter ids. Optimizer state therefore fits wherever the layout is the same.

use crate::kernels::pages;
use crate::objective::{groups, weighted_loss};
use crate::ops::{direct, leaf_id};
use crate::params::{self, ParamVisitor};
use crate::trained::TrainedParams;
use crate::{ClipTextModel, Compute, MicroBatch, NoiseScheduler, UNet, recompute};
use burn::module::{Module, Param};
use burn::tensor::{Gradients, Tensor};
use std::cell::Cell;
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

impl FlatEntry {
    /// Its elements of the buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
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

    /// Parameters whose gradients come after those of the UNet's way up: by then most activations are gone, which need the
    /// memory until then.
    fn late(&self) -> Range<usize> {
        let on_the_way_up = |entry: &&FlatEntry| entry.path.starts_with("unet.up_blocks.");
        0..self.entries.iter().find(on_the_way_up).map_or(0, |entry| entry.offset)
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
            &flat[entry.range()]
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
        self.loss_and_gradient_in(Vec::new(), noise_scheduler, batch, normaliser, recomputation)
    }

    /// [`loss_and_gradient`](Self::loss_and_gradient) in the memory of an earlier gradient, of whatever content: gigabytes
    /// of fresh memory take a second for the system to clear. Memory of another size is given back.
    pub fn loss_and_gradient_in(
        &self,
        mut memory: Vec<f32>,
        noise_scheduler: &NoiseScheduler,
        batch: MicroBatch,
        normaliser: f32,
        recomputation: bool,
    ) -> (Tensor<1>, Vec<f32>) {
        if !recomputation && memory.len() == self.layout.total {
            pages::give_back(&mut memory[self.layout.late()]);
        }
        let memory = Cell::new(memory);
        if recomputation {
            let compute = |batch| {
                let mut flat = FlatGradient::new(self, memory.take());
                let losses = recompute::loss_and_gradient(self, &mut flat, noise_scheduler, batch, normaliser);
                (losses, flat.into_values())
            };
            return groups::each_gradient(batch, compute, &added);
        }
        let of = |batch| {
            let loss = weighted_loss(&self.unet, &self.text_encoder, noise_scheduler, batch, normaliser);
            (loss.per_sample, self.gradient_in(memory.take(), loss.scalar))
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
        self.gradient_in(Vec::new(), loss)
    }

    /// [`gradient`](Self::gradient) in the memory of an earlier one, as
    /// [`loss_and_gradient_in`](Self::loss_and_gradient_in).
    pub fn gradient_in(&self, memory: Vec<f32>, loss: Tensor<1>) -> Vec<f32> {
        let mut flat = FlatGradient::new(self, memory);
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
///
/// The weights of linear layers and convolutions are written where they belong as the backward pass computes them
/// ([`direct`]); what is left is small, and copied from the tape.
pub(crate) struct FlatGradient<'a> {
    trainable: &'a Trainable,
    entries: HashMap<&'a str, (usize, &'a FlatEntry)>,
    places: direct::Places,
    /// Of each entry: whether a gradient was copied to its place.
    is_copied: Vec<bool>,
    /// Whether the memory had some other content before.
    is_reused: bool,
}

impl Collector for FlatGradient<'_> {
    /// Where a gradient comes twice, in this backward pass or in another, it is added.
    fn backward(&mut self, scalar: Tensor<1>) -> Gradients {
        let gradients = direct::during(&mut self.places, || scalar.backward());
        self.each_param(Take(gradients)).0
    }
}

impl<'a> FlatGradient<'a> {
    /// Starts in `memory`, of whatever content, or in fresh zeros, which the system gives page by page as gradients arrive.
    pub(crate) fn new(trainable: &'a Trainable, memory: Vec<f32>) -> Self {
        let layout = &trainable.layout;
        let is_reused = memory.len() == layout.total;
        let values = if is_reused {
            memory
        } else {
            drop(memory);
            vec![0.0; layout.total]
        };
        let entries = layout.entries.iter().enumerate().map(|(i, entry)| (entry.path.as_str(), (i, entry)));
        let mut flat = Self {
            trainable,
            entries: entries.collect(),
            places: direct::Places::new(values),
            is_copied: vec![false; layout.entries.len()],
            is_reused,
        };
        flat.each_param(AddPlace);
        flat
    }

    fn each_param<V: FlatVisitor>(&mut self, visitor: V) -> V {
        let trainable = self.trainable;
        let visitor = self.each_of_group(ParamGroup::Unet, &trainable.unet, visitor);
        if !trainable.train_text_encoder {
            return visitor;
        }
        self.each_of_group(ParamGroup::TextEncoder, &trainable.text_encoder, visitor)
    }

    fn each_of_group<M: Module, V: FlatVisitor>(&mut self, group: ParamGroup, module: &M, visitor: V) -> V {
        struct Walk<'f, 'a, V> {
            group: ParamGroup,
            flat: &'f mut FlatGradient<'a>,
            visitor: V,
        }
        impl<V: FlatVisitor> ParamVisitor for Walk<'_, '_, V> {
            fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
                let (index, entry) = self.flat.entries[format!("{}.{path}", self.group.name()).as_str()];
                self.visitor.visit(self.flat, index, entry, &param.val());
            }
        }
        params::visit(module, Walk { group, flat: self, visitor }).visitor
    }

    /// Whether a gradient has come for a parameter.
    fn has<const D: usize>(&self, index: usize, param: &Tensor<D>) -> bool {
        self.is_copied[index] || leaf_id(param).is_some_and(|leaf| self.places.is_written(leaf))
    }

    /// The gradient; places that none has come for are zeros.
    pub(crate) fn into_values(mut self) -> Vec<f32> {
        if self.is_reused {
            self.each_param(FillRest);
        }
        self.places.into_values()
    }
}

/// What is done for every trained parameter.
trait FlatVisitor {
    fn visit<const D: usize>(&mut self, flat: &mut FlatGradient, index: usize, entry: &FlatEntry, param: &Tensor<D>);
}

/// Says where the gradient of each parameter belongs.
struct AddPlace;

impl FlatVisitor for AddPlace {
    fn visit<const D: usize>(&mut self, flat: &mut FlatGradient, _: usize, entry: &FlatEntry, param: &Tensor<D>) {
        if let Some(leaf) = leaf_id(param) {
            flat.places.add(leaf, entry.range());
        }
    }
}

/// Takes the gradients that are on the tape, one by one: each exists twice only while it is copied.
struct Take(Gradients);

impl FlatVisitor for Take {
    fn visit<const D: usize>(&mut self, flat: &mut FlatGradient, index: usize, entry: &FlatEntry, param: &Tensor<D>) {
        let Some(gradient) = param.grad_remove(&mut self.0) else { return };
        let is_there = flat.has(index, param);
        let to = &mut flat.places.values()[entry.range()];
        params::read(&gradient, |values| {
            if is_there {
                to.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            } else {
                to.copy_from_slice(values);
            }
        });
        flat.is_copied[index] = true;
    }
}

/// Zeros where no gradient has come.
struct FillRest;

impl FlatVisitor for FillRest {
    fn visit<const D: usize>(&mut self, flat: &mut FlatGradient, index: usize, entry: &FlatEntry, param: &Tensor<D>) {
        if !flat.has(index, param) {
            flat.places.values()[entry.range()].fill(0.0);
        }
    }
}
