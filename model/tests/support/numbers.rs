//! A file of reference numbers, and how far from them something is.

use ballast_model::{cpu_device, tensor};
use burn::tensor::Tensor;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;

/// The two files that a reference script writes.
pub struct Numbers {
    /// Settings, losses, lists.
    pub json: Value,
    bytes: Vec<u8>,
    header_bytes: usize,
    metadata: Metadata,
    /// Names that were asked for: what is left has not been compared.
    asked: Mutex<BTreeSet<String>>,
}

impl Numbers {
    pub fn load(json: &Path, tensors: &Path) -> Result<Self, String> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        let json_value = serde_json::from_slice(&read(json)?).map_err(|e| format!("{}: {e}", json.display()))?;
        let bytes = read(tensors)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| format!("{}: {error}", tensors.display()))?;
        Ok(Self { json: json_value, bytes, header_bytes: header + 8, metadata, asked: Mutex::default() })
    }

    /// Names of all tensors.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.offset_keys();
        names.sort();
        names
    }

    pub fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Names that nobody asked for.
    pub fn not_asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        self.names().into_iter().filter(|name| !asked.contains(name)).collect()
    }

    /// Shape and values of a tensor, whatever its type.
    pub fn values(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let info = self.metadata.info(name).unwrap_or_else(|| panic!("no {name} among the numbers"));
        self.asked.lock().unwrap().insert(name.to_owned());
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.header_bytes + start..self.header_bytes + end];
        let values = match info.dtype {
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            other => panic!("{name} is {other:?}"),
        };
        (info.shape.clone(), values)
    }

    /// [`values`](Self::values) as f32.
    pub fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, values) = self.values(name);
        (shape, values.into_iter().map(|value| value as f32).collect())
    }

    /// A stored tensor on the CPU.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        let (shape, values) = self.floats(name);
        tensor(values, shape.try_into().unwrap_or_else(|s| panic!("{name} is {s:?}")), &cpu_device())
    }

    /// How far from a stored tensor, relative to its largest element.
    pub fn error<const D: usize>(&self, name: &str, actual: Tensor<D>) -> f64 {
        let shape = self.metadata.info(name).unwrap_or_else(|| panic!("no {name} among the numbers")).shape.clone();
        assert_eq!(actual.dims().to_vec(), shape, "{name}");
        let actual: Vec<f32> = actual.without_autodiff().try_into_vec_as().unwrap();
        self.error_of(name, &actual.into_iter().map(f64::from).collect::<Vec<_>>())
    }

    /// [`error`](Self::error) of values on the host.
    pub fn error_of(&self, name: &str, actual: &[f64]) -> f64 {
        relative_to_peak(actual, &self.values(name).1)
    }
}

/// The largest difference, relative to the largest expected value. What is not finite has to be equal.
pub fn relative_to_peak(actual: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let peak = expected.iter().filter(|v| v.is_finite()).fold(f64::MIN_POSITIVE, |peak, v| peak.max(v.abs()));
    let difference = |(a, e): (&f64, &f64)| if a == e { 0.0 } else { (a - e).abs() };
    // `max` would pass over NaN.
    let worst = actual.iter().zip(expected).map(difference).fold(0.0, |w, d| if d > w || d.is_nan() { d } else { w });
    worst / peak
}
