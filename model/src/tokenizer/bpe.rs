//! Byte-pair merging: a word's bytes become tokens by the merges in the order they were learned.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Marks the last token of a word.
pub(crate) const END_OF_WORD: &str = "</w>";

/// Vocabulary and merges, as ids.
#[derive(Clone, Debug)]
pub(crate) struct Bpe {
    vocab: HashMap<String, u32>,
    /// (left, right) → (rank, merged)
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// Id of each byte, within a word and at its end.
    bytes: Vec<[Option<u32>; 2]>,
    unknown: Option<u32>,
}

impl Bpe {
    /// `merges` in the order they were learned. `Err` holds the first merge whose parts or result are not tokens.
    pub(crate) fn new(
        vocab: HashMap<String, u32>,
        merges: &[(String, String)],
        unknown: Option<u32>,
    ) -> Result<Self, String> {
        let mut table = HashMap::with_capacity(merges.len());
        for (rank, (left, right)) in merges.iter().enumerate() {
            let id = |token: &str| vocab.get(token).copied();
            let merged = id(&format!("{left}{right}"));
            let (Some(l), Some(r), Some(merged)) = (id(left), id(right), merged) else {
                return Err(format!("{left} {right}"));
            };
            table.entry((l, r)).or_insert((rank as u32, merged));
        }
        let bytes = byte_characters()
            .iter()
            .map(|c| [vocab.get(&c.to_string()).copied(), vocab.get(&format!("{c}{END_OF_WORD}")).copied()])
            .collect();
        Ok(Self { vocab, merges: table, bytes, unknown })
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.vocab.get(token).copied()
    }

    /// One more than the largest id.
    pub(crate) fn vocab_size(&self) -> usize {
        self.vocab.values().max().map_or(0, |id| *id as usize + 1)
    }

    /// Appends the tokens of one word.
    pub(crate) fn encode_word(&self, word: &str, ids: &mut Vec<u32>) {
        let last = word.len() - 1;
        let mut symbols: Vec<u32> = word
            .bytes()
            .enumerate()
            .filter_map(|(i, byte)| self.bytes[byte as usize][usize::from(i == last)].or(self.unknown))
            .collect();
        self.merge(&mut symbols);
        ids.extend(symbols);
    }

    /// Merges pairs, the lowest rank first, the leftmost of equals, until there are none. A caption may be one long
    /// word, so the pairs wait in a heap: `n·log n` steps.
    fn merge(&self, symbols: &mut Vec<u32>) {
        let count = symbols.len();
        // Neighbours of each symbol; one that was merged into its left neighbour is marked as gone.
        let mut left: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut right: Vec<usize> = (1..=count).collect();
        let mut is_gone = vec![false; count];
        let mut heap: BinaryHeap<Reverse<Pair>> =
            (1..count).filter_map(|i| self.pair(symbols, i - 1, i)).map(Reverse).collect();
        while let Some(Reverse(pair)) = heap.pop() {
            let (at, next) = (pair.at, right[pair.at]);
            // A pair that has changed since is in the heap anew.
            if is_gone[at] || next >= count || (symbols[at], symbols[next]) != pair.parts {
                continue;
            }
            symbols[at] = pair.merged;
            is_gone[next] = true;
            right[at] = right[next];
            if right[at] < count {
                left[right[at]] = at;
                heap.extend(self.pair(symbols, at, right[at]).map(Reverse));
            }
            if left[at] < count {
                heap.extend(self.pair(symbols, left[at], at).map(Reverse));
            }
        }
        let mut gone = is_gone.into_iter();
        symbols.retain(|_| !gone.next().expect("one per symbol"));
    }

    fn pair(&self, symbols: &[u32], at: usize, next: usize) -> Option<Pair> {
        let parts = (symbols[at], symbols[next]);
        let (rank, merged) = *self.merges.get(&parts)?;
        Some(Pair { rank, at, parts, merged })
    }
}

/// Two neighbours that can be merged; ordered by rank, then by place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: u32,
    at: usize,
    parts: (u32, u32),
    merged: u32,
}

/// The printable character that stands for each byte in `vocab.json` (GPT-2's table).
pub(crate) fn byte_characters() -> Vec<char> {
    let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut spare = 256u32..;
    (0..=255u8)
        .map(|byte| {
            let code = if printable(&byte) { u32::from(byte) } else { spare.next().expect("endless") };
            char::from_u32(code).expect("below the surrogates")
        })
        .collect()
}
