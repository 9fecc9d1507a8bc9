//! Keeps the uses of one image apart: not twice in a step where that can be avoided, and not twice in a micro-batch.
//!
//! Three passes of swaps over the random arrangement, each deterministic:
//! 1. whole micro-batches change places, so that no step has more micro-batches of a stretch than the stretch's images fill;
//! 2. occurrences change places within their stretch. A swap moves an image from a step that has it at least twice more often
//!    than the other, and takes in return an image that the other step has more often. The sum of squares of how often
//!    each image is in each step falls with every swap, so the pass ends, and it ends only where no such pair is left: between
//!    steps with equally many occurrences of the stretch, that is the most even spread there is;
//! 3. within a step, what is still double is dealt out over its micro-batches.
//!
//! Most epochs need few swaps. A budget bounds the search where the data leaves no way out.

use std::collections::BTreeSet;

use super::epoch::Arrangement;

/// Swaps occurrences and micro-batches until no image is twice in a step, as far as that is possible. `copies` says how often each
/// sample is used, `images_per_stretch` how many different ones each stretch has.
pub(super) fn keep_apart(arrangement: &mut Arrangement, copies: &[u16], images_per_stretch: &[usize]) {
    let has_copies = copies.iter().any(|&copies| copies > 1);
    if has_copies {
        spread_micro_batches(arrangement, images_per_stretch);
    }
    arrangement.number_by_place();
    if has_copies {
        let left = spread_occurrences(arrangement, copies);
        spread_within_steps(arrangement, left);
    }
}

/// How many candidates may be looked at. Gives the same answer on every machine, which a time limit would not.
struct Budget(u64);

impl Budget {
    /// Candidates per search: one that has not succeeded by then rarely does.
    const PER_SEARCH: usize = 8192;

    fn new(items: usize) -> Self {
        Self(10_000_000 + 50 * items as u64)
    }

    fn spend(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1); // at 0 it stays there
        self.0 > 0
    }
}

/// Visits `0..length` from `start` in jumps, so that neighbours in the array are not tried one after the other.
fn jumps(start: usize, length: usize) -> impl Iterator<Item = usize> {
    let mut stride = (length * 5 / 8).max(1);
    while gcd(stride, length) != 1 {
        stride += 1;
    }
    (0..length.min(Budget::PER_SEARCH)).map(move |jump| (start + jump * stride) % length)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Pass 1: a stretch of few images repeated often must not fill a step alone.
fn spread_micro_batches(arrangement: &mut Arrangement, images_per_stretch: &[usize]) {
    let most: Vec<usize> =
        images_per_stretch.iter().map(|images| (images / arrangement.micro_batch_size).max(1)).collect();
    let slots = arrangement.slots;
    let may_be_too_many = |stretch: usize| most[stretch] < slots;
    if arrangement.steps() < 2 || !(0..most.len()).any(may_be_too_many) {
        return;
    }
    let mut budget = Budget::new(arrangement.places.len());
    let excess = |arrangement: &Arrangement, step: usize, stretch: usize| {
        let in_step = arrangement.places_of(step).filter(|&place| arrangement.stretch_at(place) == stretch).count();
        in_step.saturating_sub(most[stretch])
    };
    for place in 0..arrangement.places.len() {
        let (step, stretch) = (place / slots, arrangement.stretch_at(place));
        if !may_be_too_many(stretch) || excess(arrangement, step, stretch) == 0 {
            continue;
        }
        for other in jumps(place, arrangement.places.len()) {
            let (other_step, other_stretch) = (other / slots, arrangement.stretch_at(other));
            if other_step == step || other_stretch == stretch || !budget.spend() {
                continue;
            }
            let both = |arrangement: &Arrangement| {
                [step, other_step]
                    .map(|step| [stretch, other_stretch].map(|stretch| excess(arrangement, step, stretch)))
            };
            let before: usize = both(arrangement).into_iter().flatten().sum();
            arrangement.places.swap(place, other);
            let after: usize = both(arrangement).into_iter().flatten().sum();
            if after < before {
                break;
            }
            arrangement.places.swap(place, other);
        }
    }
}

/// Pass 2. Returns the steps in which images are still double.
fn spread_occurrences(arrangement: &mut Arrangement, copies: &[u16]) -> BTreeSet<usize> {
    let mut left = BTreeSet::new();
    let mut spread = Spread::new(arrangement);
    for step in 0..spread.arrangement.steps() {
        if spread.mend(step, copies) {
            left.insert(step);
        }
    }
    while let Some(step) = spread.again.pop_first() {
        if spread.mend(step, copies) {
            left.insert(step)
        } else {
            left.remove(&step)
        };
    }
    left
}

struct Spread<'a> {
    arrangement: &'a mut Arrangement,
    /// The place of each micro-batch. Made when the first double is found.
    place_of: Vec<u32>,
    /// In how many steps each stretch appears.
    steps_with: Vec<usize>,
    budget: Budget,
    /// The step at hand: samples and indices of its occurrences, sorted.
    in_step: Vec<(u32, u32)>,
    /// Steps that got an image twice which another step had more often.
    again: BTreeSet<usize>,
}

impl<'a> Spread<'a> {
    fn new(arrangement: &'a mut Arrangement) -> Self {
        let budget = Budget::new(arrangement.occurrences.len());
        let (place_of, steps_with) = (Vec::new(), Vec::new());
        Self { arrangement, place_of, steps_with, budget, in_step: Vec::new(), again: BTreeSet::new() }
    }

    fn make_tables(&mut self) {
        let arrangement = &*self.arrangement;
        self.place_of = vec![0; arrangement.places.len()];
        for (place, &micro_batch) in (0u32..).zip(&arrangement.places) {
            self.place_of[micro_batch as usize] = place;
        }
        self.steps_with = vec![0; arrangement.stretches.len()];
        let mut last_seen = vec![usize::MAX; arrangement.stretches.len()];
        for step in 0..arrangement.steps() {
            for place in arrangement.places_of(step) {
                let stretch = arrangement.stretch_at(place);
                self.steps_with[stretch] += usize::from(std::mem::replace(&mut last_seen[stretch], step) != step);
            }
        }
    }

    /// Moves what is double in a step to other steps, and says whether something is double still.
    fn mend(&mut self, step: usize, copies: &[u16]) -> bool {
        self.look_at(step);
        let mut is_double_still = false;
        let mut at = 1;
        while at < self.in_step.len() {
            let (sample, index) = self.in_step[at];
            let index = index as usize;
            if self.in_step[at - 1].0 != sample {
                at += 1;
            } else if let Some((other, other_step)) = self.partner(step, sample, index, copies[sample as usize]) {
                self.arrangement.occurrences.swap(index, other);
                if self.times_in(other_step, sample) > 1 {
                    self.again.insert(other_step);
                }
                self.look_at(step);
                (at, is_double_still) = (1, false);
            } else {
                is_double_still = true;
                at += 1;
            }
        }
        is_double_still
    }

    fn look_at(&mut self, step: usize) {
        self.in_step.clear();
        for place in self.arrangement.places_of(step) {
            let indices = self.arrangement.indices(place);
            let numbers = indices.start as u32..indices.end as u32;
            let samples = self.arrangement.occurrences[indices].iter().map(|packed| packed.sample);
            self.in_step.extend(samples.zip(numbers));
        }
        self.in_step.sort_unstable();
    }

    /// Finds the occurrence to swap a double one with, and its step.
    fn partner(&mut self, step: usize, sample: u32, index: usize, copies: u16) -> Option<(usize, usize)> {
        if self.place_of.is_empty() {
            self.make_tables();
        }
        let number = self.arrangement.stretches.partition_point(|stretch| stretch.start <= index) - 1;
        let stretch = self.arrangement.stretches[number];
        let times = self.times_here(sample);
        let least = usize::from(copies).div_ceil(self.steps_with[number].max(1));
        if least > 1 && times <= least {
            return None; // as even as it can be
        }
        let mut second_best = None;
        for jump in jumps(index - stretch.start, stretch.length) {
            let other = stretch.start + jump;
            let other_sample = self.arrangement.occurrences[other].sample;
            let micro_batch = stretch.first_micro_batch as usize + jump / self.arrangement.micro_batch_size;
            let other_step = self.place_of[micro_batch] as usize / self.arrangement.slots;
            if other_sample == sample || other_step == step {
                continue;
            }
            if !self.budget.spend() {
                break;
            }
            if self.times_in(other_step, sample) + 2 > times {
                continue;
            }
            let other_times = self.times_here(other_sample);
            if other_times == 0 {
                return Some((other, other_step));
            }
            if second_best.is_none() && self.times_in(other_step, other_sample) > other_times {
                second_best = Some((other, other_step));
            }
        }
        second_best
    }

    fn times_here(&self, sample: u32) -> usize {
        let first = self.in_step.partition_point(|(other, _)| *other < sample);
        self.in_step[first..].iter().take_while(|(other, _)| *other == sample).count()
    }

    fn times_in(&self, step: usize, sample: u32) -> usize {
        let indices = self.arrangement.places_of(step).flat_map(|place| self.arrangement.indices(place));
        indices.filter(|&index| self.arrangement.occurrences[index].sample == sample).count()
    }
}

/// Pass 3.
fn spread_within_steps(arrangement: &mut Arrangement, steps: BTreeSet<usize>) {
    for step in steps {
        for place in arrangement.places_of(step) {
            if has_double(arrangement, place) {
                deal_out(arrangement, step, arrangement.stretch_at(place));
            }
        }
    }
}

fn has_double(arrangement: &Arrangement, place: usize) -> bool {
    let mut samples: Vec<u32> = arrangement.micro_batch(place).1.iter().map(|packed| packed.sample).collect();
    samples.sort_unstable();
    samples.windows(2).any(|pair| pair[0] == pair[1])
}

/// Deals the occurrences of one stretch in turn to the micro-batches that it has in a step.
fn deal_out(arrangement: &mut Arrangement, step: usize, stretch: usize) {
    let of_stretch = arrangement.places_of(step).filter(|&place| arrangement.stretch_at(place) == stretch);
    let mut hands: Vec<std::ops::Range<usize>> = of_stretch.map(|place| arrangement.indices(place)).collect();
    let mut cards: Vec<_> = hands.iter().cloned().flatten().map(|index| arrangement.occurrences[index]).collect();
    cards.sort_by_key(|packed| packed.sample);
    let mut cards = cards.into_iter();
    while cards.len() > 0 {
        for index in hands.iter_mut().filter_map(Iterator::next) {
            arrangement.occurrences[index] = cards.next().expect("there are as many cards as indices");
        }
    }
}
