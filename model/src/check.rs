//! The operations of a training step on a device, beside themselves on the CPU in f32: result and every gradient.
//!
//! For a device that the tests never see: `gpu-check` of the benchmarks runs it there, at the sizes of SD 1.5 and 2.1. Both
//! sides are given the same values, rounded to the device's number format beforehand, so that what differs is the
//! arithmetic. A difference is `‖device − CPU‖ / ‖CPU‖`.
//!
//! Limits: a value rounded to bf16 is off by 1.1e-3 of itself on average (2⁻⁹/√3), and a result by a few such roundings,
//! of operands inside and of the result itself; a wrong index, mask or wait is off by far more than 1e-2. f32 on a GPU is
//! TF32 inside products, 2⁻¹¹.

mod cases;

use crate::rng::standard_normal;
use burn::tensor::{DType, Device, Tensor};
pub use cases::Sizes;
use cases::{Case, cases};

/// The number format that a device is checked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with the range of 32 bits.
    Bf16,
}

impl Format {
    /// Its name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    fn limit(self, part: &str) -> f64 {
        match (self, part) {
            (Self::F32, _) => 2e-3,
            (Self::Bf16, "result") => 8e-3,
            (Self::Bf16, _) => 1.5e-2,
        }
    }

    fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Bf16 => half::bf16::from_f32(value).to_f32(),
        }
    }
}

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The operation and its sizes: `attention 2x4096x320, 8 heads`.
    pub name: String,
    /// `result`, or the gradient of an input: `d query`.
    pub part: String,
    /// `‖device − CPU‖ / ‖CPU‖`; not finite where a value is not.
    pub difference: f64,
    /// What it may be.
    pub limit: f64,
}

impl Comparison {
    /// Whether the difference is within its limit. One that is no number is not.
    pub fn is_good(&self) -> bool {
        self.difference <= self.limit
    }
}

/// Compares every operation, and hands over each comparison as it is made.
pub fn operations(device: &Device, format: Format, sizes: Sizes, report: &mut dyn FnMut(Comparison)) {
    for case in cases(sizes) {
        compare(&case, device, format, report);
    }
}

fn compare(case: &Case, device: &Device, format: Format, report: &mut dyn FnMut(Comparison)) {
    let values: Vec<Vec<f32>> =
        case.inputs.iter().map(|input| draw(&case.name, input.name, &input.shape, format)).collect();
    let expected = run(case, &values, &crate::cpu_device(), Format::F32);
    let actual = run(case, &values, device, format);
    let parts = std::iter::once("result".to_owned()).chain(case.inputs.iter().map(|input| format!("d {}", input.name)));
    for ((part, actual), expected) in parts.zip(actual).zip(expected) {
        let limit = format.limit(&part);
        report(Comparison { name: case.name.clone(), part, difference: difference(&actual, &expected), limit });
    }
}

/// Result and gradients of the inputs, for a made-up gradient of the result.
fn run(case: &Case, values: &[Vec<f32>], device: &Device, format: Format) -> Vec<Vec<f32>> {
    let leaf = |values: &Vec<f32>| {
        let leaf = crate::tensor(values.clone(), [values.len()], device);
        leaf.autodiff().require_grad()
    };
    let leaves: Vec<Tensor<1>> = values.iter().map(leaf).collect();
    // Norms take their weights in f32, whatever the activations are in; the others round them as the layers do.
    let inputs: Vec<Tensor<1>> = leaves
        .iter()
        .zip(&case.inputs)
        .map(|(leaf, input)| if input.stays_f32 { leaf.clone() } else { leaf.clone().cast(format.dtype()) })
        .collect();
    let result = (case.run)(&inputs).cast(DType::F32);
    let [count] = result.dims();
    let direction = draw(&case.name, "direction", &[count], format);
    let direction = crate::tensor(direction, [count], device).autodiff();
    let gradients = (result.clone() * direction).sum().backward();
    let host = |tensor: Tensor<1>| tensor.without_autodiff().try_into_vec_as::<f32>().expect("values can be read");
    let mut parts = vec![host(result)];
    for (leaf, input) in leaves.iter().zip(&case.inputs) {
        let gradient = leaf.grad(&gradients).unwrap_or_else(|| panic!("{}: {} has no gradient", case.name, input.name));
        parts.push(host(gradient));
    }
    parts
}

fn draw(case: &str, what: &str, shape: &[usize], format: Format) -> Vec<f32> {
    let fan_in: usize = match shape {
        [_] => 1,
        // Weights: as a trained layer's, so that results have the inputs' size.
        [_, rest @ ..] if what == "weight" => rest.iter().product(),
        _ => 1,
    };
    let scale = 1.0 / (fan_in as f32).sqrt();
    let values = standard_normal(1, "check", &format!("{case}.{what}"), shape.iter().product());
    values.into_iter().map(|value| format.round(value * scale)).collect()
}

/// `‖actual − expected‖ / ‖expected‖`
fn difference(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square = |value: f64| value * value;
    let off: f64 = actual.iter().zip(expected).map(|(a, e)| square(f64::from(*a) - f64::from(*e))).sum();
    let size: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    (off / size.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu_device;

    fn all(format: Format) -> Vec<Comparison> {
        let mut comparisons = Vec::new();
        operations(&cpu_device(), format, Sizes::Small, &mut |comparison| comparisons.push(comparison));
        comparisons
    }

    /// The CPU's other path, burn's operations in bf16, keeps the limits: they are neither too tight nor taken by default.
    #[test]
    fn burns_operations_in_bf16_keep_the_limits() {
        let comparisons = all(Format::Bf16);
        let bad: Vec<_> = comparisons.iter().filter(|comparison| !comparison.is_good()).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let largest = comparisons.iter().map(|comparison| comparison.difference).fold(0.0, f64::max);
        assert!(largest > 5e-4, "bf16 was computed in: {largest:e}");
    }

    #[test]
    fn a_device_that_is_the_cpu_differs_in_nothing() {
        assert!(all(Format::F32).iter().all(|comparison| comparison.difference == 0.0));
    }

    /// One wrong row of a hundred, and what is no number, are noticed.
    #[test]
    fn what_is_wrong_is_beyond_every_limit() {
        let expected: Vec<f32> = standard_normal(1, "check", "expected", 6400);
        let mut actual = expected.clone();
        actual[640..704].iter_mut().for_each(|value| *value = 0.0);
        let of = |actual: &[f32]| Comparison {
            name: String::new(),
            part: "d query".to_owned(),
            difference: difference(actual, &expected),
            limit: Format::Bf16.limit("d query"),
        };
        assert!(of(&expected).is_good());
        assert!(!of(&actual).is_good());
        actual.copy_from_slice(&expected);
        actual[3] = f32::NAN;
        assert!(!of(&actual).is_good());
    }
}
