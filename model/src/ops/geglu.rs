//! GEGLU (arXiv:2002.05202): the first half of the channels times the GELU of the second.

use super::cpu::{self, host, on_host};
use super::record::{plain, record};
use crate::kernels::geglu;
use burn::tensor::{Tensor, activation};

/// `[batch, rows, 2 * width]` → `[batch, rows, width]`
pub(crate) fn geglu(x: Tensor<3>) -> Tensor<3> {
    #[cfg(any(feature = "cuda", feature = "emulation"))]
    if let Some(y) = super::on_device::geglu(&x) {
        return y;
    }
    let plain_x = plain(&x);
    if !on_host(&plain_x) {
        return generic(x);
    }
    let [batch, rows, double] = x.dims();
    let width = double / 2;
    let y = cpu::tensor(geglu::forward(host(&plain_x).values(), width), [batch, rows, width]);
    record([x.into()], y, move |gradient, _| {
        let dx = geglu::backward(host(&plain_x).values(), host(&gradient).values(), width);
        [Some(cpu::tensor(dx, [batch, rows, double]).into())]
    })
}

/// From burn's operations.
fn generic(x: Tensor<3>) -> Tensor<3> {
    let width = x.dims()[2] / 2;
    let hidden = x.clone().narrow(2, 0, width);
    hidden * activation::gelu(x.narrow(2, width, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn slices_agree_with_burn() {
        check::agree([vec![2, 70, 24]], |[x]| geglu(check::rank(x) * 3.0), |[x]| generic(check::rank(x) * 3.0));
    }
}
