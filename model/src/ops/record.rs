//! Custom operations under autodiff: a result that is computed already, and the rule for its gradient.
//!
//! This is PyTorch's `autograd.Function` for burn: the rule is a closure over plain tensors and whatever else the
//! forward pass saved. Only this file knows burn's backends.

use super::{cpu, direct};
#[cfg(feature = "cuda")]
use burn::backend::Cube;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchKindConversion, DispatchTensor, Flex, backend_extension};
use burn::tensor::Tensor;
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

/// A tensor of any rank.
#[derive(Clone)]
pub(crate) struct Any(DispatchTensor);

#[cfg(any(feature = "cuda", feature = "emulation"))]
impl Any {
    /// The tensor as burn tells backends apart.
    pub(crate) fn dispatch(&self) -> DispatchTensor {
        self.0.clone()
    }
}

impl<const D: usize> From<Tensor<D>> for Any {
    fn from(tensor: Tensor<D>) -> Self {
        Self(tensor.into_dispatch())
    }
}

/// Which inputs' gradients are needed: `wanted[i]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    is_wanted: [bool; 3],
    nodes: [direct::LeafId; 3],
}

impl Wanted {
    /// The gradient of an input where it is wanted; `write` is given memory of whatever content for it. Where the gradient
    /// of that input has a place of its own ([`direct`]), it is written there and nothing is returned.
    pub(crate) fn gradient<const D: usize>(
        &self,
        input: usize,
        shape: [usize; D],
        write: impl Fn(&mut [f32]),
    ) -> Option<Any> {
        let count = shape.iter().product();
        if !self[input] || direct::write(self.nodes[input], count, &write) {
            return None;
        }
        let mut values = vec![0.0; count];
        write(&mut values);
        Some(cpu::tensor(values, shape).into())
    }
}

impl Index<usize> for Wanted {
    type Output = bool;

    fn index(&self, input: usize) -> &bool {
        &self.is_wanted[input]
    }
}

/// Gives the gradients of the inputs for the gradient of the output. `wanted` says which are needed; the others may
/// be `None`, and so may those that were written to their place.
type Closure<const D: usize, const N: usize> = dyn Fn(Tensor<D>, Wanted) -> [Option<Any>; N] + Send + Sync;

/// Records `output` as a function of `inputs` where one of them is tracked. All tensors that the rule sees, and
/// `output`, are plain.
pub(crate) fn record<const D: usize, const N: usize>(
    inputs: [Any; N],
    output: Tensor<D>,
    rule: impl Fn(Tensor<D>, Wanted) -> [Option<Any>; N] + Send + Sync + 'static,
) -> Tensor<D> {
    if !inputs.iter().any(|input| Tensor::<1>::from_dispatch(input.0.clone()).is_tracked()) {
        return output;
    }
    let closure: Box<Closure<D, N>> = Box::new(rule);
    let erased = move |gradient: DispatchTensor, wanted: Wanted| {
        closure(Tensor::from_dispatch(gradient), wanted).into_iter().map(|g| g.map(|any| any.0)).collect()
    };
    // Operations with fewer than three inputs get constants for the others, which ask for no gradient.
    let output = output.into_dispatch();
    let mut inputs = inputs.into_iter().map(|input| input.0);
    let [first, second, third] = std::array::from_fn(|_| inputs.next().unwrap_or_else(|| output.clone()));
    assert!(inputs.next().is_none(), "at most three inputs");
    Tensor::from_dispatch(<Dispatch as Node>::node(first, second, third, output, Rule(Arc::new(erased))))
}

type Erased = dyn Fn(DispatchTensor, Wanted) -> Vec<Option<DispatchTensor>> + Send + Sync;

/// A gradient rule for three inputs.
#[derive(Clone)]
pub(crate) struct Rule(Arc<Erased>);

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Rule")
    }
}

/// The one operation that burn sees.
#[backend_extension(Cube: cfg(feature = "cuda"), Flex, Autodiff)]
pub(crate) trait Node: Backend {
    /// Returns `output`, with its history where the backend keeps one.
    fn node(
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        output: FloatTensor<Self>,
        rule: Rule,
    ) -> FloatTensor<Self>;
}

impl Node for Flex {
    fn node(
        _first: FloatTensor<Self>,
        _second: FloatTensor<Self>,
        _third: FloatTensor<Self>,
        output: FloatTensor<Self>,
        _rule: Rule,
    ) -> FloatTensor<Self> {
        output
    }
}

#[cfg(feature = "cuda")]
impl Node for Cube {
    fn node(
        _first: FloatTensor<Self>,
        _second: FloatTensor<Self>,
        _third: FloatTensor<Self>,
        output: FloatTensor<Self>,
        _rule: Rule,
    ) -> FloatTensor<Self> {
        output
    }
}

impl<B, C> Node for Autodiff<B, C>
where
    B: Backend,
    C: CheckpointStrategy,
    DispatchTensor: DispatchKindConversion<B>,
{
    fn node(
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
        output: FloatTensor<Self>,
        rule: Rule,
    ) -> FloatTensor<Self> {
        let nodes = [first, second, third].map(|input| input.into_parts().1);
        let output = output.into_primitive();
        match Backward::<B, 3>::prepare::<C>(CustomRule {}, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(rule, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[derive(Debug)]
struct CustomRule {}

impl<B: Backend> Backward<B, 3> for CustomRule
where
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = Rule;

    fn backward(self, ops: Ops<Rule, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let gradient = Tensor::<1>::from_primitive::<B>(gradients.consume::<B>(&ops.node)).into_dispatch();
        let wanted = Wanted {
            is_wanted: ops.parents.each_ref().map(Option::is_some),
            nodes: ops
                .parents
                .each_ref()
                .map(|parent| parent.as_ref().map_or(direct::LeafId::MAX, |node| node.id.value)),
        };
        let results = (ops.state.0)(gradient, wanted);
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let Some(parent) = parent {
                let Some(result) = result else {
                    assert!(direct::is_written(parent.id.value), "a gradient for every input that wants one");
                    continue;
                };
                let result = Tensor::<1>::from_dispatch(result);
                let primitive = result.try_into_primitive::<B>().expect("gradients stay on their backend");
                gradients.register::<B>(parent.id, primitive);
            }
        }
    }
}

/// The number of a tensor's node, on the CPU and under autodiff.
pub(crate) fn leaf_id<const D: usize>(tensor: &Tensor<D>) -> Option<direct::LeafId> {
    Some(tensor.clone().try_into_primitive::<Autodiff<Flex>>().ok()?.id().value)
}

/// The same tensor without autodiff.
pub(crate) fn plain<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().without_autodiff()
}

/// For tests: an operation against another way to compute the same.
#[cfg(test)]
pub(crate) mod check {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// An input of any rank.
    #[derive(Clone)]
    pub(crate) struct Input {
        flat: Tensor<1>,
        shape: Vec<usize>,
    }

    /// The input as a tensor.
    pub(crate) fn rank<const D: usize>(input: Input) -> Tensor<D> {
        let shape: [usize; D] = input.shape.try_into().expect("the rank of the shape");
        input.flat.reshape(shape)
    }

    /// Compares results, and gradients for every input, to 1e-5 of the largest value.
    pub(crate) fn agree<const D: usize, const N: usize>(
        shapes: [Vec<usize>; N],
        ours: impl Fn([Input; N]) -> Tensor<D>,
        theirs: impl Fn([Input; N]) -> Tensor<D>,
    ) {
        let ours = evaluate(&shapes, ours);
        let theirs = evaluate(&shapes, theirs);
        for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours.len(), theirs.len());
            let peak = theirs.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
            let off = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
            assert!(off <= 1e-5 * peak, "number {i} (0: result, then gradients): {off:e} of {peak:e}");
        }
    }

    fn evaluate<const D: usize, const N: usize>(
        shapes: &[Vec<usize>; N],
        operation: impl Fn([Input; N]) -> Tensor<D>,
    ) -> Vec<Vec<f32>> {
        let device = Device::flex().autodiff();
        let normal = |name: &str, count| crate::standard_normal(1, "check", name, count);
        let leaves: [Input; N] = std::array::from_fn(|i| {
            let count = shapes[i].iter().product();
            let flat = Tensor::from_data(TensorData::new(normal(&i.to_string(), count), [count]), &device);
            Input { flat: flat.require_grad(), shape: shapes[i].clone() }
        });
        let result = operation(leaves.clone());
        let count = result.shape().num_elements();
        let direction = Tensor::from_data(TensorData::new(normal("direction", count), [count]), &device);
        let gradients = (result.clone().reshape([count]) * direction).sum().backward();
        let mut values = vec![plain(&result).try_into_vec_as::<f32>().unwrap()];
        values.extend(leaves.map(|leaf| leaf.flat.grad(&gradients).unwrap().try_into_vec_as::<f32>().unwrap()));
        values
    }
}
