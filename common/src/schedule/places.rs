//! The places of an epoch: which micro-batch comes when.
//!
//! A place remembers only which stretch its micro-batch is cut from. The micro-batches of a stretch come in the order of the
//! stretch, so the number of one is how often its stretch came before: marks at regular distances keep that count. That is for
//! epochs of very many micro-batches. In others, and with more than 256 stretches, which only batch ids can bring about, each
//! place remembers its micro-batch's number and each micro-batch its place, which is quicker to read.

use super::order::Stretch;

/// Which micro-batch is at each place.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Places {
    /// For many places and few stretches.
    Narrow(Narrow),
    /// For few places or many stretches.
    Wide(Wide),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Narrow {
    /// The number of the stretch at each place.
    stretches: Vec<u8>,
    /// How many stretches there are.
    width: usize,
    /// How many places lie between two marks.
    distance: usize,
    /// At each mark, for each stretch, the number of its next micro-batch.
    marks: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wide {
    /// The number of the micro-batch at each place.
    micro_batches: Vec<u32>,
    /// The place of each micro-batch.
    places: Vec<u32>,
}

impl Places {
    /// The most stretches that one byte tells apart.
    const MAX_NARROW_STRETCHES: usize = 256;
    /// The fewest places that are worth counting from mark to mark.
    const MIN_NARROW_PLACES: usize = 1 << 20;
    /// The fewest places between two marks.
    const MIN_DISTANCE: usize = 256;

    /// Says whether the narrow form suits as many places and stretches.
    pub(super) fn should_be_narrow(places: usize, stretches: usize) -> bool {
        places >= Self::MIN_NARROW_PLACES && stretches <= Self::MAX_NARROW_STRETCHES
    }

    /// Takes the number of the stretch at each place, when there are few stretches.
    pub(super) fn narrow(stretches: Vec<u8>, all: &[Stretch]) -> Self {
        let width = all.len();
        let distance = (4 * width).max(Self::MIN_DISTANCE); // so marks take at most a byte per place
        let mut next = first_micro_batches(all);
        let mut marks = Vec::with_capacity(width * (stretches.len() / distance + 1));
        for block in stretches.chunks(distance) {
            marks.extend_from_slice(&next);
            block.iter().for_each(|&stretch| next[usize::from(stretch)] += 1);
        }
        Places::Narrow(Narrow { stretches, width, distance, marks })
    }

    /// Takes the number of the stretch at each place, when there are many stretches.
    pub(super) fn wide(mut stretches: Vec<u32>, all: &[Stretch]) -> Self {
        let mut next = first_micro_batches(all);
        let mut places = vec![0; stretches.len()];
        for (place, number) in (0..).zip(&mut stretches) {
            let next = &mut next[*number as usize];
            places[*next as usize] = place;
            *number = *next;
            *next += 1;
        }
        Places::Wide(Wide { micro_batches: stretches, places })
    }

    /// Returns how many places there are.
    pub(super) fn len(&self) -> usize {
        match self {
            Places::Narrow(narrow) => narrow.stretches.len(),
            Places::Wide(wide) => wide.places.len(),
        }
    }

    /// Returns the numbers of the stretch and the micro-batch at a place.
    pub(super) fn at(&self, place: usize, stretches: &[Stretch]) -> (usize, u32) {
        match self {
            Places::Narrow(narrow) => narrow.at(place),
            Places::Wide(wide) => (stretch_of(wide.micro_batches[place], stretches), wide.micro_batches[place]),
        }
    }

    /// Returns the place of a micro-batch of a stretch.
    pub(super) fn place_of(&self, micro_batch: u32, stretch: usize) -> usize {
        match self {
            Places::Narrow(narrow) => narrow.place_of(micro_batch, stretch),
            Places::Wide(wide) => wide.places[micro_batch as usize] as usize,
        }
    }

    /// Visits places in order, with the numbers of the stretch and the micro-batch of each.
    pub(super) fn visit(
        &self,
        places: std::ops::Range<usize>,
        stretches: &[Stretch],
        mut visit: impl FnMut(usize, usize, u32),
    ) {
        match self {
            _ if places.is_empty() => {}
            Places::Narrow(narrow) => {
                let mut next = narrow.next_at(places.start);
                for place in places {
                    let stretch = usize::from(narrow.stretches[place]);
                    visit(place, stretch, next[stretch]);
                    next[stretch] += 1;
                }
            }
            Places::Wide(wide) => {
                for place in places {
                    let micro_batch = wide.micro_batches[place];
                    visit(place, stretch_of(micro_batch, stretches), micro_batch);
                }
            }
        }
    }
}

impl Narrow {
    fn at(&self, place: usize) -> (usize, u32) {
        let stretch = self.stretches[place];
        let mark = place / self.distance;
        let before = self.stretches[mark * self.distance..place].iter().filter(|&&other| other == stretch).count();
        (usize::from(stretch), self.marks[mark * self.width + usize::from(stretch)] + before as u32)
    }

    fn place_of(&self, micro_batch: u32, stretch: usize) -> usize {
        let (mut low, mut high) = (0, self.marks.len() / self.width);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.marks[middle * self.width + stretch] <= micro_batch { low = middle } else { high = middle }
        }
        let before = (micro_batch - self.marks[low * self.width + stretch]) as usize;
        let start = low * self.distance;
        let of_stretch = (start..).zip(&self.stretches[start..]).filter(|&(_, &other)| usize::from(other) == stretch);
        of_stretch.map(|(place, _)| place).nth(before).expect("every micro-batch has a place")
    }

    /// Returns for each stretch the number of its next micro-batch from a place on.
    fn next_at(&self, place: usize) -> Vec<u32> {
        let mark = place / self.distance;
        let mut next = self.marks[mark * self.width..][..self.width].to_vec();
        self.stretches[mark * self.distance..place].iter().for_each(|&stretch| next[usize::from(stretch)] += 1);
        next
    }
}

fn first_micro_batches(stretches: &[Stretch]) -> Vec<u32> {
    stretches.iter().map(|stretch| stretch.first_micro_batch).collect()
}

/// Returns the number of the stretch that a micro-batch is cut from.
fn stretch_of(micro_batch: u32, stretches: &[Stretch]) -> usize {
    // Empty stretches share their number with the next one; the last is the one that is not empty.
    stretches.partition_point(|stretch| stretch.first_micro_batch <= micro_batch) - 1
}
