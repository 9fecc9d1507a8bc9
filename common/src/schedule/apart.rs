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

use super::ScheduleOptions;
use super::arrangement::Arrangement;
use super::counts::Uses;
use super::doubles::steps_with_doubles;

/// Swaps occurrences until no image is twice in a step, as far as that is possible: passes 2 and 3.
pub(super) fn keep_apart(arrangement: &mut Arrangement, uses: &Uses<'_>, threads: usize) {
    // Only steps with doubles need mending: those that have them now, and those that get them when others are mended.
    let doubles = steps_with_doubles(arrangement, threads);
    let left = spread_occurrences(arrangement, uses, doubles);
    spread_within_steps(arrangement, left);
}

/// How many candidates may be looked at. Gives the same answer on every machine, which a time limit would not.
struct Budget(u64);

impl Budget {
    /// Candidates per search: one that has not succeeded by then rarely does.
    const PER_SEARCH: usize = 8192;
    /// Candidates of an epoch, however large: less than a minute.
    const MOST: u64 = 100_000_000;

    fn new(items: usize) -> Self {
        Self((10_000_000 + 50 * items as u64).min(Self::MOST))
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

/// Pass 1: a stretch of few images repeated often must not fill a step alone. Takes the stretch at each place, and for each
/// stretch how many different images it has.
pub(super) fn spread_micro_batches<T: Copy + Into<u32>>(
    stretch_at: &mut [T],
    images_per_stretch: &[usize],
    options: &ScheduleOptions,
) {
    let (micro_batch_size, slots) = (options.micro_batch_size as usize, options.slots as usize);
    let most: Vec<usize> = images_per_stretch.iter().map(|images| (images / micro_batch_size).max(1)).collect();
    let may_be_too_many = |stretch: usize| most[stretch] < slots;
    if stretch_at.len() <= slots || !(0..most.len()).any(may_be_too_many) {
        return;
    }
    let number = |stretch: T| stretch.into() as usize;
    let mut budget = Budget::new(stretch_at.len());
    let excess = |stretch_at: &[T], step: usize, stretch: usize| {
        let places = &stretch_at[step * slots..((step + 1) * slots).min(stretch_at.len())];
        places.iter().filter(|&&other| number(other) == stretch).count().saturating_sub(most[stretch])
    };
    for place in 0..stretch_at.len() {
        let (step, stretch) = (place / slots, number(stretch_at[place]));
        if !may_be_too_many(stretch) || excess(stretch_at, step, stretch) == 0 {
            continue;
        }
        for other in jumps(place, stretch_at.len()) {
            let (other_step, other_stretch) = (other / slots, number(stretch_at[other]));
            if other_step == step || other_stretch == stretch || !budget.spend() {
                continue;
            }
            let both = |stretch_at: &[T]| {
                let excess = |(step, stretch)| excess(stretch_at, step, stretch);
                let pairs = [step, other_step].map(|step| [(step, stretch), (step, other_stretch)]);
                pairs.into_iter().flatten().map(excess).sum::<usize>()
            };
            let before = both(stretch_at);
            stretch_at.swap(place, other);
            if both(stretch_at) < before {
                break;
            }
            stretch_at.swap(place, other);
        }
    }
}

/// Pass 2. Returns the steps in which images are still double.
fn spread_occurrences(arrangement: &mut Arrangement, uses: &Uses<'_>, doubles: BTreeSet<usize>) -> BTreeSet<usize> {
    let mut left = BTreeSet::new();
    let mut spread = Spread::new(arrangement, uses, doubles);
    while let Some(step) = spread.ahead.pop_first() {
        if spread.mend(step) {
            left.insert(step);
        }
    }
    while let Some(step) = spread.again.pop_first() {
        if spread.mend(step) {
            left.insert(step)
        } else {
            left.remove(&step)
        };
    }
    left
}

struct Spread<'a> {
    arrangement: &'a mut Arrangement,
    uses: &'a Uses<'a>,
    /// In how many steps each stretch appears. Made when the first double is found.
    steps_with: Vec<usize>,
    budget: Budget,
    /// The step at hand: samples and indices of its occurrences, sorted.
    in_step: Vec<(u32, u32)>,
    /// Steps to mend that the first round has not come to.
    ahead: BTreeSet<usize>,
    /// Steps that got an image twice which another step had more often.
    again: BTreeSet<usize>,
}

impl<'a> Spread<'a> {
    fn new(arrangement: &'a mut Arrangement, uses: &'a Uses<'a>, ahead: BTreeSet<usize>) -> Self {
        let budget = Budget::new(arrangement.occurrences.len());
        let again = BTreeSet::new();
        Self { arrangement, uses, steps_with: Vec::new(), budget, in_step: Vec::new(), ahead, again }
    }

    fn count_steps(&mut self) {
        let arrangement = &*self.arrangement;
        let mut steps_with = vec![0; arrangement.stretches.len()];
        let mut last_seen = vec![usize::MAX; arrangement.stretches.len()];
        arrangement.places.visit(0..arrangement.places.len(), &arrangement.stretches, |place, stretch, _| {
            let step = place / arrangement.slots;
            steps_with[stretch] += usize::from(std::mem::replace(&mut last_seen[stretch], step) != step);
        });
        self.steps_with = steps_with;
    }

    /// Moves what is double in a step to other steps, and says whether something is double still.
    fn mend(&mut self, step: usize) -> bool {
        self.look_at(step);
        let mut is_double_still = false;
        let mut at = 1;
        while at < self.in_step.len() {
            let (sample, index) = self.in_step[at];
            let index = index as usize;
            if self.in_step[at - 1].0 != sample {
                at += 1;
            } else if let Some((other, other_step)) = self.partner(step, sample, index) {
                self.arrangement.occurrences.swap(index, other);
                if self.times_in(other_step, sample) > 1 {
                    self.again.insert(other_step);
                    if other_step > step {
                        self.ahead.insert(other_step);
                    }
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
            let samples = self.arrangement.occurrences[indices].iter().map(|&id| self.arrangement.ids.sample(id));
            self.in_step.extend(samples.zip(numbers));
        }
        self.in_step.sort_unstable();
    }

    /// Finds the occurrence to swap a double one with, and its step.
    fn partner(&mut self, step: usize, sample: u32, index: usize) -> Option<(usize, usize)> {
        if self.steps_with.is_empty() {
            self.count_steps();
        }
        let number = self.arrangement.stretches.partition_point(|stretch| stretch.start <= index) - 1;
        let stretch = self.arrangement.stretches[number];
        let times = self.times_here(sample);
        let least = (self.uses.copies(sample) as usize).div_ceil(self.steps_with[number].max(1));
        if least > 1 && times <= least {
            return None; // as even as it can be
        }
        let mut second_best = None;
        for jump in jumps(index - stretch.start, stretch.length) {
            let other = stretch.start + jump;
            let other_sample = self.arrangement.ids.sample(self.arrangement.occurrences[other]);
            if other_sample == sample {
                continue;
            }
            let micro_batch = stretch.first_micro_batch + (jump / self.arrangement.micro_batch_size) as u32;
            let other_step = self.arrangement.places.place_of(micro_batch, number) / self.arrangement.slots;
            if other_step == step {
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
        let ids = self.arrangement.ids.of_sample(sample);
        let indices = self.arrangement.places_of(step).flat_map(|place| self.arrangement.indices(place));
        indices.filter(|&index| ids.contains(&self.arrangement.occurrences[index])).count()
    }
}

/// Pass 3.
fn spread_within_steps(arrangement: &mut Arrangement, steps: BTreeSet<usize>) {
    for step in steps {
        for place in arrangement.places_of(step) {
            if has_double(arrangement, place) {
                deal_out(arrangement, step, arrangement.at(place).0);
            }
        }
    }
}

fn has_double(arrangement: &Arrangement, place: usize) -> bool {
    let occurrences = &arrangement.occurrences[arrangement.indices(place)];
    let mut samples: Vec<u32> = occurrences.iter().map(|&id| arrangement.ids.sample(id)).collect();
    samples.sort_unstable();
    samples.windows(2).any(|pair| pair[0] == pair[1])
}

/// Deals the occurrences of one stretch in turn to the micro-batches that it has in a step.
fn deal_out(arrangement: &mut Arrangement, step: usize, stretch: usize) {
    let of_stretch = arrangement.places_of(step).filter(|&place| arrangement.at(place).0 == stretch);
    let mut hands: Vec<std::ops::Range<usize>> = of_stretch.map(|place| arrangement.indices(place)).collect();
    let mut cards: Vec<u32> = hands.iter().cloned().flatten().map(|index| arrangement.occurrences[index]).collect();
    cards.sort_by_key(|&id| arrangement.ids.sample(id));
    let mut cards = cards.into_iter();
    while cards.len() > 0 {
        for index in hands.iter_mut().filter_map(Iterator::next) {
            arrangement.occurrences[index] = cards.next().expect("there are as many cards as indices");
        }
    }
}
