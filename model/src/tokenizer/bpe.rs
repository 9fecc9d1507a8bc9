//! Byte-pair merging: a word's bytes become tokens by the merges in the order they were learned.

use std::collections::HashMap;

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
        // The lowest rank first, the leftmost of equals: at most 75 tokens of a caption count, so words are short.
        while let Some((at, merged)) = self.best_merge(&symbols) {
            symbols[at] = merged;
            symbols.remove(at + 1);
        }
        ids.extend(symbols);
    }

    fn best_merge(&self, symbols: &[u32]) -> Option<(usize, u32)> {
        let merges = symbols.windows(2).enumerate();
        merges
            .filter_map(|(at, pair)| self.merges.get(&(pair[0], pair[1])).map(|(rank, merged)| (*rank, at, *merged)))
            .min()
            .map(|(_, at, merged)| (at, merged))
    }
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
