//! Many small numbers, each in as few bytes as the largest of them needs.

/// A row of numbers that is written once and read often.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Numbers {
    Bytes(Vec<u8>),
    Shorts(Vec<u16>),
    Words(Vec<u32>),
}

impl Numbers {
    pub(super) fn new() -> Self {
        Numbers::Bytes(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Numbers::Bytes(numbers) => numbers.len(),
            Numbers::Shorts(numbers) => numbers.len(),
            Numbers::Words(numbers) => numbers.len(),
        }
    }

    /// Appends a number, and makes room for its size in all of them where it needs that.
    pub(super) fn push(&mut self, number: u32) {
        self.widen(number);
        match self {
            Numbers::Bytes(numbers) => numbers.push(number as u8),
            Numbers::Shorts(numbers) => numbers.push(number as u16),
            Numbers::Words(numbers) => numbers.push(number),
        }
    }

    /// Replaces each number `n` by `new[n]`.
    pub(super) fn replace(&mut self, new: &[u32]) {
        self.widen(new.iter().copied().max().unwrap_or(0));
        match self {
            Numbers::Bytes(numbers) => numbers.iter_mut().for_each(|number| *number = new[usize::from(*number)] as u8),
            Numbers::Shorts(numbers) => {
                numbers.iter_mut().for_each(|number| *number = new[usize::from(*number)] as u16)
            }
            Numbers::Words(numbers) => numbers.iter_mut().for_each(|number| *number = new[*number as usize]),
        }
    }

    pub(super) fn get(&self, index: usize) -> u32 {
        match self {
            Numbers::Bytes(numbers) => u32::from(numbers[index]),
            Numbers::Shorts(numbers) => u32::from(numbers[index]),
            Numbers::Words(numbers) => numbers[index],
        }
    }

    /// Copies the numbers from `start` on.
    pub(super) fn read(&self, start: usize, into: &mut [u32]) {
        fn copy<T: Copy + Into<u32>>(from: &[T], into: &mut [u32]) {
            from.iter().zip(into).for_each(|(&from, into)| *into = from.into());
        }
        match self {
            Numbers::Bytes(numbers) => copy(&numbers[start..], into),
            Numbers::Shorts(numbers) => copy(&numbers[start..], into),
            Numbers::Words(numbers) => copy(&numbers[start..], into),
        }
    }

    fn widen(&mut self, largest: u32) {
        match self {
            Numbers::Bytes(numbers) if largest > u32::from(u16::MAX) => {
                *self = Numbers::Words(numbers.iter().copied().map(u32::from).collect());
            }
            Numbers::Bytes(numbers) if largest > u32::from(u8::MAX) => {
                *self = Numbers::Shorts(numbers.iter().copied().map(u16::from).collect());
            }
            Numbers::Shorts(numbers) if largest > u32::from(u16::MAX) => {
                *self = Numbers::Words(numbers.iter().copied().map(u32::from).collect());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_size_come_back_as_they_went_in() {
        for largest in [0, 255, 256, 65_535, 65_536, u32::MAX] {
            let expected = [3, 0, largest, 7, largest / 2];
            let mut numbers = Numbers::new();
            expected.iter().for_each(|&number| numbers.push(number));
            let mut read = [0; 4];
            numbers.read(1, &mut read);
            assert_eq!((numbers.len(), numbers.get(2), &read[..]), (5, largest, &expected[1..]), "up to {largest}");
        }
    }

    #[test]
    fn replacements_may_be_wider() {
        for largest in [1u32, 300, 70_000] {
            let mut numbers = Numbers::new();
            [1, 0, 1].iter().for_each(|&number| numbers.push(number));
            numbers.replace(&[5, largest]);
            let mut read = [0; 3];
            numbers.read(0, &mut read);
            assert_eq!(read, [largest, 5, largest]);
        }
    }
}
