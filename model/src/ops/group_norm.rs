//! Group norm over pixels as rows, with SiLU after it where that follows.

use super::cpu::{self, ColumnSums, host, on_host, sigmoid};
use super::record::{Any, plain, record};
use crate::layers::as_dtype;
use burn::tensor::{DType, Tensor, activation};
use rayon::prelude::*;
use std::sync::Arc;

/// How [`group_norm`] groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupNormShape {
    pub(crate) groups: usize,
    pub(crate) eps: f64,
    /// Whether SiLU follows.
    pub(crate) silu: bool,
}

/// Normalises each group of channels over all pixels of a sample; statistics in f32 or better.
///
/// `x`: `[batch, pixels, channels]`; `weight`, `bias`: `[channels]` → the shape of `x`
pub(crate) fn group_norm(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, shape: GroupNormShape) -> Tensor<3> {
    let (plain_x, w, b) = (plain(&x), plain(&weight), plain(&bias));
    if on_host(&plain_x) {
        let (y, saved) = forward(&plain_x, &w, &b, shape);
        let saved = Arc::new(saved);
        return record([x.into(), weight.into(), bias.into()], y, move |gradient, _| {
            backward(&plain_x, &w, &b, &saved, &gradient, shape)
        });
    }
    generic(x, weight, bias, shape)
}

/// From burn's operations.
fn generic(x: Tensor<3>, weight: Tensor<1>, bias: Tensor<1>, shape: GroupNormShape) -> Tensor<3> {
    let dtype = x.dtype();
    let [batch, pixels, channels] = x.dims();
    let grouped = [batch, pixels, shape.groups, channels / shape.groups];
    let x = as_dtype(x, DType::F32).reshape(grouped);
    let mean = x.clone().mean_dims(&[1, 3]);
    let centred = x - mean;
    let variance = centred.clone().square().mean_dims(&[1, 3]);
    let normal = (centred / (variance + shape.eps).sqrt()).reshape([batch, pixels, channels]);
    let y = as_dtype(normal * weight.unsqueeze() + bias.unsqueeze(), dtype);
    if shape.silu { activation::silu(y) } else { y }
}

/// Mean and 1/deviation of each group of one sample.
struct Stats {
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

fn forward(x: &Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, shape: GroupNormShape) -> (Tensor<3>, Vec<Stats>) {
    let [batch, pixels, channels] = x.dims();
    let (x, weight, bias) = (host(x), host(weight), host(bias));
    let mut y = vec![0.0; x.values().len()];
    let size = pixels * channels;
    let samples = y.par_chunks_mut(size).zip(x.values().par_chunks(size));
    let stats = samples.map(|(y, x)| {
        let stats = statistics(x, channels, shape);
        let (scale, shift) = scale_and_shift(&stats, weight.values(), bias.values(), shape.groups);
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let values = y.iter_mut().zip(x).zip(scale.iter().zip(&shift));
            if shape.silu {
                values.for_each(|((y, x), (scale, shift))| {
                    let z = x * scale + shift;
                    *y = z * sigmoid(z);
                });
            } else {
                values.for_each(|((y, x), (scale, shift))| *y = x * scale + shift);
            }
        }
        stats
    });
    let stats = stats.collect();
    (cpu::tensor(y, [batch, pixels, channels]), stats)
}

fn statistics(x: &[f32], channels: usize, shape: GroupNormShape) -> Stats {
    let per_group = channels / shape.groups;
    let count = (x.len() / shape.groups) as f64;
    let of_groups =
        |sums: &ColumnSums| sums.totals().chunks(per_group).map(|g| g.iter().sum::<f64>() / count).collect::<Vec<_>>();
    let mut sums = ColumnSums::new(channels);
    sums.add(x.chunks_exact(channels), |sums, row| sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
    let mean = of_groups(&sums);
    let means: Vec<f32> = (0..channels).map(|c| mean[c / per_group] as f32).collect();
    let mut squares = ColumnSums::new(channels);
    squares.add(x.chunks_exact(channels), |sums, row| {
        sums.iter_mut().zip(row.iter().zip(&means)).for_each(|(sum, (x, mean))| *sum += (x - mean) * (x - mean));
    });
    let inverse = of_groups(&squares).into_iter().map(|variance| 1.0 / (variance + shape.eps).sqrt()).collect();
    Stats { mean, inverse }
}

/// The norm as `x * scale + shift`, per channel.
fn scale_and_shift(stats: &Stats, weight: &[f32], bias: &[f32], groups: usize) -> (Vec<f32>, Vec<f32>) {
    let per_group = weight.len() / groups;
    let channels = weight.iter().zip(bias).enumerate();
    let both = channels.map(|(c, (weight, bias))| {
        let (mean, inverse) = (stats.mean[c / per_group], stats.inverse[c / per_group]);
        let scale = inverse * f64::from(*weight);
        (scale as f32, (f64::from(*bias) - mean * scale) as f32)
    });
    both.unzip()
}

fn backward(
    x: &Tensor<3>,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    stats: &[Stats],
    gradient: &Tensor<3>,
    shape: GroupNormShape,
) -> [Option<Any>; 3] {
    let [batch, pixels, channels] = x.dims();
    let (x, weight, bias, gradient) = (host(x), host(weight), host(bias), host(gradient));
    let mut dx = vec![0.0; x.values().len()];
    let size = pixels * channels;
    let samples = dx
        .par_chunks_mut(size)
        .zip(x.values().par_chunks(size))
        .zip(gradient.values().par_chunks(size))
        .zip(stats.par_iter());
    let sums: Vec<(Vec<f64>, Vec<f64>)> = samples
        .map(|(((dx, x), gradient), stats)| {
            let (scale, shift) = scale_and_shift(stats, weight.values(), bias.values(), shape.groups);
            before_silu(dx, x, gradient, &scale, &shift, shape.silu);
            input_gradient(dx, x, stats, weight.values(), shape.groups)
        })
        .collect();
    let (dweight, dbias): (Vec<_>, Vec<_>) = sums.into_iter().unzip();
    [
        Some(cpu::tensor(dx, [batch, pixels, channels]).into()),
        Some(cpu::tensor(cpu::in_order(dweight, channels), [channels]).into()),
        Some(cpu::tensor(cpu::in_order(dbias, channels), [channels]).into()),
    ]
}

/// Writes the gradient of the norm's output: SiLU's derivative is σ(z)·(1 + z·(1 − σ(z))).
fn before_silu(dz: &mut [f32], x: &[f32], gradient: &[f32], scale: &[f32], shift: &[f32], silu: bool) {
    if !silu {
        dz.copy_from_slice(gradient);
        return;
    }
    let channels = scale.len();
    let rows = dz.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).zip(gradient.chunks_exact(channels));
    for ((dz, x), gradient) in rows {
        let values = dz.iter_mut().zip(x).zip(gradient).zip(scale.iter().zip(shift));
        for (((dz, x), gradient), (scale, shift)) in values {
            let z = x * scale + shift;
            let s = sigmoid(z);
            *dz = gradient * (s * (1.0 + z * (1.0 - s)));
        }
    }
}

/// Turns the gradient of the norm's output into that of its input, and returns Σ dz·x̂ and Σ dz per channel.
fn input_gradient(dz: &mut [f32], x: &[f32], stats: &Stats, weight: &[f32], groups: usize) -> (Vec<f64>, Vec<f64>) {
    let channels = weight.len();
    let per_group = channels / groups;
    let count = (x.len() / groups) as f64;
    let means: Vec<f32> = (0..channels).map(|c| stats.mean[c / per_group] as f32).collect();
    let (mut plain, mut centred) = (ColumnSums::new(channels), ColumnSums::new(channels));
    plain.add(dz.chunks_exact(channels), |sums, dz| sums.iter_mut().zip(dz).for_each(|(sum, dz)| *sum += dz));
    centred.add(dz.chunks_exact(channels).zip(x.chunks_exact(channels)), |sums, (dz, x)| {
        let values = sums.iter_mut().zip(dz).zip(x.iter().zip(&means));
        values.for_each(|((sum, dz), (x, mean))| *sum += dz * (x - mean));
    });
    let inverse = |c: usize| stats.inverse[c / per_group];
    let dweight: Vec<f64> = centred.totals().iter().enumerate().map(|(c, sum)| sum * inverse(c)).collect();
    let dbias = plain.totals().to_vec();
    // dx = 1/σ · (w·dz − mean(w·dz) − x̂·mean(w·dz·x̂)), the means over the group: a·dz + b·x + c per channel.
    let mut coefficients = vec![[0.0f32; 3]; channels];
    for group in 0..groups {
        let range = group * per_group..(group + 1) * per_group;
        let mean_of = |sums: &[f64]| range.clone().map(|c| f64::from(weight[c]) * sums[c]).sum::<f64>() / count;
        let (mean_plain, mean_normal) = (mean_of(&dbias), mean_of(&dweight));
        let (mean, inverse) = (stats.mean[group], stats.inverse[group]);
        for c in range.clone() {
            let slope = -inverse * inverse * mean_normal;
            coefficients[c] =
                [(inverse * f64::from(weight[c])) as f32, slope as f32, (-inverse * mean_plain - slope * mean) as f32];
        }
    }
    for (dz, x) in dz.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        let values = dz.iter_mut().zip(x).zip(&coefficients);
        values.for_each(|((dz, x), [a, b, c])| *dz = a * *dz + b * x + c);
    }
    (dweight, dbias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::record::check;

    #[test]
    fn slices_agree_with_burn() {
        for silu in [false, true] {
            let shape = GroupNormShape { groups: 3, eps: 1e-5, silu };
            check::agree(
                [vec![2, 130, 12], vec![12], vec![12]],
                |[x, w, b]| group_norm(check::rank(x), check::rank(w), check::rank(b), shape),
                |[x, w, b]| generic(check::rank(x), check::rank(w), check::rank(b), shape),
            );
        }
    }
}
