//! Gradients of parameters that are written to their final place, instead of to tensors of their own.
//!
//! burn keeps the gradients of all leaves until the backward pass is over. Those of a UNet's weights are as large as the
//! UNet: gigabytes of fresh memory, which the system clears page by page, to be copied and given back. While [`during`]
//! runs, the rule of an operation can ask where the gradient of a leaf belongs, and write it there ([`write`]).

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

/// The leaf of an autodiff graph: burn's number of its node.
pub(crate) type LeafId = u64;

/// Memory for the gradients of some leaves.
#[derive(Debug, Default)]
pub(crate) struct Places {
    values: Vec<f32>,
    places: HashMap<LeafId, Place>,
}

#[derive(Debug)]
struct Place {
    range: Range<usize>,
    is_written: bool,
}

impl Places {
    /// Starts with memory of whatever content.
    pub(crate) fn new(values: Vec<f32>) -> Self {
        Self { values, places: HashMap::new() }
    }

    /// Says where the gradient of a leaf belongs.
    ///
    /// # Panics
    ///
    /// When the place lies outside the memory.
    pub(crate) fn add(&mut self, leaf: LeafId, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.values.len(), "a gradient's place lies in the memory");
        self.places.insert(leaf, Place { range, is_written: false });
    }

    /// Whether a gradient has come for the leaf.
    pub(crate) fn is_written(&self, leaf: LeafId) -> bool {
        self.places.get(&leaf).is_some_and(|place| place.is_written)
    }

    /// The memory.
    pub(crate) fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    pub(crate) fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Writes the gradient of a leaf, or adds it to what has come before. False where the leaf has no such place.
    fn write(&mut self, leaf: LeafId, count: usize, write: impl FnOnce(&mut [f32])) -> bool {
        let Some(place) = self.places.get_mut(&leaf).filter(|place| place.range.len() == count) else { return false };
        let to = &mut self.values[place.range.clone()];
        if place.is_written {
            let mut more = vec![0.0; count];
            write(&mut more);
            to.iter_mut().zip(more).for_each(|(sum, value)| *sum += value);
        } else {
            write(to);
            place.is_written = true;
        }
        true
    }
}

thread_local! {
    static PLACES: RefCell<Option<Places>> = const { RefCell::new(None) };
}

/// Runs a backward pass whose rules find the places: burn runs them on the calling thread.
pub(crate) fn during<R>(places: &mut Places, backward: impl FnOnce() -> R) -> R {
    /// Takes the places off the thread, also when the backward pass panics.
    struct Lent<'a>(&'a mut Places);
    impl Drop for Lent<'_> {
        fn drop(&mut self) {
            if let Some(places) = PLACES.take() {
                *self.0 = places;
            }
        }
    }
    PLACES.set(Some(std::mem::take(places)));
    let _lent = Lent(places);
    backward()
}

/// Calls `write` with the place of a leaf's gradient, of whatever content. False where it has none: then `write` was not
/// called.
pub(super) fn write(leaf: LeafId, count: usize, write: impl FnOnce(&mut [f32])) -> bool {
    // Not borrowed while `write` runs: a thread that waits for others may begin another backward pass meanwhile.
    let Some(mut places) = PLACES.take() else { return false };
    let is_written = places.write(leaf, count, write);
    PLACES.set(Some(places));
    is_written
}

/// Whether the gradient of a leaf has been written to its place in this backward pass.
pub(super) fn is_written(leaf: LeafId) -> bool {
    PLACES.with_borrow(|places| places.as_ref().is_some_and(|places| places.is_written(leaf)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_written_once_and_then_added() {
        let mut places = Places::new(vec![7.0; 5]);
        places.add(1, 0..2);
        places.add(2, 2..5);
        let found = during(&mut places, || {
            [
                write(2, 3, |to| to.copy_from_slice(&[1.0, 2.0, 3.0])),
                write(2, 3, |to| to.copy_from_slice(&[10.0, 20.0, 30.0])),
                write(3, 1, |_| unreachable!("it has no place")),
                write(1, 3, |_| unreachable!("it has another size")),
            ]
        });
        assert_eq!(found, [true, true, false, false]);
        assert_eq!([places.is_written(1), places.is_written(2)], [false, true]);
        assert!(!write(1, 2, |_| unreachable!("the backward pass is over")));
        assert_eq!(places.into_values(), [7.0, 7.0, 11.0, 22.0, 33.0]);
    }
}
