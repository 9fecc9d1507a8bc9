//! Gradients whose sum depends on the order of additions, and their sum by the definition of the slot tree.

use crate::tree::{Node, Partial, SlotSums, add};
use crate::{Collective, CollectiveError, Reduction};

/// Slots and their owners, and the size of a gradient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Owner of each filled slot.
    pub slot_ranks: Vec<u32>,
    /// Length of the gradient.
    pub elements: usize,
}

impl Case {
    /// Deals the first `filled` of `slots` slots as the coordinator does.
    pub fn dealt(slots: u32, filled: u32, world_size: usize, elements: usize) -> Self {
        Self { slot_ranks: (0..filled).map(|slot| slot * world_size as u32 / slots).collect(), elements }
    }

    /// Deals slots to ranks in no order.
    pub fn scattered(slots: u32, world_size: usize, elements: usize) -> Self {
        Self { slot_ranks: (0..slots).map(|slot| (slot * 5 + 3) % world_size as u32).collect(), elements }
    }

    /// Returns what a rank brings to a reduction of a step: its largest subtrees.
    pub fn own(&self, step: u64, rank: usize) -> Vec<Partial> {
        let mut sums = SlotSums::default();
        for slot in (0..self.slot_ranks.len()).filter(|slot| self.slot_ranks[*slot] as usize == rank) {
            sums.push(Node::leaf(slot as u32), gradient(step, slot as u32, self.elements), add);
        }
        sums.into_parts()
    }

    /// Returns the sum of a step, by the definition.
    pub fn sum(&self, step: u64) -> Vec<f32> {
        recursive_sum(step, 0, self.slot_ranks.len() as u32, self.elements)
    }

    /// Has a member reduce this case.
    ///
    /// # Errors
    /// What the member says.
    pub fn reduce(&self, collective: &mut dyn Collective, step: u64, rank: usize) -> Result<Vec<f32>, CollectiveError> {
        let reduction = Reduction { step, slot_ranks: &self.slot_ranks, elements: self.elements };
        collective.all_reduce(reduction, self.own(step, rank))
    }
}

/// Returns a slot's gradient: magnitudes differ so much that every order of additions rounds differently.
pub fn gradient(step: u64, slot: u32, elements: usize) -> Vec<f32> {
    let mut state = u64::from(slot) + (step << 32) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let magnitude = [1.0, 10.0, 100.0, 1e3, 1e4][(state >> 32) as usize % 5];
        ((state >> 40) as f32 / 16_777_216.0 - 0.5) * magnitude
    };
    (0..elements).map(|_| next()).collect()
}

fn recursive_sum(step: u64, lo: u32, hi: u32, elements: usize) -> Vec<f32> {
    match hi - lo {
        0 => vec![0.0; elements],
        1 => gradient(step, lo, elements),
        length => {
            let middle = lo + length.next_power_of_two() / 2;
            let (left, right) = (recursive_sum(step, lo, middle, elements), recursive_sum(step, middle, hi, elements));
            left.iter().zip(&right).map(|(left, right)| left + right).collect()
        }
    }
}

/// Returns the bits of values, which can be compared: also a zero's sign and a NaN's.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
