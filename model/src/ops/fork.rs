//! Where the autodiff graph is cut so that parts of it can be computed again ([`crate::recompute`]).
//!
//! A sum of three gradients depends on its order, and the order in which burn adds the gradients of a tensor with many
//! users depends on the whole graph. A sum of two does not. So a tensor with many users is forked again and again.

use super::record::{Any, plain, record};
use burn::tensor::Tensor;

/// Returns a tensor twice. Its gradient is the sum of two: the order does not matter.
pub(crate) fn fork<const D: usize>(x: Tensor<D>) -> [Tensor<D>; 2] {
    let twin = || record([x.clone().into()], plain(&x), |gradient: Tensor<D>, _| [Some(gradient.into())]);
    [twin(), twin()]
}

/// Returns a scalar whose backward pass gives `gradient`, a plain tensor, to `y`.
pub(crate) fn seed<const D: usize>(y: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    assert_eq!(y.dims(), gradient.dims(), "a gradient has the shape of its tensor");
    let scalar = Tensor::<1>::zeros([1], &gradient.device());
    record([y.into()], scalar, move |_, _| [Some(Any::from(gradient.clone()))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;
    use burn::tensor::Device;

    #[test]
    fn a_fork_is_twice_the_same() {
        check::agree(
            [vec![3, 4]],
            |[x]| {
                let [a, b] = fork(check::rank::<2>(x));
                a.clone() * a + b
            },
            |[x]| {
                let x = check::rank::<2>(x);
                x.clone() * x.clone() + x
            },
        );
    }

    #[test]
    fn a_seed_goes_through_unchanged() {
        let device = Device::flex();
        let normal = |name| Tensor::<1>::from_floats(&crate::standard_normal(1, "seed", name, 50)[..], &device);
        let x = normal("x").autodiff().require_grad();
        let dy = normal("dy");
        let gradients = seed(x.clone() * 2.0, dy.clone()).backward();
        let found = x.grad(&gradients).unwrap().into_data();
        assert_eq!(found.as_slice::<f32>().unwrap(), (dy * 2.0).into_data().as_slice::<f32>().unwrap());
    }
}
