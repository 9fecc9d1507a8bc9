//! The trainable parameters as one flat buffer: what is reduced, clipped, optimised and averaged.
//!
//! The order is that of the paths, the UNet before the text encoder, and nothing else: not the declaration in
//! code, not a process's parameter ids. Optimizer state therefore fits wherever the layout is the same.

use crate::params::{self, ParamVisitor};
use crate::{ClipTextModel, UNet};
use burn::module::{Module, Param};
use burn::tensor::{Gradients, Tensor};
use std::collections::HashMap;

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
        let mut named: Vec<_> = of_group(ParamGroup::Unet, &unet);
        if train_text_encoder {
            named.extend(of_group(ParamGroup::TextEncoder, &text_encoder));
        }
        Self { unet, text_encoder, train_text_encoder, layout: FlatLayout::new(named) }
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
        let mut named: HashMap<String, Tensor<1>> = HashMap::new();
        let mut add = |group: ParamGroup, tensors: Vec<params::NamedTensor>| {
            named.extend(tensors.into_iter().map(|t| (format!("{}.{}", group.name(), t.path), t.values)));
        };
        add(ParamGroup::Unet, params::tensors(&self.unet));
        if self.train_text_encoder {
            add(ParamGroup::TextEncoder, params::tensors(&self.text_encoder));
        }
        self.flatten(named)
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

    /// Backpropagates a scalar loss and returns the gradient in the order of the layout, `[total]`; parameters
    /// that the loss does not depend on get zeros.
    pub fn gradient(&self, loss: Tensor<1>) -> Vec<f32> {
        let mut gradients = loss.backward();
        let mut named = take_gradients(ParamGroup::Unet, &self.unet, &mut gradients);
        if self.train_text_encoder {
            named.extend(take_gradients(ParamGroup::TextEncoder, &self.text_encoder, &mut gradients));
        }
        self.flatten(named)
    }

    fn flatten(&self, mut named: HashMap<String, Tensor<1>>) -> Vec<f32> {
        let mut flat = vec![0.0; self.layout.total];
        for entry in &self.layout.entries {
            let Some(tensor) = named.remove(&entry.path) else { continue };
            let data = tensor.into_data();
            let values = data.as_slice::<f32>().expect("trained parameters and their gradients are f32");
            flat[entry.offset..entry.offset + entry.len].copy_from_slice(values);
        }
        flat
    }
}

fn of_group<M: Module>(group: ParamGroup, module: &M) -> Vec<(ParamGroup, String, Vec<usize>)> {
    params::shapes(module).into_iter().map(|named| (group, named.path, named.shape)).collect()
}

fn take_gradients<M: Module>(group: ParamGroup, module: &M, gradients: &mut Gradients) -> HashMap<String, Tensor<1>> {
    struct Take<'a> {
        group: ParamGroup,
        gradients: &'a mut Gradients,
        named: HashMap<String, Tensor<1>>,
    }
    impl ParamVisitor for Take<'_> {
        fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad_remove(self.gradients) {
                self.named.insert(format!("{}.{path}", self.group.name()), gradient.reshape([-1]));
            }
        }
    }
    params::visit(module, Take { group, gradients, named: HashMap::new() }).named
}
