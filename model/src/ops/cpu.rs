//! Slices of CPU tensors, and the few loops that several operations share.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

/// Rows that are summed in f32 before the sum goes on in f64.
const BLOCK_ROWS: usize = 64;

/// A contiguous f32 tensor in memory.
pub(crate) struct Host(FlexTensor);

impl Host {
    /// `None` on other devices and for other types.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let flex = tensor.clone().try_into_primitive::<Flex>().ok()?;
        Some(Self(if flex.as_slice::<f32>().is_some() { flex } else { flex.to_contiguous() }))
    }

    pub(crate) fn values(&self) -> &[f32] {
        self.0.as_slice().expect("made contiguous")
    }
}

/// Whether the operation can work on slices.
pub(crate) fn on_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.dtype() == DType::F32 && tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// The values of a tensor of which it is known that it is on the host.
pub(crate) fn host<const D: usize>(tensor: &Tensor<D>) -> Host {
    Host::of(tensor).expect("an f32 tensor on the CPU")
}

/// Changes the values of a tensor on any device; on the CPU in place where nobody else holds them.
pub(crate) fn change_anywhere<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    if on_host(&tensor) {
        return self::change(tensor, change);
    }
    let device = tensor.device();
    let mut data = tensor.into_data();
    change(data.as_mut_slice::<f32>().expect("f32 values"));
    Tensor::from_data(data, &device)
}

/// Changes the values of a tensor in place where nobody else holds them.
pub(crate) fn change<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let mut flex = tensor.try_into_primitive::<Flex>().expect("a tensor on the CPU");
    if !flex.is_contiguous() || flex.layout().start_offset() != 0 {
        flex = flex.to_contiguous();
    }
    let count = flex.layout().num_elements();
    change(&mut flex.storage_mut::<f32>()[..count]);
    Tensor::from_primitive::<Flex>(flex)
}

/// Takes a vector as a tensor without copying it.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// Sums of columns, rounded once per block of rows and then in f64.
pub(crate) struct ColumnSums {
    total: Vec<f64>,
}

impl ColumnSums {
    pub(crate) fn new(columns: usize) -> Self {
        Self { total: vec![0.0; columns] }
    }

    /// Calls `add(sums, row)` for every row in order: it adds the row's share to the sums.
    pub(crate) fn add<'a, R>(&mut self, rows: impl Iterator<Item = R> + 'a, mut add: impl FnMut(&mut [f32], R)) {
        let mut block = vec![0.0f32; self.total.len()];
        let mut filled = 0;
        for row in rows {
            add(&mut block, row);
            filled += 1;
            if filled == BLOCK_ROWS {
                self.flush(&mut block);
                filled = 0;
            }
        }
        self.flush(&mut block);
    }

    fn flush(&mut self, block: &mut [f32]) {
        for (total, sum) in self.total.iter_mut().zip(block) {
            *total += f64::from(std::mem::take(sum));
        }
    }

    pub(crate) fn totals(&self) -> &[f64] {
        &self.total
    }
}

/// Sums of the columns of `rows` (`[·, columns]`).
pub(crate) fn column_sums(rows: &[f32], columns: usize) -> Vec<f32> {
    let partial: Vec<Vec<f64>> = rows
        .par_chunks(columns * BLOCK_ROWS * 8)
        .map(|chunk| {
            let mut sums = ColumnSums::new(columns);
            sums.add(chunk.chunks_exact(columns), |sums, row| {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            });
            sums.total
        })
        .collect();
    in_order(partial, columns)
}

/// Adds partial sums in order.
pub(crate) fn in_order(partial: impl IntoIterator<Item = Vec<f64>>, columns: usize) -> Vec<f32> {
    let mut total = vec![0.0f64; columns];
    for part in partial {
        total.iter_mut().zip(part).for_each(|(total, value)| *total += value);
    }
    total.into_iter().map(|sum| sum as f32).collect()
}

/// eˣ to about one unit in the last place, without branches, so that loops over it become vector instructions.
/// Arguments are clamped to -87..=88.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to a whole number in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4; // 355/512, exact in nine bits
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // e^r = 1 + r + r²·q(r), q by a minimax fit on |r| ≤ ln(2)/2.
    let q = 0.499_999_94 + r * (0.166_665_21 + r * (0.041_668_39 + r * (0.008_368_745 + r * 0.001_381_453_8)));
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (1.0 + r + r * r * q) * scale
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function to about 1e-7, by two minimax fits and without branches.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let t = if x.abs() > 4.0 { 4.0 } else { x.abs() }; // keeps NaN, as `min` would not
    let s = t * t;
    let near = t
        * (std::f32::consts::FRAC_2_SQRT_PI
            + s * (-0.376_126_26
                + s * (0.112_835_854
                    + s * (-0.026_853_811 + s * (0.005_188_327_7 + s * (-8.010_193e-4 + s * 7.853_858e-5))))));
    // erfc(t) = e^-q(t)
    let q = 2.564_363_5e-4
        + t * (1.127_426_1
            + t * (0.637_599_95
                + t * (0.103_566_96 + t * (-0.022_052_03 + t * (0.002_999_549_3 + t * -1.915_050_7e-4)))));
    let far = 1.0 - exp(-q);
    (if t < 1.0 { near } else { far }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate() {
        let mut worst = [0.0f64; 2];
        for i in -40_000..=40_000 {
            let x = i as f32 * 0.001;
            let exact = f64::from(x).exp();
            worst[0] = worst[0].max((f64::from(exp(x)) - exact).abs() / exact);
            worst[1] = worst[1].max((f64::from(erf(x)) - libm::erf(f64::from(x))).abs());
        }
        assert!(worst[0] < 2e-7 && worst[1] < 2e-7, "{worst:?}");
        assert!(exp(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
    }

    #[test]
    fn column_sums_are_exact_for_whole_numbers() {
        let rows: Vec<f32> = (0..3000).map(|i| (i % 7) as f32).collect();
        let expected: Vec<f32> = (0..3).map(|c| rows.iter().skip(c).step_by(3).sum()).collect();
        assert_eq!(column_sums(&rows, 3), expected);
    }
}
