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

use super::bits::Bits;
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
        (self.used(epoch + 1) - self.used(epoch)) as u64
    }

    /// Returns how many times images of the group are used once more in the first `epochs` epochs.
    fn used(&self, epochs: u64) -> u128 {
        self.multiply.fraction_of(u128::from(epochs) * u128::from(self.size))
    }

    /// Brings the group's cards into the order of a key, from the end up to `from`; those in front of it are not yet in order.
    fn shuffle(&self, cards: &mut Vec<u32>, from: usize, domain: &str, number: u64) {
        cards.clear();
        cards.extend(0..self.size as u32);
        let multiply = self.multiply.to_string();
        let mut rng = self.streams.keyed(domain, &[self.folder.into(), multiply.as_str().into(), number.into()]);
        rng.shuffle_from(from, cards);
    }
}

/// Deals a deck, epoch by epoch. Quickest in the order of the epochs, because the deck in hand is kept.
pub(super) struct Dealer<'a> {
    deck: Deck<'a>,
    remainder: Remainder,
    /// Number of the deck in hand.
    number: Option<u64>,
    /// The deck in hand, in the order in which it is dealt.
    cards: Vec<u32>,
}

impl<'a> Dealer<'a> {
    pub(super) fn new(deck: Deck<'a>, remainder: Remainder) -> Self {
        Self { deck, remainder, number: None, cards: Vec::new() }
    }

    /// Says whether the cards are those left out, where those used once more would be over half.
    pub(super) fn deals_left_out(&self) -> bool {
        self.deck.multiply.fraction_is_above_half()
    }

    /// Returns how many images are used once more in an epoch.
    pub(super) fn count(&self, epoch: u64) -> u64 {
        self.deck.count(epoch)
    }

    /// Visits the cards that an epoch takes: each card at most once.
    pub(super) fn deal(&mut self, epoch: u64, mut visit: impl FnMut(u32)) {
        if self.remainder == Remainder::Independent {
            let count = self.deck.count(epoch);
            let count = if self.deals_left_out() { self.deck.size - count } else { count };
            self.deck.shuffle(&mut self.cards, 0, "schedule.draw", epoch);
            self.cards[..count as usize].iter().for_each(|&card| visit(card));
            return;
        }
        let size = u128::from(self.deck.size);
        let (mut at, end) = (self.total(epoch), self.total(epoch + 1));
        while at < end {
            let (number, first) = (at / size, at % size);
            let last = (end - number * size).min(size);
            self.take_up(number as u64, epoch);
            self.cards[first as usize..last as usize].iter().for_each(|&card| visit(card));
            at = number * size + last;
        }
    }

    /// Returns how many cards the first `epochs` epochs take.
    fn total(&self, epochs: u64) -> u128 {
        let used = self.deck.used(epochs);
        if self.deals_left_out() { u128::from(epochs) * u128::from(self.deck.size) - used } else { used }
    }

    /// Takes a deck in hand. `epoch` is one that takes cards of it.
    fn take_up(&mut self, number: u64, epoch: u64) {
        if self.number == Some(number) {
            return;
        }
        let straddle = self.straddle(number, epoch);
        let tail = straddle.map(|(tail, head)| (self.tail_before(number, tail), head));
        self.deck.shuffle(&mut self.cards, 0, "schedule.deck", number);
        if let Some((is_in_tail, head)) = tail {
            self.bring_to_front(&is_in_tail, head);
        }
        self.number = Some(number);
    }

    /// Returns which cards are the last `tail` ones of the deck before.
    fn tail_before(&mut self, number: u64, tail: usize) -> Bits {
        let size = self.deck.size as usize;
        if self.number != Some(number - 1) {
            self.deck.shuffle(&mut self.cards, size - tail, "schedule.deck", number - 1);
        }
        let mut is_in_tail = Bits::new(size);
        self.cards[size - tail..].iter().for_each(|&card| is_in_tail.turn_on(card as usize));
        is_in_tail
    }

    /// Moves the first `head` cards that are not in the tail of the deck before to the front.
    fn bring_to_front(&mut self, is_in_tail: &Bits, head: usize) {
        // The last cards stay where they are, because the next deck's head counts on it.
        let free = self.cards.len() - (self.cards.len() - 1) / 2;
        let (mut skipped, mut taken) = (Vec::new(), 0);
        for at in 0..free {
            if taken == head {
                break;
            }
            let card = self.cards[at];
            if is_in_tail.get(card as usize) {
                skipped.push(card);
            } else {
                self.cards[taken] = card;
                taken += 1;
            }
        }
        assert_eq!(taken, head, "an epoch takes at most half a deck, so enough cards are free");
        self.cards[head..head + skipped.len()].copy_from_slice(&skipped);
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
