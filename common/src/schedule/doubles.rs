//! Finds the steps that have an image twice. There are few of them among many, so the search looks at all and changes nothing,
//! on several threads.

use std::collections::BTreeSet;
use std::ops::Range;

use super::arrangement::Arrangement;
use super::threads;

/// Returns the steps in which an image is more than once.
pub(super) fn steps_with_doubles(arrangement: &Arrangement, threads: usize) -> BTreeSet<usize> {
    let parts = threads::in_parts(threads, arrangement.steps(), |steps| search(arrangement, steps));
    parts.into_iter().flatten().collect()
}

fn search(arrangement: &Arrangement, steps: Range<usize>) -> Vec<usize> {
    let mut found = Vec::new();
    let mut seen = Seen::new(arrangement.micro_batch_size * arrangement.slots);
    arrangement.visit(arrangement.places_of_steps(steps), |place, _, indices| {
        let step = place / arrangement.slots;
        if place % arrangement.slots == 0 {
            seen.forget();
        }
        for &id in &arrangement.occurrences[indices] {
            let segment = arrangement.ids.segment_of(id);
            if segment.most > 1 {
                let sample = segment.first_sample + (id - segment.first_id) / segment.most;
                if !seen.insert(sample) && found.last() != Some(&step) {
                    found.push(step);
                }
            }
        }
    });
    found
}

/// A set of samples that forgets all of them at once.
struct Seen {
    /// Round and sample, where the sample's hash points or, if that is taken, behind it.
    table: Vec<(u32, u32)>,
    mask: usize,
    round: u32,
}

impl Seen {
    fn new(most: usize) -> Self {
        let length = (4 * most).next_power_of_two();
        Self { table: vec![(0, 0); length], mask: length - 1, round: 1 }
    }

    fn forget(&mut self) {
        self.round = self.round.checked_add(1).expect("there are fewer steps than micro-batches, which fit 32 bits");
    }

    /// Says whether the sample was not there.
    fn insert(&mut self, sample: u32) -> bool {
        let mut at = (sample.wrapping_mul(0x9e37_79b1) >> 8) as usize & self.mask; // multiplicative hash, golden ratio
        loop {
            let (round, other) = self.table[at];
            if round != self.round {
                self.table[at] = (self.round, sample);
                return true;
            }
            if other == sample {
                return false;
            }
            at = (at + 1) & self.mask;
        }
    }
}
