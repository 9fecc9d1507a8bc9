//! A row of yes and no, eight to the byte.

/// Bits, all of them off at first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bits {
    words: Vec<u64>,
}

impl Bits {
    pub(super) fn new(length: usize) -> Self {
        Self { words: vec![0; length.div_ceil(64)] }
    }

    pub(super) fn get(&self, index: usize) -> bool {
        self.words[index / 64] >> (index % 64) & 1 == 1
    }

    pub(super) fn turn_on(&mut self, index: usize) {
        self.words[index / 64] |= 1 << (index % 64);
    }

    pub(super) fn flip(&mut self, index: usize) {
        self.words[index / 64] ^= 1 << (index % 64);
    }

    /// Turns on what is on in another row of the same length.
    pub(super) fn or(mut self, other: Self) -> Self {
        self.words.iter_mut().zip(other.words).for_each(|(word, other)| *word |= other);
        self
    }

    /// Turns a stretch on.
    pub(super) fn turn_on_all(&mut self, range: std::ops::Range<usize>) {
        range.for_each(|index| self.turn_on(index));
    }
}
