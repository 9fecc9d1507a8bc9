//! What a collective has to know of the memory that gradients lie in.

use crate::tree;

/// Memory that holds flat gradients as `S`: how they are made, added and brought to the host.
///
/// A device that fails here (it is full, say) panics: what it holds is of no further use then, and its thread ends.
pub trait Memory<S>: Send {
    /// Returns the number of elements.
    fn len(&self, values: &S) -> usize;

    /// Makes a sum of nothing.
    fn zeros(&self, elements: usize) -> S;

    /// Adds `right` to `left`, element by element, each rounded once to nearest.
    fn add(&self, left: S, right: S) -> S;

    /// Brings values to the host.
    fn download(&self, values: S) -> Vec<f32>;

    /// Brings values from the host.
    fn upload(&self, values: Vec<f32>) -> S;
}

/// The host's own.
#[derive(Debug, Clone, Copy)]
pub struct HostMemory;

impl Memory<Vec<f32>> for HostMemory {
    fn len(&self, values: &Vec<f32>) -> usize {
        values.len()
    }

    fn zeros(&self, elements: usize) -> Vec<f32> {
        vec![0.0; elements]
    }

    fn add(&self, left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
        tree::add(left, right)
    }

    fn download(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn upload(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }
}
