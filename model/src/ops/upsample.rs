//! Nearest-neighbour enlargement.

use super::cpu::{self, host, on_host};
use super::record::{Any, plain, record};
use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

/// `[batch, height, width, channels]` → `[batch, size[0], size[1], channels]`; row `i` is row `i·height/size[0]`
pub(crate) fn upsample(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let plain_x = plain(&x);
    if on_host(&plain_x) {
        let dims = plain_x.dims();
        let y = forward(&plain_x, size);
        return record([x.into()], y, move |gradient, _| backward(dims, &gradient));
    }
    generic(x, size)
}

/// From burn's operations, but for its interpolation, whose gradient on GPUs works out places in the type of the tensors:
/// bf16 does not hold every number beyond 256 (`cubek-interpolate` 0.3.1, `kernel/backward.rs`).
fn generic(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let dims @ [_, height, width, _] = x.dims();
    if size[0].is_multiple_of(height) && size[1].is_multiple_of(width) {
        let factors = [size[0] / height, size[1] / width];
        let y = repeat(plain(&x), factors);
        return record([x.into()], y, move |gradient, _| [Some(add_repeated(gradient, dims, factors).into())]);
    }
    let places = |from: usize, to: usize| {
        let places: Vec<i32> = (0..to).map(|i| (i * from / to) as i32).collect();
        Tensor::<1, Int>::from_data(TensorData::new(places, [to]), &plain(&x).device())
    };
    let (rows, columns) = (places(height, size[0]), places(width, size[1]));
    x.select(1, rows).select(2, columns)
}

/// Every pixel `factors[0]` times below itself and `factors[1]` times beside itself.
fn repeat(x: Tensor<4>, factors: [usize; 2]) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    let [down, beside] = factors;
    x.reshape([batch * height, 1, width, 1, channels])
        .expand([batch * height, down, width, beside, channels])
        .reshape([batch, height * down, width * beside, channels])
}

/// The gradient of [`repeat`].
fn add_repeated(gradient: Tensor<4>, dims: [usize; 4], factors: [usize; 2]) -> Tensor<4> {
    let [batch, height, width, channels] = dims;
    let copies: Tensor<5> = gradient.reshape([batch * height, factors[0], width, factors[1], channels]);
    copies.sum_dim(1).sum_dim(3).reshape(dims)
}

fn forward(x: &Tensor<4>, [to_height, to_width]: [usize; 2]) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    let x = host(x);
    let row = width * channels;
    let mut y = vec![0.0; batch * to_height * to_width * channels];
    y.par_chunks_mut(to_width * channels).enumerate().for_each(|(i, y)| {
        let (sample, i) = (i / to_height, i % to_height);
        let from = (sample * height + i * height / to_height) * row;
        let x = &x.values()[from..from + row];
        for (j, y) in y.chunks_exact_mut(channels).enumerate() {
            let from = j * width / to_width * channels;
            y.copy_from_slice(&x[from..from + channels]);
        }
    });
    cpu::tensor(y, [batch, to_height, to_width, channels])
}

fn backward(dims: [usize; 4], gradient: &Tensor<4>) -> [Option<Any>; 1] {
    let [batch, height, width, channels] = dims;
    let [_, to_height, to_width, _] = gradient.dims();
    let gradient = host(gradient);
    let row = to_width * channels;
    let mut dx = vec![0.0; batch * height * width * channels];
    let samples = dx.par_chunks_mut(height * width * channels).zip(gradient.values().par_chunks(to_height * row));
    samples.for_each(|(dx, gradient)| {
        for (i, gradient) in gradient.chunks_exact(row).enumerate() {
            let to = i * height / to_height * width * channels;
            let dx = &mut dx[to..to + width * channels];
            for (j, gradient) in gradient.chunks_exact(channels).enumerate() {
                let to = j * width / to_width * channels;
                dx[to..to + channels].iter_mut().zip(gradient).for_each(|(dx, gradient)| *dx += gradient);
            }
        }
    });
    [Some(cpu::tensor(dx, dims).into())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;
    use burn::tensor::module::interpolate;
    use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

    fn interpolated(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        let options = InterpolateOptions::new(InterpolateMode::Nearest).with_output_size(size);
        interpolate(x.permute([0, 3, 1, 2]), options).permute([0, 2, 3, 1])
    }

    #[test]
    fn slices_and_copies_agree_with_burn() {
        for size in [[8, 6], [7, 5], [12, 3]] {
            for ours in [upsample, generic] {
                check::agree(
                    [vec![2, 4, 3, 5]],
                    |[x]| ours(check::rank(x), size),
                    |[x]| interpolated(check::rank(x), size),
                );
            }
        }
    }
}
