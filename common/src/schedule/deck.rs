//! The deck: deals the images that the fraction of a multiplier asks for, so that all come up equally often.
//!
//! Think of the group's images as cards. Decks follow each other without end, each shuffled by a key of its own, and epoch e
//! takes the cards from position `total(e)` to `total(e + 1)` of that row, where `total(e) = e · n · f` rounded half up. An
//! epoch that takes the last cards of one deck and the first of the next must not meet an image twice, so the next deck's
//! head skips the cards of that tail.
//!
//! Any epoch is found without the ones before it, because no deck's tail is ever moved: the head picks only from the cards in
//! front of the own tail, and there are enough of them as long as an epoch takes at most half a deck. A fraction above one
//! half is therefore dealt the other way round: the deck holds the images that are left *out*.

use std::ops::Range;

use crate::config::Remainder;
use crate::dataset::Decimal;
use crate::rng::Streams;

/// A group's remainder: `size` images, of which the fraction of `multiply` are used once more in each epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deck<'a> {
    pub(super) streams: &'a Streams,
    /// The group's folder; with the multiplier it names the group in keys.
    pub(super) folder: &'a str,
    pub(super) multiply: Decimal,
    pub(super) size: u64,
}

impl Deck<'_> {
    /// Returns how many images of the group are used once more in this epoch.
    pub(super) fn count(&self, epoch: u64) -> u64 {
        let used = Row { deck: self, is_left_out: false };
        (used.total(epoch + 1) - used.total(epoch)) as u64
    }

    /// Says for each image of the group, by its number, whether it is used once more in this epoch.
    pub(super) fn deal(&self, epoch: u64, remainder: Remainder) -> Vec<bool> {
        let is_left_out = self.multiply.fraction_is_above_half();
        let cards = match remainder {
            Remainder::Deck => Row { deck: self, is_left_out }.cards(epoch),
            Remainder::Independent => {
                let count = self.count(epoch);
                let count = if is_left_out { self.size - count } else { count };
                self.shuffled("schedule.draw", epoch)[..count as usize].to_vec()
            }
        };
        let mut is_dealt = vec![is_left_out; self.size as usize];
        cards.into_iter().for_each(|card| is_dealt[card as usize] = !is_left_out);
        is_dealt
    }

    /// Returns the group's cards in the order of a key.
    fn shuffled(&self, domain: &str, number: u64) -> Vec<u32> {
        let mut cards: Vec<u32> = (0..self.size as u32).collect();
        let multiply = self.multiply.to_string();
        self.streams.keyed(domain, &[self.folder.into(), multiply.as_str().into(), number.into()]).shuffle(&mut cards);
        cards
    }
}

/// The endless row of decks: of used images, or of those left out.
struct Row<'a> {
    deck: &'a Deck<'a>,
    is_left_out: bool,
}

impl Row<'_> {
    /// Returns how many cards the first `epochs` epochs take.
    fn total(&self, epochs: u64) -> u128 {
        let all = u128::from(epochs) * u128::from(self.deck.size);
        let used = self.deck.multiply.fraction_of(all);
        if self.is_left_out { all - used } else { used }
    }

    /// Returns the cards that an epoch takes: of one deck, or the last of one and the first of the next.
    fn cards(&self, epoch: u64) -> Vec<u32> {
        let size = u128::from(self.deck.size);
        let Range { start, end } = self.total(epoch)..self.total(epoch + 1);
        let mut cards = Vec::with_capacity((end - start) as usize);
        let mut at = start;
        while at < end {
            let (number, first) = (at / size, at % size);
            let last = (end - number * size).min(size);
            cards.extend_from_slice(&self.in_order(number as u64, epoch)[first as usize..last as usize]);
            at = number * size + last;
        }
        cards
    }

    /// Returns a deck in the order in which it is dealt. `epoch` is one that takes cards of it.
    fn in_order(&self, number: u64, epoch: u64) -> Vec<u32> {
        let cards = self.deck.shuffled("schedule.deck", number);
        let Some((tail, head)) = self.straddle(number, epoch) else { return cards };
        let previous = self.deck.shuffled("schedule.deck", number - 1);
        let size = cards.len();
        let mut is_in_tail = vec![false; size];
        previous[size - tail..].iter().for_each(|&card| is_in_tail[card as usize] = true);
        // The last cards stay where they are, because the next deck's head counts on it.
        let (free, fixed) = cards.split_at(size - (size - 1) / 2);
        let mut wanted = head;
        let mut goes_first = |card: &u32| {
            let takes = wanted > 0 && !is_in_tail[*card as usize];
            wanted -= usize::from(takes);
            takes
        };
        let (first, rest): (Vec<u32>, Vec<u32>) = free.iter().partition(|card| goes_first(card));
        assert_eq!(first.len(), head, "an epoch takes at most half a deck, so enough cards are free");
        [&first[..], &rest, fixed].concat()
    }

    /// Finds the epoch that takes both the last cards of the deck before and the first of this one, and returns how many of each.
    fn straddle(&self, number: u64, epoch: u64) -> Option<(usize, usize)> {
        let boundary = u128::from(number) * u128::from(self.deck.size);
        let (mut low, mut high) = (0, epoch + 1); // total(low) ≤ boundary, total(high) > boundary
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.total(middle) <= boundary { low = middle } else { high = middle }
        }
        let (tail, head) = (boundary - self.total(low), self.total(high) - boundary);
        (tail > 0).then_some((tail as usize, head as usize))
    }
}
