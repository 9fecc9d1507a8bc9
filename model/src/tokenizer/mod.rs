//! CLIP's byte-pair tokenizer: a caption in, 77 token ids out, the same ids as transformers' `CLIPTokenizer`.
//!
//! Text goes through four stages: special tokens are cut out (`added`), the rest is normalised and split into
//! words (`split`), and every word becomes tokens by merging byte pairs (`bpe`); `files` reads and writes the
//! folder.

mod added;
mod bpe;
mod embedded;
mod files;
mod split;

use crate::clip::TextSettings;
use added::AddedTokens;
use bpe::Bpe;
pub use files::TokenizerError;
use std::collections::BTreeMap;
use std::path::Path;

/// Length of every encoded caption, and of each chunk of a long one.
pub const MAX_LENGTH: usize = 77;

/// Tokens of a caption that fit between begin and end.
pub const CHUNK: usize = MAX_LENGTH - 2;

/// Most chunks of a long caption: what stands in a text file by mistake must not fill the memory.
pub const MAX_CHUNKS: usize = 10;

/// CLIP's tokenizer, with the special tokens of one model family.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    bpe: Bpe,
    added: AddedTokens,
    bos: u32,
    eos: u32,
    pad: u32,
    vocab_size: usize,
    /// The files it was read from, as they were, by name: saving writes them back.
    files: BTreeMap<String, Vec<u8>>,
}

/// What a tokenizer pads with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// `<|endoftext|>`, as in SD 1.x.
    EndOfText,
    /// `!`, id 0, as in SD 2.x.
    ExclamationMark,
}

impl Tokenizer {
    /// Reads a `tokenizer/` folder: `vocab.json` and `merges.txt`, or `tokenizer.json`, and the special tokens.
    ///
    /// # Errors
    ///
    /// On missing and malformed files, which it names.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        files::load(dir)
    }

    /// Makes CLIP's tokenizer with the first `merges` of its 48,894 merges: all of them, or fewer for tiny models.
    pub fn clip(merges: usize, padding: Padding) -> Self {
        let files = embedded::files(merges, padding);
        files::parse(Path::new("tokenizer"), files).expect("the embedded tokenizer is well-formed")
    }

    /// Encodes a caption: begin, at most 75 tokens, end, padding up to 77.
    pub fn encode(&self, text: &str) -> Vec<i32> {
        let tokens = self.tokens(text);
        self.chunk(&tokens[..tokens.len().min(CHUNK)])
    }

    /// Encodes a long caption to as many chunks of 77 ids as it needs, [`MAX_CHUNKS`] at most: each has begin, at most 75
    /// tokens, end and padding.
    pub fn encode_long(&self, text: &str) -> Vec<i32> {
        let tokens = self.tokens(text);
        if tokens.is_empty() {
            return self.chunk(&[]);
        }
        tokens.chunks(CHUNK).take(MAX_CHUNKS).flat_map(|tokens| self.chunk(tokens)).collect()
    }

    /// Encodes a caption as the settings say: [`encode`](Self::encode) or [`encode_long`](Self::encode_long).
    pub fn encode_with(&self, text: &str, settings: TextSettings) -> Vec<i32> {
        if settings.long_prompts { self.encode_long(text) } else { self.encode(text) }
    }

    fn chunk(&self, tokens: &[u32]) -> Vec<i32> {
        let mut ids = vec![self.bos];
        ids.extend(tokens);
        ids.push(self.eos);
        ids.resize(MAX_LENGTH, self.pad);
        ids.into_iter().map(|id| id as i32).collect()
    }

    /// Number of tokens that [`encode_with`](Self::encode_with) cuts off.
    pub fn cut_off(&self, text: &str, settings: TextSettings) -> usize {
        self.token_count(text).saturating_sub(settings.max_tokens())
    }

    /// Number of tokens of a caption, without begin and end and before truncation to 75.
    pub fn token_count(&self, text: &str) -> usize {
        self.tokens(text).len()
    }

    /// Number of ids: every id is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the padding token.
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// The files of the folder by name, as read.
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for piece in self.added.cut(text) {
            match piece {
                added::Piece::Token(id) => ids.push(id),
                added::Piece::Text(normal) => {
                    split::words(&normal).for_each(|word| self.bpe.encode_word(word, &mut ids))
                }
            }
        }
        ids
    }
}
