//! Gradients that go somewhere else than to the host's memory.

use crate::flat::Collector;
use crate::objective::{groups, weighted_loss};
use crate::params::{self, ParamVisitor};
use crate::{Compute, FlatEntry, MicroBatch, NoiseScheduler, ParamGroup, Trainable, recompute};
use burn::module::{Module, Param};
use burn::tensor::{Gradients, Tensor};
use std::collections::HashMap;

/// Takes a gradient, wherever it is to lie: every parameter's at most once, in any order. What does not come is zero.
pub trait GradientSink {
    /// Takes a parameter's gradient, in the parameter's shape.
    fn put<const D: usize>(&mut self, entry: &FlatEntry, gradient: Tensor<D>);
}

impl Trainable {
    /// [`loss_and_gradient`](Self::loss_and_gradient), where the gradient goes to a `sink`, or to one for each length of
    /// captions, and these are added. Waits for nothing.
    pub fn loss_and_gradient_into<S: GradientSink>(
        &self,
        noise_scheduler: &NoiseScheduler,
        batch: MicroBatch,
        normaliser: f32,
        recomputation: bool,
        sink: &dyn Fn() -> S,
        add: &dyn Fn(S, S) -> S,
    ) -> (Tensor<1>, S) {
        if recomputation {
            let compute = |batch| {
                let mut collecting = Collecting::new(self, sink());
                let losses = recompute::loss_and_gradient(self, &mut collecting, noise_scheduler, batch, normaliser);
                (losses, collecting.sink)
            };
            return groups::each_gradient(batch, compute, add);
        }
        let of = |batch| {
            let loss = weighted_loss(&self.unet, &self.text_encoder, noise_scheduler, batch, normaliser);
            let mut collecting = Collecting::new(self, sink());
            collecting.backward(loss.scalar);
            (loss.per_sample, collecting.sink)
        };
        match self.unet.compute() {
            Compute::F32 => of(batch),
            // Gradients of weights come in bf16: those of several lengths of captions are added where they are f32.
            Compute::Bf16 => groups::each_gradient(batch, of, add),
        }
    }
}

/// A sink while it is being filled.
struct Collecting<'a, S> {
    trainable: &'a Trainable,
    entries: HashMap<&'a str, &'a FlatEntry>,
    sink: S,
}

impl<'a, S: GradientSink> Collecting<'a, S> {
    fn new(trainable: &'a Trainable, sink: S) -> Self {
        let entries = trainable.layout().entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        Self { trainable, entries, sink }
    }

    fn take_group<M: Module>(&mut self, group: ParamGroup, module: &M, gradients: &mut Gradients) {
        struct Take<'f, 'a, S> {
            group: ParamGroup,
            gradients: &'f mut Gradients,
            collecting: &'f mut Collecting<'a, S>,
        }
        impl<S: GradientSink> ParamVisitor for Take<'_, '_, S> {
            fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
                let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
                let entry = self.collecting.entries[format!("{}.{path}", self.group.name()).as_str()];
                self.collecting.sink.put(entry, gradient);
            }
        }
        params::visit(module, Take { group, gradients, collecting: self });
    }
}

impl<S: GradientSink> Collector for Collecting<'_, S> {
    fn backward(&mut self, scalar: Tensor<1>) -> Gradients {
        let mut gradients = scalar.backward();
        let trainable = self.trainable;
        self.take_group(ParamGroup::Unet, &trainable.unet, &mut gradients);
        if trainable.trains_text_encoder() {
            self.take_group(ParamGroup::TextEncoder, &trainable.text_encoder, &mut gradients);
        }
        gradients
    }
}
